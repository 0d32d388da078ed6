"""The tables at the end of a run and of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

AGENT_COLUMNS = (
    ("actions", "actions", "{:.0f}"),
    ("score", "mean score", "{:.2f}"),
    ("tokens", "tokens", "{:.0f}"),
    ("kl", "KL", "{:.4f}"),
    ("clip_fraction", "clip frac.", "{:.3f}"),
    ("grad_norm", "grad norm", "{:.3f}"),
)
PHASES = ("rollout", "judge_exposed", "credit", "update")


def show(form: str, value: float | None) -> str:
    return "-" if value is None else form.format(value)


def print_summary(console: Console, line: dict[str, Any], workdir: Path) -> None:
    """The table of the last iteration, from its line of metrics.jsonl."""
    names = list(
        dict.fromkeys(key.split("/")[1] for key in line if key.startswith("agents/"))
    )
    table = Table(title=f"iteration {line['step']}: agents")
    table.add_column("agent")
    for _, title, _ in AGENT_COLUMNS:
        table.add_column(title, justify="right")
    for name in names:
        cells = [
            show(form, line[f"agents/{name}/{key}"]) for key, _, form in AGENT_COLUMNS
        ]
        table.add_row(name, *cells)
    console.print(table)
    team = Table(title="team")
    titles = ["success", "judge calls", *(f"{p} s" for p in PHASES)]
    for title in titles:
        team.add_column(title.replace("_", " "), justify="right")
    team.add_row(
        show("{:.2f}", line["team/success"]),
        f"{line['judge/calls']:.0f}",
        *(show("{:.1f}", line[f"seconds/{p}"]) for p in PHASES),
    )
    console.print(team)
    console.print("left in", str(workdir), soft_wrap=True)
    for name, what in (
        ("metrics.jsonl", "one object per iteration"),
        ("tensorboard", "tensorboard --logdir of it"),
        ("trajectories", "every action with its verdict"),
        ("checkpoints", "the team's state"),
        ("evaluations.jsonl", "held-out results"),
        ("config.json", "the config that was run"),
    ):
        if (workdir / name).exists():
            console.print(f"  {name:18} {what}")


def print_evaluations(console: Console, rows: dict[str, dict[str, Any]]) -> None:
    """A table per data set, a row per team, with 95% intervals over problems."""
    for source in dict.fromkeys(s for sources in rows.values() for s in sources):
        table = Table(title=f"held-out problems of {source} (95% intervals)")
        table.add_column("who", no_wrap=True)
        for title in ("avg", "pass@k", "problems", "failed"):
            table.add_column(title, justify="right", no_wrap=True)
        for who, sources in rows.items():
            if (row := sources.get(source)) is not None:
                passed = (
                    f"{_interval(row, 'pass')} k={row['k']}" if "pass" in row else "-"
                )
                numbers = (f"{row[k]:.0f}" for k in ("problems", "failed"))
                table.add_row(who, _interval(row, "avg"), passed, *numbers)
        console.print(table)
        _print_votes(console, source, rows)
        _print_kinds(console, source, rows)


def _print_votes(
    console: Console, source: str, rows: dict[str, dict[str, Any]]
) -> None:
    """What several tries come to by majority, and what they cost."""
    found = {who: sources.get(source, {}) for who, sources in rows.items()}
    if not any("maj" in row for row in found.values()):
        return
    table = Table(title=f"{source}: the answer that most samples gave (95% intervals)")
    table.add_column("who", no_wrap=True)
    for title in ("maj@k", "tokens for k samples", "avg", "tokens for one"):
        table.add_column(title, justify="right", no_wrap=True)
    for who, row in found.items():
        if "maj" in row:
            tries = row["samples"] / row["problems"]
            vote = f"{_interval(row, 'maj')} k={tries:.0f}"
            one = row["tokens"]
            costs = (f"{one * tries:.0f}", f"{row['avg']:.2f}", f"{one:.0f}")
            table.add_row(who, vote, *costs)
    console.print(table)


def _print_kinds(
    console: Console, source: str, rows: dict[str, dict[str, Any]]
) -> None:
    """Success and quality by kind of task, where an evaluation tells of them."""
    found = [
        (who, kind, numbers)
        for who, sources in rows.items()
        for kind, numbers in sources.get(source, {}).get("kinds", {}).items()
    ]
    for kind in dict.fromkeys(kind for _, kind, _ in found):
        mine = [(who, numbers) for who, k, numbers in found if k == kind]
        names = dict.fromkeys(n for _, numbers in mine for n in numbers)
        table = Table(title=f"{source}: {kind} (95% intervals)")
        table.add_column("who", no_wrap=True)
        table.add_column("problems", justify="right")
        names.pop("problems")
        for name in names:
            table.add_column(name, justify="right")
        for who, numbers in mine:
            cells = (_estimate(numbers[n]) if n in numbers else "-" for n in names)
            table.add_row(who, str(numbers["problems"]), *cells)
        console.print(table)


def _estimate(numbers: dict[str, float]) -> str:
    return f"{numbers['value']:.3g} [{numbers['low']:.3g}, {numbers['high']:.3g}]"


def _interval(row: dict[str, float], name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
