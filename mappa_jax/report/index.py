"""The viewer's index: a row per episode, kept column by column."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mappa_jax.report.workdir import RunFiles
from mappa_jax.statistics import RIGHT
from mappa_jax.types import Missing, Observation, Trajectory, Verdict

FORMAT = 1  # of the blocks
CHUNK = 16  # episodes that are read together
HALF = 5.0  # a judge that gives as much calls the answer right, unless it says so
TINY = 1e-6  # an advantage that moves nothing
SIGNIFICANT = 4  # digits of a number that is only looked at


@dataclasses.dataclass(frozen=True)
class Row:
    """What the index knows of one episode.

    Attributes:
      source, task, kind, sample: of the task.
      outcome: 0..1, or None.
      scores: of each action, None where there is no verdict.
      agents: of each action.
      advantages: of each action, None where it has none.
      missing: actions without a verdict, of those that were to be judged.
      failed: whether the run ended early.
      tool_errors: programs that did not end well.
      judge_disagrees: whether the judge's opinion of the end is not the outcome's;
        None where one of the two is missing.
      credit_disagrees: likewise whether the end was made likelier though it is wrong,
        or unlikelier though it is right.
    """

    source: str
    task: str
    kind: str
    sample: int
    outcome: float | None
    scores: tuple[float | None, ...]
    agents: tuple[str, ...]
    advantages: tuple[float | None, ...]
    missing: int
    failed: bool
    tool_errors: int
    judge_disagrees: bool | None
    credit_disagrees: bool | None


@dataclasses.dataclass(frozen=True)
class Digest:
    """A file of trajectories, read.

    Attributes:
      rows: of the index, in the order of the file.
      chunks: gzipped JSON, `CHUNK` episodes each.
    """

    rows: tuple[Row, ...]
    chunks: tuple[bytes, ...]


def index_row(trajectory: Trajectory, credit: Mapping[str, Any] | None) -> Row:
    """`credit` is the trajectory's row of the credit record."""
    task, verdicts = trajectory.task, trajectory.verdicts
    outcome = trajectory.outcome.score if trajectory.outcome else None
    told = credit["actions"] if credit else [{}] * len(trajectory.actions)
    advantages = [_number(one.get("advantage")) for one in told]
    opinion = next(
        (o for o in map(_opinion, reversed(verdicts)) if o is not None), None
    )
    pushed = next((a for a in reversed(advantages) if a is not None), None)
    return Row(
        source=task.source,
        task=task.id,
        kind=task.kind,
        sample=trajectory.sample,
        outcome=outcome,
        scores=tuple(map(_score, verdicts)) or (None,) * len(trajectory.actions),
        agents=tuple(action.agent for action in trajectory.actions),
        advantages=tuple(advantages),
        missing=sum(isinstance(v, Missing) for v in verdicts),
        failed=trajectory.failure is not None,
        tool_errors=sum(_failed(action.observation) for action in trajectory.actions),
        judge_disagrees=_unlike(opinion, outcome),
        credit_disagrees=_unlike(_sign(pushed), outcome),
    )


def _opinion(verdict: Verdict | Missing) -> bool | None:
    if isinstance(verdict, Missing):
        return None
    return verdict.score >= HALF if verdict.correct is None else verdict.correct


def _sign(advantage: float | None) -> bool | None:
    """Whether it is above zero; None for what is zero but for rounding."""
    return None if advantage is None or abs(advantage) < TINY else advantage > 0


def _score(verdict: Verdict | Missing) -> float | None:
    return verdict.score if isinstance(verdict, Verdict) else None


def _unlike(opinion: bool | None, outcome: float | None) -> bool | None:
    return None if opinion is None or outcome is None else opinion != (outcome >= RIGHT)


def _failed(observation: Observation | None) -> bool:
    return observation is not None and not observation.ok


def _number(value: Any) -> float | None:
    """A recorded number; "nan" and "inf" stand there as text and are none."""
    return float(value) if isinstance(value, (int, float)) else None


def index(run: RunFiles, digests: Mapping[str, Digest]) -> dict[str, Any]:
    """A row per episode, column-wise, and the files that they are in."""
    rows = [
        (number, row)
        for number, file in enumerate(run.files)
        for row in digests[file.key].rows
    ]
    files = [
        {
            "key": file.key,
            "set": file.set,
            "step": file.step,
            "episodes": len(digests[file.key].rows),
        }
        for file in run.files
    ]
    return {"format": FORMAT, "chunk": CHUNK, "files": files} | columns(rows)


def columns(rows: Sequence[tuple[int, Row]]) -> dict[str, Any]:
    """The index: a list per property, equal texts stored once.

    Args:
      rows: (number of the file, row).

    Returns:
      `agents`, `kinds` and `tasks` (lists of names that the columns point into) and
      columns by name: one value per episode (`file`, `task`, `kind`, `sample`,
      `outcome`, `missing`, `failed`, `tools`, `judge`, `credit`, `actions`), and one
      per action, in order (`agent`, `score`, `advantage`).
    """
    agents, kinds, tasks = _Names(), _Names(), _Names()
    flat = [(a, s, v) for _, r in rows for a, s, v in _of_actions(r)]
    return {
        "file": [file for file, _ in rows],
        "task": [tasks.number(f"{r.source}/{r.task}") for _, r in rows],
        "kind": [kinds.number(r.kind) for _, r in rows],
        "sample": [r.sample for _, r in rows],
        "outcome": [_short(r.outcome) for _, r in rows],
        "missing": [r.missing for _, r in rows],
        "failed": [int(r.failed) for _, r in rows],
        "tools": [r.tool_errors for _, r in rows],
        "judge": [_flag(r.judge_disagrees) for _, r in rows],
        "credit": [_flag(r.credit_disagrees) for _, r in rows],
        "actions": [len(r.agents) for _, r in rows],
        "agent": [agents.number(a) for a, _, _ in flat],
        "score": [_short(s) for _, s, _ in flat],
        "advantage": [_short(v) for _, _, v in flat],
        "agents": agents.names,
        "kinds": kinds.names,
        "tasks": tasks.names,
    }


def _of_actions(row: Row) -> Any:
    return zip(row.agents, row.scores, row.advantages, strict=True)


class _Names:
    """Numbers for names, in the order in which they come."""

    def __init__(self):
        self._known: dict[str, int] = {}

    def number(self, name: str) -> int:
        return self._known.setdefault(name, len(self._known))

    @property
    def names(self) -> list[str]:
        return list(self._known)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{SIGNIFICANT}g}")


def _flag(value: bool | None) -> int | None:
    return None if value is None else int(value)
