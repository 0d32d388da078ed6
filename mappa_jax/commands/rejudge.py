"""Scores a run's recorded actions with another judge, and prints how the two differ.

python launch/rejudge.py --workdir=runs/mine --judge.provider=gemini --steps=1:5
python launch/rejudge.py --workdir=runs/mine --judge.prompts=my_prompts

python launch/rejudge.py --workdir=runs/mine --judge.provider=ensemble \\
  --judge.members=gemini:gemini-2.5-pro,openai:qwen3@http://localhost:8000/v1

What is not said is as in the run's own config, but for judge.replay. The new verdicts
are written to WORKDIR/rejudged/ (a second time to rejudged/2/, and so on), the calls to
the ledger there, from which an interrupted run goes on.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from mappa_jax.commands import common
from mappa_jax.config import default_config

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.")
_STEPS = flags.DEFINE_string("steps", "", 'Iterations, first:last ("": all).')
config_flags.DEFINE_config_dict(
    "judge", default_config().judge, "The new judge: --judge.key=value."
)
_CACHE = flags.DEFINE_string("cache_dir", common.CACHE, "Weights of a local judge.")
_MOST = flags.DEFINE_integer("disputed", 5, "How many disputed actions to show.")
flags.mark_flags_as_required(["workdir"])


def main(argv: list[str]) -> None:
    common.begin(argv)
    where = common.open_workdir(_WORKDIR.value)
    workdir = where.local
    config = common.read_config(workdir)
    config = dataclasses.replace(config, judge=_settings(config))
    trajectories = common.read_training(workdir, _STEPS.value)
    try:
        found = common.run_until_interrupted(
            _rejudge(config, workdir, trajectories),
            stopped="verdicts so far are on record; the same command goes on",
        )
        _print(trajectories, found, workdir)
    finally:
        where.push()


def _settings(config: Any) -> Any:
    """The run's judge with what the flags change, checked like a config."""
    from mappa_jax import config as configs

    tree = configs.to_dict(config)
    given = config_flags.get_override_values(flags.FLAGS["judge"])
    tree["judge"]["replay"] = ""
    if given.get("provider", "ensemble") != "ensemble":
        tree["judge"]["members"] = ""
    for key, value in given.items():
        *groups, last = key.split(".")
        group = tree["judge"]
        for name in groups:
            group = group[name]
        group[last] = value
    return configs.resolve(tree).judge


async def _rejudge(config: Any, workdir: Path, trajectories: list[Any]) -> list[Any]:
    from mappa_jax.commands.assembly import open_judge
    from mappa_jax.drift import requests_of
    from mappa_jax.workflows import find_workflow
    from mappa_jax.workflows.base import seated

    folder = workdir / "rejudged"
    workflow = seated(find_workflow(config.workflow.name), config)
    limits = {n: a.max_new_tokens for n, a in config.agents.items()}

    async def one(judge: Any, trajectory: Any) -> Any:
        requests = requests_of(
            trajectory, workflow.roles, limits, config.judge.show_reference
        )
        where = f"{trajectory.step}/{trajectory.task.source}/{trajectory.task.id}"

        async def score(index: int) -> Any:
            if trajectory.actions[index].fault is not None:
                return trajectory.verdicts[index]  # nobody is asked about those
            address = f"{where}/{trajectory.sample}/{index}"
            return await judge.score(
                dataclasses.replace(requests[index], address=address)
            )

        verdicts = await asyncio.gather(*map(score, range(len(requests))))
        return dataclasses.replace(trajectory, verdicts=tuple(verdicts))

    cache = Path(_CACHE.value).expanduser()
    async with open_judge(config.judge, workflow, folder, cache) as (judge, _):
        return list(await asyncio.gather(*(one(judge, t) for t in trajectories)))


def _print(before: list[Any], after: list[Any], workdir: Path) -> None:
    import numpy as np

    from mappa_jax import records
    from mappa_jax.judges import health
    from mappa_jax.types import Missing, Verdict

    pairs = [
        (old, action, was, now)
        for old, new in zip(before, after, strict=True)
        for action, was, now in zip(
            old.actions, old.verdicts, new.verdicts, strict=True
        )
    ]
    both = [p for p in pairs if isinstance(p[2], Verdict) and isinstance(p[3], Verdict)]
    console = Console()
    table = Table(title="the new judge against the run's")
    for title in ("agent", "actions", "was", "is", "offset", "correlation"):
        table.add_column(title, justify="left" if title == "agent" else "right")
    for agent in dict.fromkeys(action.agent for _, action, _, _ in both):
        mine = [(w.score, n.score) for _, a, w, n in both if a.agent == agent]
        was, now = np.asarray(mine).T
        table.add_row(
            agent,
            str(len(mine)),
            f"{was.mean():.2f}",
            f"{now.mean():.2f}",
            f"{(now - was).mean():+.2f}",
            f"{health.correlation(was, now):.2f}",
        )
    console.print(table)
    disputed = [p for p in both if p[3].score != p[2].score]
    disputed.sort(key=lambda p: -abs(p[3].score - p[2].score))
    for trajectory, action, was, now in disputed[: _MOST.value]:
        console.print(
            f"disputed: step {trajectory.step}, {trajectory.task.id}, sample "
            f"{trajectory.sample}, {action.agent} turn {action.turn}: "
            f"{was.score:g} -> {now.score:g}",
            markup=False,
        )
        console.print(f"  was: {was.rationale}\n  is:  {now.rationale}", markup=False)
    gone = [now for _, _, _, now in pairs if isinstance(now, Missing)]
    if gone:
        console.print(f"{len(gone)} of {len(pairs)} actions got no verdict:")
    said = collections.Counter(f"{m.reason.value}: {m.detail}" for m in gone)
    for reason, times in said.most_common(_MOST.value):
        console.print(f"  {times} x {reason}", markup=False)
    by_step: dict[int, list[Any]] = {}
    for trajectory in after:
        by_step.setdefault(trajectory.step, []).append(trajectory)
    folder = _free(workdir / "rejudged")
    for step, rows in by_step.items():
        path = folder / records.training_path("", step).name
        records.write_trajectories(path, rows)
    console.print(f"written to {folder}")


def _free(folder: Path) -> Path:
    """The folder, or the first of its numbered ones, that holds no verdicts yet."""
    for number in itertools.count(1):
        one = folder if number == 1 else folder / str(number)
        if not any(one.glob("step_*.jsonl")):
            return one
    raise AssertionError("unreachable")


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
