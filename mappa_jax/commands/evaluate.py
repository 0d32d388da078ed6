"""Evaluates a run's team on held-out problems, beside what it must be compared with.

  python launch/evaluate.py --workdir=runs/quickstart
  python launch/evaluate.py --workdir=runs/quickstart --who=trained,untrained,single
  python launch/evaluate.py --workdir=runs/quickstart --who=untrained --samples=16

trained: the team at its latest checkpoint; untrained: the team as it started;
single: one untrained agent with the whole team's token budget; blind: the trained team
on tasks whose data files are withheld (data science only: what it gets right then, it
has guessed). The numbers are avg@k and pass@k, and with several samples maj@k, what
most of a problem's answers said, with 95% intervals bootstrapped over problems; they
are appended to WORKDIR/evaluations.jsonl, and the trajectories kept beside the
training's.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from absl import flags

from mappa_jax.commands import common, joining
from mappa_jax.commands.console import ConsoleProgress
from mappa_jax.commands.joining import join_hosts
from mappa_jax.commands.tables import print_evaluations

WHO = ("trained", "untrained", "single", "blind")

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.")
_WHO = flags.DEFINE_list(
    "who", [], "Which of: " + ", ".join(WHO) + "; empty: all that apply."
)
_CACHE = flags.DEFINE_string(
    "cache_dir", common.CACHE, "Weights, prepared data and compiled programs."
)
_MESH = flags.DEFINE_list(
    "mesh",
    None,
    "Sizes of agent, data, fsdp, tensor, on other devices than the run's: 1,1,4,1.",
)
_SAMPLES = flags.DEFINE_integer(
    "samples", None, "Tries at every problem; unset: eval.samples.", lower_bound=1
)
_SLOTS = flags.DEFINE_integer("slots", None, "sampler.slots, to go with it.")
flags.adopt_module_key_flags(joining)
flags.mark_flag_as_required("workdir")


def main(argv: list[str]) -> None:
    common.begin(argv)
    from mappa_jax.config import ConfigError, changed

    if unknown := set(_WHO.value) - set(WHO):
        raise ConfigError(f"--who: {sorted(unknown)} are not among {list(WHO)}")
    cache = Path(_CACHE.value).expanduser()
    workdir = common.open_workdir(_WORKDIR.value, cache)
    config = common.with_mesh(common.read_config(workdir.local), _MESH.value)
    if _SLOTS.value is not None:
        config = changed(config, {"sampler.slots": _SLOTS.value})
    if _SAMPLES.value is not None:
        config = changed(config, {"eval.samples": _SAMPLES.value})
    hosts = join_hosts()
    with common.progress(config, hosts) as progress:
        try:
            rows = common.run_until_interrupted(
                _evaluate_all(config, workdir, cache, progress, _WHO.value, hosts),
                stopped="the evaluation under way is lost; those before it are written",
                hosts=hosts,
            )
        finally:
            workdir.push()
    print_evaluations(progress.console, rows)


async def _evaluate_all(
    config: Any,
    workdir: Any,
    cache: Path,
    progress: ConsoleProgress,
    who: list[str],
    hosts: Any,
) -> dict[str, dict[str, Any]]:
    from mappa_jax import assemble as parts
    from mappa_jax.config import ConfigError
    from mappa_jax.data import load_evaluation
    from mappa_jax.evaluate import single_agent

    parts.enable_compilation_cache(cache / "xla")
    tasks = load_evaluation(config.data)
    if not any(tasks.values()):
        raise ConfigError("config.data.eval_source names no held-out problems")
    blinded = {
        source: [dataclasses.replace(task, files={}) for task in problems if task.files]
        for source, problems in tasks.items()
    }
    if "blind" in who and not any(blinded.values()):
        raise ConfigError("--who=blind: no task of this run has data files")
    if not who:
        who = [name for name in WHO if name != "blind" or any(blinded.values())]
    rows = {}
    for name in who:
        chosen = single_agent(config) if name == "single" else config
        given = blinded if name == "blind" else tasks
        rows[name] = await _evaluate_one(
            *(name, chosen, workdir, cache, progress, given, hosts)
        )
        workdir.push()
    return rows


async def _evaluate_one(name, config, workdir, cache, progress, tasks, hosts):
    from mappa_jax import assemble as parts
    from mappa_jax.commands.assembly import restore, stages
    from mappa_jax.evaluate import evaluate
    from mappa_jax.judges.base import Meter

    config = parts.seat_agents(config)
    models = parts.load_models(config, cache)
    opened = stages(config, models, cache, workdir=None, hosts=hosts)
    async with opened as (_, stage):
        weights = models.init_weights(config)
        step = 0
        if name in ("trained", "blind"):
            weights, step = restore(config, models, workdir, weights)
        progress.watch(Meter, stage.engine.load)
        progress.start(step, f"compile ({name})", 1)
        stage.engine.warm_up(*weights)
        total = sum(map(len, tasks.values())) * config.eval.samples
        advance = progress.start(step, f"evaluate ({name})", total)
        return await evaluate(
            stage,
            weights,
            tasks,
            config.eval,
            seed=config.seed,
            step=step,
            workdir=workdir.local if hosts.index == 0 else None,
            on_done=advance,
            label=name,
        )


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
