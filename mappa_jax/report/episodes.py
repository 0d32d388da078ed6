"""A recorded trajectory as the viewer shows it, and as a row of the viewer's index."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mappa_jax.types import Action, Missing, Observation, Trajectory, Verdict

RIGHT = 1.0 - 1e-6  # as statistics.py and judges/health.py count
HALF = 5.0  # a judge that gives as much calls the answer right, unless it says so
TINY = 1e-6  # an advantage that moves nothing
SIGNIFICANT = 4  # digits of a number that is only looked at

# (agent, token ids) -> the text of each id, or None where it is not known.
Pieces = Callable[[str, Sequence[int]], Mapping[int, str] | None]


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


def episode(
    trajectory: Trajectory, credit: Mapping[str, Any] | None, pieces: Pieces
) -> dict[str, Any]:
    """All that the viewer shows of a trajectory, as JSON values."""
    task = trajectory.task
    told = credit["actions"] if credit else [None] * len(trajectory.actions)
    verdicts = trajectory.verdicts or (None,) * len(trajectory.actions)
    return {
        "task": {
            "id": task.id,
            "source": task.source,
            "kind": task.kind,
            "prompt": task.prompt,
            "answer": task.answer,
            "files": sorted(task.files),
        },
        "sample": trajectory.sample,
        "failure": trajectory.failure,
        "outcome": _outcome(trajectory.outcome),
        "actions": [
            _action(*row, pieces)
            for row in zip(trajectory.actions, verdicts, told, strict=True)
        ],
    }


def _action(
    action: Action,
    verdict: Verdict | Missing | None,
    credit: Mapping[str, Any] | None,
    pieces: Pieces,
) -> dict[str, Any]:
    thinking, said = split_thinking(action.text, action.content)
    return {
        "agent": action.agent,
        "turn": action.turn,
        "messages": [{"role": m.role, "text": m.content} for m in action.messages],
        "thinking": thinking,
        "said": said,
        "finish": action.finish,
        "tokens": len(action.token_ids),
        "code": action.code,
        "observation": _observation(action.observation),
        "fault": action.fault,
        "outcome": _outcome(action.outcome),
        "verdict": _verdict(verdict),
        "credit": _credit(action, credit, pieces),
    }


def split_thinking(text: str, content: str) -> tuple[str, str]:
    """(thinking, what was said): what stands before `content` in `text`.

    Where `content` is not in `text` as it stands, all of it was said.
    """
    at = text.rfind(content) if content else len(text)
    if "<think>" not in text and "</think>" not in text:
        # The prompt may have opened the section, and its end may never have come.
        return (text, "") if not content and text.strip() else ("", text)
    if at < 0:
        return "", text
    thinking = text[:at].replace("<think>", "").replace("</think>", "")
    return thinking.strip(), text[at:]


def _observation(found: Observation | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return dataclasses.asdict(found) | {"ok": found.ok}


def _outcome(found: Any) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "score": found.score,
        "right": found.score >= RIGHT,
        "answer": found.answer,
        "report": found.report,
        "quality": dict(found.quality),
    }


def _verdict(verdict: Verdict | Missing | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    call = dataclasses.asdict(verdict.call)
    if isinstance(verdict, Missing):
        return {
            "missing": verdict.reason.value,
            "detail": verdict.detail,
            "call": call,
        }
    return dataclasses.asdict(verdict) | {"call": call}


def _credit(
    action: Action, credit: Mapping[str, Any] | None, pieces: Pieces
) -> dict[str, Any] | None:
    """The credit record's row of an action; with ratios, its tokens too."""
    if credit is None:
        return None
    if "masked" in credit:
        return {"masked": credit["masked"]}
    shown = {
        name: credit[name]
        for name in ("reward", "advantage", "policy_reference", "trainer_behaviour")
    }
    if shown["policy_reference"] or shown["trainer_behaviour"]:
        ids = action.token_ids.tolist()
        shown["ids"] = ids
        shown["pieces"] = pieces(action.agent, ids)
    return shown
