"""What a team does differently after training: tools, lengths, success; and examples.

  python benchmarks/experiments/habits.py --out=docs/experiments/words \\
    --runs=process=runs/words/process/seed_0,outcome=runs/words/outcome_all/seed_0

Of every iteration, for each run: how many trajectories had a program that ran to its
end, tokens of an action by agent, success. Then the --read first problems of the
held-out list, each as the team first worked on it and as it last did: the list's order
knows nothing of what came of them. Leaves OUT.png, OUT.json and OUT_LABEL.md.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mappa_jax.commands import common

common.prepare_environment()

from absl import flags  # noqa: E402

_RUNS = flags.DEFINE_list("runs", None, "LABEL=WORKDIR of each run.")
_OUT = flags.DEFINE_string("out", None, "The files' path, without their ending.")
_READ = flags.DEFINE_integer("read", 10, "Problems to show.", lower_bound=0)
flags.mark_flags_as_required(["runs", "out"])


def habits(trajectories: Sequence[Any]) -> dict[str, Any]:
    """Of one iteration: `success` (None where none was graded), `programs` (share of
    trajectories with one that ended well) and `tokens` (of an action, by agent)."""
    from mappa_jax.rollout import success

    lengths: dict[str, list[int]] = {}
    for action in (a for t in trajectories for a in t.actions):
        lengths.setdefault(action.agent, []).append(len(action.token_ids))
    ran = [
        any(a.observation is not None and a.observation.ok for a in t.actions)
        for t in trajectories
    ]
    found = success(trajectories)
    return {
        "success": found["success"] if found["graded"] else None,
        "programs": sum(ran) / len(ran),
        "tokens": {name: sum(ns) / len(ns) for name, ns in lengths.items()},
    }


def over_time(workdir: Path) -> list[dict[str, Any]]:
    """`habits` of every training iteration of a run, in order.

    Raises:
      FileNotFoundError: the run has left no trajectories.
    """
    from mappa_jax.records import read_trajectories, training_files

    found = training_files(workdir)
    if not found:
        raise FileNotFoundError(f"--runs: {workdir} holds no trajectories of training")
    return [{"step": step} | habits(read_trajectories(path)) for step, path in found]


def before_and_after(workdir: Path, count: int) -> tuple[str, list[tuple[Any, Any]]]:
    """Which evaluations they are of, and each problem's trajectories in the two.

    The problems are the `count` first of the first evaluation's file, whose order is
    that of the held-out list; of several samples, the first.

    Raises:
      FileNotFoundError: there are not two evaluations of the team.
      ValueError: they have no source or not the same problems in common.
    """
    from mappa_jax.records import evaluation_path, read_evaluations, read_trajectories

    rows = [row for row in read_evaluations(workdir) if row["label"] == "team"]
    if len(rows) < 2:
        raise FileNotFoundError(f"--runs: {workdir} has not been evaluated twice")
    first, last = rows[0]["step"], rows[-1]["step"]
    source = next((s for s in rows[0]["sources"] if s in rows[-1]["sources"]), None)
    if source is None:
        raise ValueError(f"--runs: {workdir}: no source was graded both times")
    found = [
        {
            t.task.id: t
            for t in read_trajectories(evaluation_path(workdir, step, source))
            if t.sample == 0
        }
        for step in (first, last)
    ]
    if found[0].keys() != found[1].keys():
        raise ValueError(f"--runs: {workdir}: evaluated on different problems")
    said = f"{source}, after {first} and after {last} iterations"
    return said, [(t, found[1][name]) for name, t in found[0].items()][:count]


def reading(label: str, said: str, pairs: Sequence[tuple[Any, Any]]) -> str:
    """The pairs as Markdown."""
    lines = [
        f"# {label}: the first {len(pairs)} held-out problems",
        "",
        f"Of {said}. Beside each one's number: the answer's score, of 1.",
    ]
    for number, (before, after) in enumerate(pairs, start=1):
        lines += ["", f"## {number}. {_score(before)}, then {_score(after)}", ""]
        lines += _quoted(f"{before.task.prompt}\n(answer: {before.task.answer})")
        for name, trajectory in (("Before", before), ("After", after)):
            lines += ["", f"### {name}"]
            for action in trajectory.actions:
                cut = ", cut at its limit" if action.finish == "length" else ""
                tokens = len(action.token_ids)
                lines += ["", f"**{action.agent}** ({tokens} tokens{cut})", ""]
                lines += _fenced(action.text)
                if (seen := action.observation) is not None:
                    ended = "" if seen.ok else f", exit status {seen.exit_status}"
                    lines += ["", f"*the program's output{ended}*", ""]
                    lines += _fenced(seen.stdout + seen.stderr)
    return "\n".join(lines) + "\n"


def _score(trajectory: Any) -> str:
    outcome = trajectory.outcome
    return "not graded" if outcome is None else f"{outcome.score:g}"


def _quoted(text: str) -> list[str]:
    return [f"> {line}".rstrip() for line in text.strip().splitlines()]


def _fenced(text: str) -> list[str]:
    longest = max(map(len, re.findall("~+", text)), default=0)
    fence = "~" * max(3, longest + 1)
    return [f"{fence}text", *text.strip().splitlines(), fence]


def draw(series: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> None:
    """Success, programs and lengths over the iterations, a colour for each run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4))
    styles = ("-", "--", ":", "-.")
    for number, (label, rows) in enumerate(series.items()):
        colour = f"C{number % 10}"
        steps = [row["step"] for row in rows]
        for panel, key in zip(panels[:2], ("success", "programs"), strict=True):
            values = [math.nan if row[key] is None else row[key] for row in rows]
            panel.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            panel.plot(steps, _smooth(values), color=colour, label=label)
        agents = list(rows[0]["tokens"])
        for i, agent in enumerate(agents):
            lengths = _smooth([row["tokens"].get(agent, math.nan) for row in rows])
            style = styles[i % len(styles)]
            name = f"{label}: {agent}"
            panels[2].plot(steps, lengths, style, color=colour, label=name)
    panels[0].set(title="success in training", ylim=(0, 1))
    panels[1].set(title="trajectories with a program that ran", ylim=(0, 1))
    panels[2].set(title="tokens of an action", ylim=(0, None))
    for panel in panels:
        panel.set_xlabel("iteration (thick: mean of five)")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def _smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """Means over up to `width` values around each, leaving out NaN."""
    import numpy as np

    half = width // 2
    parts = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [float(np.nanmean(p)) if np.isfinite(p).any() else math.nan for p in parts]


def main(argv: list[str]) -> None:
    common.begin(argv)
    from mappa_jax.config import ConfigError

    pairs = [run.partition("=") for run in _RUNS.value]
    if bad := [label for label, _, where in pairs if not where]:
        raise ConfigError(f"--runs: {bad} names no folder; write LABEL=WORKDIR")
    runs = {label: Path(where) for label, _, where in pairs}
    if len(runs) < len(pairs):
        raise ConfigError("--runs: two runs have the same label")
    out = Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    series = {label: over_time(workdir) for label, workdir in runs.items()}
    texts = {
        label: reading(label, *before_and_after(workdir, _READ.value))
        for label, workdir in runs.items()
    }
    Path(f"{out}.json").write_text(json.dumps(series, indent=1) + "\n")
    for label, text in texts.items():
        Path(f"{out}_{label}.md").write_text(text)
    draw(series, Path(f"{out}.png"))
    print(f"left: {out}.png, {out}.json, " + ", ".join(f"{out}_{n}.md" for n in texts))


if __name__ == "__main__":
    common.run_app(main)
