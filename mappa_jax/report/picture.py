"""A run's curves as a picture: mean judge score per agent, and success."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(
    metrics: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    out: Path,
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
        rows = [
            (r["step"], r["sources"][source])
            for r in held_out
            if source in r["sources"]
        ]
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
