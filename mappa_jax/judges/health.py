"""Is the judge any good? Numbers from recorded trajectories.

A judge is the training signal, so its faults are learned: an offset between kinds of
task is drifted along, a liking for length grows answers, a score that does not go with
the outcome teaches nothing. NumPy only; every number says how many actions it rests on.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mappa_jax.statistics import RIGHT
from mappa_jax.types import Missing, Trajectory, Verdict

EXTREMES = (0.0, 10.0)
LENGTH_BINS = 4  # quartiles of an agent's lengths
# A difference is named where it is as large as this, in points, and as twice its
# standard error: of one kind of task from another, and of long actions from short.
NOTABLE_KINDS, NOTABLE_LENGTHS = 0.3, 0.5
CENTRAL = (0.05, 0.95)  # quantiles of the lengths that a slope is judged over


@dataclasses.dataclass(frozen=True)
class Scored:
    """One action with its score and what may explain it.

    `outcome` is the trajectory's (1: right), `length` in tokens.
    """

    agent: str
    kind: str
    length: int
    score: float
    outcome: float | None
    again: float | None = None


def scored_actions(trajectories: Iterable[Trajectory]) -> list[Scored]:
    """Every action that has a verdict."""
    return [
        Scored(
            agent=action.agent,
            kind=trajectory.task.kind,
            length=len(action.token_ids),
            score=verdict.score,
            outcome=trajectory.outcome.score if trajectory.outcome else None,
            again=verdict.again,
        )
        for trajectory in trajectories
        for action, verdict in zip(trajectory.actions, trajectory.verdicts, strict=True)
        if isinstance(verdict, Verdict)
    ]


def missing_by(trajectories: Iterable[Trajectory]) -> dict[str, dict[str, int]]:
    """Agent -> reason -> actions without a verdict."""
    out: dict[str, dict[str, int]] = {}
    for trajectory in trajectories:
        pairs = zip(trajectory.actions, trajectory.verdicts, strict=True)
        for action, verdict in pairs:
            if isinstance(verdict, Missing):
                reasons = out.setdefault(action.agent, {})
                reasons[verdict.reason.value] = reasons.get(verdict.reason.value, 0) + 1
    return out


def health(rows: Sequence[Scored]) -> dict[str, Any]:
    """The whole report, by agent.

    Returns:
      Agent -> `actions`, `mean`, `extremes` (share of scores at 0 or 10), `slope`
      (points per 100 tokens, with `slope_error`), `range` (the central 90% of the
      lengths, in tokens), `kinds` and `lengths` (a list of
      groups: `name`, `actions`, `mean`, `offset` from the mean over groups, `error`
      of the offset), `outcome` (`auc`, `auc_error`, `correlation`, `actions`) where
      trajectories have one, and `agreement` (`pairs`, `gap`, `correlation`) where
      actions were judged twice.
    """
    agents = dict.fromkeys(row.agent for row in rows)
    return {a: _of_agent([row for row in rows if row.agent == a]) for a in agents}


def _of_agent(rows: list[Scored]) -> dict[str, Any]:
    scores = np.asarray([row.score for row in rows])
    lengths = np.asarray([row.length for row in rows], float)
    slope, error = _slope(lengths / 100, scores)
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_BINS + 1)))
    out = {
        "actions": len(rows),
        "mean": float(scores.mean()),
        "extremes": float(np.isin(scores, EXTREMES).mean()),
        "slope": slope,
        "slope_error": error,
        "range": np.quantile(lengths, CENTRAL).tolist(),
        "kinds": _groups(rows, lambda row: row.kind),
        "lengths": _groups(rows, lambda row: _bin(row.length, edges)),
    }
    ended = [row for row in rows if row.outcome is not None]
    if ended:
        out["outcome"] = _against_outcome(ended)
    pairs = [(row.score, row.again) for row in rows if row.again is not None]
    if pairs:
        out["agreement"] = _agreement(np.asarray(pairs))
    return out


def _bin(length: float, edges: np.ndarray) -> str:
    if len(edges) < 2:
        return f"{edges[0]:.0f}"
    at = int(np.clip(np.searchsorted(edges, length, "right"), 1, len(edges) - 1))
    return f"{edges[at - 1]:.0f}-{edges[at]:.0f}"


def _groups(rows: list[Scored], name: Callable[[Scored], str]) -> list[dict[str, Any]]:
    """Means by group and their offsets from the mean over groups."""
    grouped = collections.defaultdict(list)
    for row in rows:
        grouped[name(row)].append(row.score)
    centre = np.mean([np.mean(scores) for scores in grouped.values()])
    return [
        {
            "name": key,
            "actions": len(scores),
            "mean": float(np.mean(scores)),
            "offset": float(np.mean(scores) - centre),
            "error": _error(scores),
        }
        for key, scores in sorted(grouped.items())
    ]


def _error(scores: Sequence[float]) -> float:
    """The standard error of a mean; infinite for a single value."""
    n = len(scores)
    return float(np.std(scores, ddof=1) / n**0.5) if n > 1 else float("inf")


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Least squares: the slope and its standard error; NaN where x does not vary."""
    n, spread = len(x), float(((x - x.mean()) ** 2).sum())
    if n < 3 or spread == 0:
        return float("nan"), float("nan")
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread)
    rest = y - y.mean() - slope * (x - x.mean())
    return slope, float((rest @ rest / (n - 2) / spread) ** 0.5)


def auc_error(right: int, wrong: int) -> float:
    """The standard error of the AUC of scores that say nothing: that of the
    Mann-Whitney statistic, sqrt((m + n + 1) / (12 m n)); NaN where one is 0."""
    if not right or not wrong:
        return float("nan")
    return ((right + wrong + 1) / (12 * right * wrong)) ** 0.5


def _against_outcome(rows: list[Scored]) -> dict[str, Any]:
    scores = np.asarray([row.score for row in rows])
    outcomes = np.asarray([row.outcome for row in rows])
    right = outcomes >= RIGHT
    return {
        "actions": len(rows),
        "auc": auc(scores, right),
        "auc_error": auc_error(int(right.sum()), int((~right).sum())),
        "correlation": correlation(scores, outcomes),
    }


def auc(scores: np.ndarray, right: np.ndarray) -> float:
    """P(a right one scores above a wrong one), ties counting half (Mann-Whitney).

    NaN where all are right or all are wrong.
    """
    good, bad = scores[right], scores[~right]
    if not len(good) or not len(bad):
        return float("nan")
    above = (good[:, None] > bad).sum() + 0.5 * (good[:, None] == bad).sum()
    return float(above / (len(good) * len(bad)))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; NaN where one of the two does not vary."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def _agreement(pairs: np.ndarray) -> dict[str, Any]:
    gap = np.abs(pairs[:, 0] - pairs[:, 1])
    return {
        "pairs": len(pairs),
        "gap": float(gap.mean()),
        "correlation": correlation(pairs[:, 0], pairs[:, 1]),
    }


def figures(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The main figures of a report, as metrics: agent -> name -> number.

    `mean`, `extremes` and `slope` (points per 100 tokens); `offset`, by kind of task,
    where there are several; `agreement`, the mean gap of two opinions; `auc` against
    the outcome. A figure that cannot be told is left out.
    """
    out = {}
    for agent, found in report.items():
        kinds = found["kinds"] if len(found["kinds"]) > 1 else []
        numbers = {name: found[name] for name in ("mean", "extremes", "slope")}
        numbers["agreement"] = found.get("agreement", {}).get("gap", math.nan)
        numbers["auc"] = found.get("outcome", {}).get("auc", math.nan)
        offsets = {group["name"]: group["offset"] for group in kinds}
        told = {name: n for name, n in numbers.items() if math.isfinite(n)}
        out[agent] = told | ({"offset": offsets} if offsets else {})
    return out


def warnings(report: dict[str, Any]) -> list[str]:
    """What a person should look at, in words."""
    out = []
    for agent, found in report.items():
        for high, low in _apart(found["kinds"]):
            out.append(
                f"{agent}: tasks of kind {high['name']!r} score "
                f"{high['mean'] - low['mean']:.2f} points above those of kind "
                f"{low['name']!r} ({high['actions']} and {low['actions']} actions); "
                "agents may drift there: consider judge.debias=True"
            )
        slope, error = found["slope"], found["slope_error"]
        short, long = found["range"]
        over = (long - short) / 100
        if abs(slope) * over >= NOTABLE_LENGTHS and abs(slope) >= 2 * error:
            out.append(
                f"{agent}: {slope * over:+.2f} points from {short:.0f} to {long:.0f} "
                f"tokens ({slope:+.2f} per 100): length pays"
            )
        outcome = found.get("outcome")
        if outcome and outcome["auc"] < 0.5 - 2 * outcome["auc_error"]:
            out.append(
                f"{agent}: scores are lower where the team succeeds (AUC "
                f"{outcome['auc']:.2f} over {outcome['actions']} actions)"
            )
        if found["extremes"] > 0.9 and found["actions"] >= 20:
            out.append(
                f"{agent}: {found['extremes']:.0%} of scores are 0 or 10: little to "
                "learn from"
            )
    return out


def _apart(kinds: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """For each kind of task the one that it stands highest above, where notably."""
    out = []
    for high in kinds:
        for low in sorted(kinds, key=lambda group: group["mean"]):
            gap = high["mean"] - low["mean"]
            error = math.hypot(high["error"], low["error"])
            if gap >= NOTABLE_KINDS and gap >= 2 * error:
                out.append((high, low))
                break
    return out
