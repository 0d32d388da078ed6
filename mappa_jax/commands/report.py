"""Draws a run's curves: mean judge score per agent, and success.

python launch/report.py --workdir=runs/arithmetic --out=docs/arithmetic.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from absl import flags

from mappa_jax.commands import common

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.")
_OUT = flags.DEFINE_string("out", None, "The PNG to write.")
flags.mark_flags_as_required(["workdir", "out"])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Raises:
      ConfigError: there is no such file.
    """
    from mappa_jax.config import ConfigError

    if not path.exists():
        raise ConfigError(f"{path} is missing: nothing to draw yet")
    return [json.loads(line) for line in path.read_text().splitlines()]


def draw(
    metrics: list[dict[str, Any]], evaluations: list[dict[str, Any]], out: Path
) -> None:
    """Two panels over iterations: scores per agent; success, with held-out results."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (scores, success) = plt.subplots(1, 2, figsize=(11, 4))
    steps = [row["step"] for row in metrics]
    names = dict.fromkeys(k.split("/")[1] for k in metrics[0] if k.startswith("agents"))
    for name in names:
        values = [row[f"agents/{name}/score"] for row in metrics]
        scores.plot(steps, values, marker=".", label=name)
    scores.set(xlabel="iteration", ylabel="mean judge score", ylim=(0, 10))
    scores.legend()
    values = [row["team/success"] for row in metrics]
    success.plot(steps, values, marker=".", color="0.6", label="training batch")
    held_out = [row for row in evaluations if row["label"] == "team"]
    for source in dict.fromkeys(s for row in held_out for s in row["sources"]):
        rows = [(r["step"], r["sources"][source]) for r in held_out]
        middle = [r["avg"] for _, r in rows]
        low = [r["avg"] - r["avg_low"] for _, r in rows]
        high = [r["avg_high"] - r["avg"] for _, r in rows]
        success.errorbar(
            [step for step, _ in rows],
            middle,
            yerr=[low, high],
            marker="o",
            capsize=3,
            label=f"held out: {source} (95%)",
        )
    success.set(xlabel="iteration", ylabel="success", ylim=(0, 1))
    success.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def main(argv: list[str]) -> None:
    common.begin(argv)
    out = Path(_OUT.value)
    workdir = common.open_workdir(_WORKDIR.value).local
    evaluations = workdir / "evaluations.jsonl"
    draw(
        read_lines(workdir / "metrics.jsonl"),
        read_lines(evaluations) if evaluations.exists() else [],
        out,
    )
    print(out)


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
