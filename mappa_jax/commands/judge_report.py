"""Prints how well a run's judge judged, and writes it as judge_report.json.

python launch/judge_report.py --workdir=runs/mine --steps=1:20
"""

from __future__ import annotations

import json
import math
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from mappa_jax.commands import common

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.")
_STEPS = flags.DEFINE_string("steps", "", 'Iterations, first:last ("": all).')
flags.mark_flags_as_required(["workdir"])


def main(argv: list[str]) -> None:
    common.begin(argv)
    from mappa_jax.drift import read_drift
    from mappa_jax.judges import health

    where = common.open_workdir(_WORKDIR.value)
    workdir = where.local
    trajectories = common.read_training(workdir, _STEPS.value)
    report = health.health(health.scored_actions(trajectories))
    missing = health.missing_by(trajectories)
    warnings = health.warnings(report)
    out = workdir / "judge_report.json"
    drift = read_drift(workdir / "metrics.jsonl")
    whole = {
        "agents": report,
        "missing": missing,
        "drift": drift,
        "warnings": warnings,
    }
    out.write_text(json.dumps(_plain(whole), indent=1) + "\n")
    where.push()

    console = Console()
    console.print(_overview(report))
    for agent, found in report.items():
        for by, name in (("kinds", "kind of task"), ("lengths", "tokens written")):
            console.print(_groups(agent, name, found[by]))
    for agent, reasons in missing.items():
        said = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
        console.print(f"without a verdict, {agent}: {said}")
    for row in drift:
        console.print(
            f"anchors, iteration {row['step']}: {row['drift']:+.2f} points since the "
            f"first ({row['drift_abs']:.2f} in size)"
        )
    for line in warnings:
        console.print(f"[bold]look:[/bold] {line}")
    console.print(f"written to {out}")


def _overview(report: dict[str, Any]) -> Table:
    table = Table(title="judge, by agent")
    table.add_column("agent")
    for title in (
        *("actions", "mean", "at 0 or 10", "points per 100 tokens"),
        *("AUC of success", "correlation", "judged twice", "gap"),
    ):
        table.add_column(title, justify="right")
    for agent, found in report.items():
        outcome, twice = found.get("outcome", {}), found.get("agreement", {})
        table.add_row(
            agent,
            str(found["actions"]),
            f"{found['mean']:.2f}",
            f"{found['extremes']:.0%}",
            f"{found['slope']:+.2f} ± {found['slope_error']:.2f}",
            f"{outcome['auc']:.2f}" if outcome else "-",
            f"{outcome['correlation']:+.2f}" if outcome else "-",
            str(twice.get("pairs", "-")),
            f"{twice['gap']:.2f}" if twice else "-",
        )
    return table


def _groups(agent: str, name: str, groups: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{agent}, by {name}")
    table.add_column(name)
    for title in ("actions", "mean", "offset", "± error"):
        table.add_column(title, justify="right")
    for group in groups:
        table.add_row(
            group["name"],
            str(group["actions"]),
            f"{group['mean']:.2f}",
            f"{group['offset']:+.2f}",
            f"{group['error']:.2f}",
        )
    return table


def _plain(value: Any) -> Any:
    """JSON has no NaN: null stands for what is not finite."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
