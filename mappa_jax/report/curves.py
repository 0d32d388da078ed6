"""What is drawn: panels of series, from metrics and evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]

# id, title, unit, note; of agents/NAME/ID.
PER_AGENT = (
    ("score", "Judge score", "0 to 10", "Mean over the agent's actions."),
    ("kl", "KL to the reference", "nats per token", "Before the update; estimator k1."),
    ("clip_fraction", "Clip fraction", "share of tokens", ""),
    ("entropy", "Entropy", "nats per token", "Of the sampled tokens."),
    ("grad_norm", "Gradient norm", "before clipping", ""),
    ("learning_rate", "Learning rate", "", ""),
    ("mismatch", "Sampler and trainer apart", "nats per token", "Numerical noise."),
)
# id, title, unit, note; the ratio of two metrics of an agent.
RATIOS = (
    ("tokens", "Length", "tokens per action", ""),
    ("truncated", "Cut at the token limit", "share of actions", ""),
    ("programs", "Tool use", "programs per action", ""),
    ("program_errors", "Programs that failed", "per action", ""),
    ("missing", "Missing verdicts", "share of actions", "Masked, never a score."),
    ("faults", "Infrastructure faults", "share of actions", "Masked."),
)
# id, title, unit, note, metrics; one series each.
OTHERS = (
    ("spend", "Spent on the judge", "US dollars, so far", "", ("spent",)),
    ("cost", "Judge, per iteration", "US dollars", "", ("cost",)),
    ("calls", "Judge calls", "per iteration", "", ("calls", "cached", "retries")),
    (
        *("latency", "Judge latency", "seconds", "Of calls that were asked."),
        ("latency_p50", "latency_p95"),
    ),
    ("disagreement", "Judges apart", "points", "Between members.", ("disagreement",)),
)
HEALTH = (
    ("auc", "Judge against outcome (AUC)", "0.5: no better than chance"),
    ("extremes", "Scores at 0 or 10", "share of actions"),
    ("slope", "Score by length", "points per 100 tokens"),
    ("agreement", "Second opinions apart", "points"),
)


def panels(metrics: Rows, evaluations: Rows, agents: Sequence[str]) -> list[Any]:
    """The panels in the order in which they are shown; those without data are left out.

    Args:
      metrics: lines of metrics.jsonl.
      evaluations: lines of evaluations.jsonl.
      agents: the team, in the order of its turns.

    Returns:
      Each with `id`, `group`, `title`, `unit`, `note` and `series`, a list of `name`,
      `x` (iterations), `y` (None where there is no finite number) and, of an
      evaluation, `low` and `high`.
    """
    found = [
        *_evaluation(evaluations),
        _panel(
            "Learning", "success", "Success in training", "share", "", _team(metrics)
        ),
        *(
            _panel("Learning", name, *words, _of_agents(metrics, agents, name))
            for name, *words in PER_AGENT
        ),
        *(
            _panel("Learning", name, *words, _ratios(metrics, agents, name))
            for name, *words in RATIOS
        ),
        _panel("Time", "seconds", "Phases", "seconds", TIME_NOTE, _seconds(metrics)),
        *(
            _panel(
                "Judge", f"health_{name}", *words, "", _health(metrics, agents, name)
            )
            for name, *words in HEALTH
        ),
        *(
            _panel("Judge", name, title, unit, note, _judge(metrics, names))
            for name, title, unit, note, names in OTHERS
        ),
        _panel("Judge", "reasons", "Missing, by reason", "actions", "", _why(metrics)),
    ]
    return [panel for panel in found if panel["series"]]


TIME_NOTE = (
    "prefill, decode and sandbox are parts of the rollout; judge_exposed is what the "
    "rollout did not hide."
)


def _panel(group, name, title, unit, note, series) -> dict[str, Any]:
    return {
        "group": group,
        "id": name,
        "title": title,
        "unit": unit,
        "note": note,
        "series": [one for one in series if any(y is not None for y in one["y"])],
    }


def _series(name: str, metrics: Rows, of: Any) -> dict[str, Any]:
    values = [of(row) for row in metrics]
    return {
        "name": name,
        "x": [row["step"] for row in metrics],
        "y": [v if v is not None and math.isfinite(v) else None for v in values],
    }


def _named(metrics: Rows, key: str, name: str) -> dict[str, Any]:
    return _series(name, metrics, lambda row: row.get(key))


def _team(metrics: Rows) -> list[Any]:
    return [_named(metrics, "team/success", "team")]


def _of_agents(metrics: Rows, agents: Sequence[str], name: str) -> list[Any]:
    return [_named(metrics, f"agents/{agent}/{name}", agent) for agent in agents]


def _ratios(metrics: Rows, agents: Sequence[str], name: str) -> list[Any]:
    def ratio(agent: str, row: Mapping[str, Any]) -> float | None:
        part, whole = (row.get(f"agents/{agent}/{key}") for key in (name, "actions"))
        return part / whole if whole and part is not None else None

    return [
        _series(agent, metrics, lambda row, agent=agent: ratio(agent, row))
        for agent in agents
    ]


def _below(metrics: Rows, prefix: str) -> list[str]:
    keys = dict.fromkeys(k for row in metrics for k in row if k.startswith(prefix))
    return [key.removeprefix(prefix) for key in keys]


def _seconds(metrics: Rows) -> list[Any]:
    names = _below(metrics, "seconds/")
    return [_named(metrics, f"seconds/{name}", name) for name in names]


def _judge(metrics: Rows, names: Sequence[str]) -> list[Any]:
    return [_named(metrics, f"judge/{name}", name) for name in names]


def _why(metrics: Rows) -> list[Any]:
    names = _below(metrics, "judge/missing_by/")
    return [_named(metrics, f"judge/missing_by/{name}", name) for name in names]


def _health(metrics: Rows, agents: Sequence[str], name: str) -> list[Any]:
    return [_named(metrics, f"judge/health/{agent}/{name}", agent) for agent in agents]


def _evaluation(evaluations: Rows) -> list[Any]:
    """A panel of avg@k and one of pass@k, a series for each label and source."""
    out = []
    for name, title in (("avg", "Held-out problems: avg@k"), ("pass", "pass@k")):
        keys = dict.fromkeys(
            (row["label"], source)
            for row in evaluations
            for source, found in row["sources"].items()
            if name in found
        )
        series = [_of_evaluation(evaluations, *key, name) for key in keys]
        note = "95% intervals, over problems."
        out.append(_panel("Evaluation", name, title, "share right", note, series))
    return out


def _of_evaluation(
    evaluations: Rows, label: str, source: str, name: str
) -> dict[str, Any]:
    rows = [
        (row["step"], row["sources"][source])
        for row in sorted(evaluations, key=lambda row: row["step"])
        if row["label"] == label and name in row["sources"].get(source, {})
    ]
    return {
        "name": f"{source}, {label}",
        "x": [step for step, _ in rows],
        "y": [found[name] for _, found in rows],
        "low": [found[f"{name}_low"] for _, found in rows],
        "high": [found[f"{name}_high"] for _, found in rows],
    }
