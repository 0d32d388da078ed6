"""The bodies of answers, in OpenAI's form, with a trace where it was asked for."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Sequence
from typing import Any

from mappa_jax.serving.episodes import Answer
from mappa_jax.types import Action


@dataclasses.dataclass(frozen=True)
class Head:
    """What all bodies of one answer have in common."""

    model: str
    fingerprint: str
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def fields(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def models(names: Sequence[str], created: int) -> dict[str, Any]:
    """GET /v1/models."""
    rows = [model(name, created) for name in names]
    return {"object": "list", "data": rows}


def model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "mappa_jax"}


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    """Tokens of all actions of all agents, prompts as often as they were read."""
    prompt = sum(answer.prompt_tokens for answer in answers)
    new = sum(answer.completion_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
    }


def traced(action: Action, choice: int) -> dict[str, Any]:
    """An action of an agent, as a trace has it."""
    seen = action.observation
    fields = ("stdout", "stderr", "exit_status", "limit", "files", "seconds")
    return {
        "choice": choice,
        "agent": action.agent,
        "turn": action.turn,
        "messages": [dataclasses.asdict(message) for message in action.messages],
        "text": action.text,
        "content": action.content,
        "finish_reason": action.finish,
        "code": action.code,
        "observation": seen and {name: getattr(seen, name) for name in fields},
        "prompt_tokens": len(action.prompt_ids),
        "completion_tokens": len(action.token_ids),
    }


def completion(head: Head, answers: Sequence[Answer], trace: bool) -> dict[str, Any]:
    """The whole answer of a request that is not streamed."""
    body = head.fields("chat.completion") | {
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": answer.content},
                "logprobs": None,
                "finish_reason": answer.finish,
            }
            for i, answer in enumerate(answers)
        ],
        "usage": usage(answers),
    }
    if trace:
        body["trace"] = [traced(x, i) for i, a in enumerate(answers) for x in a.actions]
    left = [answer.files for answer in answers]
    return body | ({"files": left} if any(f is not None for f in left) else {})


def piece(head: Head, choice: int, finish: str | None = None, **delta: Any):
    """A chunk of a stream: what is added to one choice."""
    row = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}
    return head.fields("chat.completion.chunk") | {"choices": [row]}


def beside(head: Head, **more: Any) -> dict[str, Any]:
    """A chunk of a stream that adds to no choice: usage, an action, files."""
    return head.fields("chat.completion.chunk") | {"choices": []} | more
