"""A recorded trajectory as the viewer shows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mappa_jax.statistics import RIGHT
from mappa_jax.types import Action, Missing, Observation, Trajectory, Verdict

# (agent, token ids) -> the text of each id, or None where it is not known.
Pieces = Callable[[str, Sequence[int]], Mapping[int, str] | None]


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
