"""Did the team get better? What the recorded evaluations allow to be said.

Where the trajectories of both evaluations are there, the same problems are compared
with themselves, and the interval is that of the mean difference (bootstrapped over
problems). Else only the two intervals can be held against one another, which says less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mappa_jax.report.workdir import TEAM
from mappa_jax.statistics import bootstrap_interval

FEWEST = 5  # problems; of fewer a bootstrap interval is too narrow to be believed
RESAMPLES = 1000  # where the config does not say
CONTROLS = {
    "untrained": "the untrained team",
    "single": "one untrained agent with the whole team's token budget",
    "blind": "the trained team without the data files (what it only guesses)",
}

# (label, step) -> source -> task id -> mean score of the problem's samples.
Problems = Mapping[tuple[str, int], Mapping[str, Mapping[str, float]]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The team after training, less something else, on one data set.

    Attributes:
      source: the data set.
      other: what it is compared with, in words.
      role: "before" or "control".
      before, after: {"avg", "low", "high", "problems"} of both.
      difference: of the means, over the problems that both have where `paired`.
      low, high: its 95% interval; None where there is none.
      problems: how many were compared.
      paired: whether problems were compared with themselves.
      says: "better", "worse" or "unclear".
    """

    source: str
    other: str
    role: str
    before: dict[str, float]
    after: dict[str, float]
    difference: float
    low: float | None
    high: float | None
    problems: int
    paired: bool
    says: str


def judge_run(
    evaluations: Sequence[Mapping[str, Any]],
    problems: Problems,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The verdict at the top of a report, as JSON values.

    Args:
      evaluations: lines of evaluations.jsonl.
      problems: scores by problem, where trajectories are there.
      resamples, seed: of the bootstrap.

    Returns:
      `tone` ("better", "worse", "mixed", "unclear" or "unknown"), `headline`,
      `sentences` and `comparisons`.
    """
    rows = {(row["label"], row["step"]): row["sources"] for row in evaluations}
    after = _after(rows)
    if after is None:
        return _said(
            "unknown", "Nothing can be said: no evaluation yet", [NO_EVALUATION]
        )
    compare = _Comparer(rows, problems, after, resamples, seed)
    before = _before(rows, after)
    found = [] if before is None else compare.with_(before, _when(before), "before")
    controls = [
        one
        for label, words in CONTROLS.items()
        if (key := _latest(rows, label, after[1])) is not None and key != before
        for one in compare.with_(key, words, "control")
    ]
    tone, headline = _headline(found, after, before)
    sentences = [*_told(found), *_about_controls(controls), LIMITS]
    return _said(tone, headline, sentences, [*found, *controls])


NO_EVALUATION = (
    "Held-out problems are tried with eval.at_start, eval.every and eval.at_end, or "
    "afterwards by launch/evaluate.py."
)
NO_CONTROL = (
    "There is no control: launch/evaluate.py --who=untrained,single evaluates the team "
    "as it started, and one agent alone."
)
LIMITS = (
    "Intervals are 95%, over problems of one run; another seed or other training "
    "problems may give another result."
)


def _said(tone, headline, sentences, comparisons=()) -> dict[str, Any]:
    return {
        "tone": tone,
        "headline": headline,
        "sentences": list(sentences),
        "comparisons": [dataclasses.asdict(one) for one in comparisons],
    }


Key = tuple[str, int]


def _after(rows: Mapping[Key, Any]) -> Key | None:
    """The latest evaluation of the trained team."""
    keys = [key for key in rows if key[0] in (TEAM, "trained")]
    return max(keys, key=lambda key: (key[1], key[0] == TEAM), default=None)


def _before(rows: Mapping[Key, Any], after: Key) -> Key | None:
    """What stands for the team before training: its first evaluation, or the untrained
    team's; None where that is the same evaluation."""
    if ("untrained", 0) in rows and (TEAM, 0) not in rows:
        return "untrained", 0
    keys = [key for key in rows if key[0] == TEAM and key[1] < after[1]]
    return min(keys, key=lambda key: key[1], default=None)


def _latest(rows: Mapping[Key, Any], label: str, most: int) -> Key | None:
    keys = [key for key in rows if key[0] == label and key[1] <= most]
    return max(keys, key=lambda key: key[1], default=None)


def _when(key: Key) -> str:
    if key[0] == "untrained":
        return "the untrained team"
    return "the team before training" if key[1] == 0 else f"after iteration {key[1]}"


@dataclasses.dataclass(frozen=True)
class _Comparer:
    rows: Mapping[Key, Any]
    problems: Problems
    after: Key
    resamples: int
    seed: int

    def with_(self, other: Key, words: str, role: str) -> list[Comparison]:
        mine, theirs = self.rows[self.after], self.rows[other]
        return [
            self._one(source, other, words, role) for source in mine if source in theirs
        ]

    def _one(self, source: str, other: Key, words: str, role: str) -> Comparison:
        before = _estimate(self.rows[other][source])
        after = _estimate(self.rows[self.after][source])
        pairs = _pairs(self.problems, self.after, other, source)
        made = {"source": source, "other": words, "role": role}
        made |= {"before": before, "after": after}
        if pairs.size:
            low, high = bootstrap_interval(pairs, self.resamples, self.seed)
            says = _says(low, high) if pairs.size >= FEWEST else "unclear"
            return Comparison(
                **made,
                difference=float(pairs.mean()),
                low=low,
                high=high,
                problems=int(pairs.size),
                paired=True,
                says=says,
            )
        fewest = min(before["problems"], after["problems"])
        # Both intervals must lie apart: more than a test of the difference would ask.
        says = _says(after["low"] - before["high"], after["high"] - before["low"])
        return Comparison(
            **made,
            difference=after["avg"] - before["avg"],
            low=None,
            high=None,
            problems=int(fewest),
            paired=False,
            says=says if fewest >= FEWEST else "unclear",
        )


def _estimate(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        "avg": row["avg"],
        "low": row["avg_low"],
        "high": row["avg_high"],
        "problems": row["problems"],
    }


def _pairs(problems: Problems, after: Key, other: Key, source: str) -> np.ndarray:
    """Differences on the problems that both evaluations have."""
    mine = problems.get(after, {}).get(source, {})
    theirs = problems.get(other, {}).get(source, {})
    return np.asarray([mine[task] - theirs[task] for task in mine if task in theirs])


def _says(low: float, high: float) -> str:
    if low > 0:
        return "better"
    return "worse" if high < 0 else "unclear"


def _headline(
    found: Sequence[Comparison], after: Key, before: Key | None
) -> tuple[str, str]:
    if before is None:
        return "unknown", (
            f"Nothing can be said: one evaluation only, after iteration {after[1]}"
        )
    if not found:
        return "unknown", "Nothing can be said: the evaluations share no data set"
    says = {one.says for one in found}
    if says == {"unclear"}:
        return "unclear", "No difference is shown on held-out problems" + _short(found)
    if {"better", "worse"} <= says:
        return "mixed", "Better on some held-out problems, worse on others"
    tone = "better" if "better" in says else "worse"
    some = "" if len(says) == 1 else " on some data sets; on the others it is unclear"
    return tone, f"The team got {tone} on held-out problems{some}{_short(found)}"


def _short(found: Sequence[Comparison]) -> str:
    """The difference, where there is one to tell."""
    if len(found) != 1:
        return ""
    (one,) = found
    if not one.paired:
        return f": {one.difference:+.2f}"
    return f": {one.difference:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"


def _told(found: Sequence[Comparison]) -> list[str]:
    return [
        f"{one.source}: {one.before['avg']:.2f} ({one.other}) to "
        f"{one.after['avg']:.2f}: {_difference(one)}."
        for one in found
    ]


def _difference(one: Comparison) -> str:
    few = f"; fewer than {FEWEST} problems show nothing" * (one.problems < FEWEST)
    if one.paired:
        return (
            f"{one.difference:+.2f} [{one.low:+.2f}, {one.high:+.2f}] on the same "
            f"{one.problems} problems{few}"
        )
    lie = "overlap" if one.says == "unclear" else "lie apart"
    return (
        f"{one.difference:+.2f} on {one.problems} problems, whose intervals {lie} "
        f"(trajectories are not there, so problems cannot be paired){few}"
    )


def _about_controls(controls: Sequence[Comparison]) -> list[str]:
    if not controls:
        return [NO_CONTROL]
    words = {
        "better": "The trained team is better than",
        "worse": "The trained team is worse than",
        "unclear": "The trained team is not shown to differ from",
    }
    return [
        f"{words[one.says]} {one.other} on {one.source}: {_difference(one)}."
        for one in controls
    ]
