"""Traces: actions to be imitated, one JSON object a line.

  {"agent": "solver", "messages": [{"role": "user", "content": "..."}], "answer": "..."}

`messages` is the chat that the agent was shown, `answer` what it is to say.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from mappa_jax.types import Action, Message

KEYS = {"agent", "messages", "answer"}
ROLES = ("system", "user", "assistant", "tool")


class TraceError(ValueError):
    """A trace cannot be used; the message names file and line, and the remedy."""


class Tokenizer(Protocol):
    """What of models/tokenizer.py is needed here."""

    stop_ids: tuple[int, ...]

    def render(self, messages: Sequence[Message], *, thinking: bool) -> np.ndarray: ...
    def encode(self, text: str) -> list[int]: ...
    def sanitise(self, text: str) -> str: ...


@dataclasses.dataclass(frozen=True)
class Trace:
    """One action to be imitated; `where` is "file:line"."""

    agent: str
    messages: tuple[Message, ...]
    answer: str
    where: str = ""


def read_traces(path: str | os.PathLike[str], agents: Sequence[str]) -> list[Trace]:
    """The traces of a file, in order.

    Raises:
      TraceError: a line is no trace, or its agent is not one of `agents`; or there is
        no line.
    """
    path = pathlib.Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as e:
        raise TraceError(f"{path}: {e.strerror}") from e
    traces = [_trace(f"{path}:{n}", line) for n, line in enumerate(lines, 1) if line]
    for trace in traces:
        if trace.agent not in agents:
            raise TraceError(
                f"{trace.where}: agent {trace.agent!r} is none of the config's "
                f"{list(agents)}"
            )
    if not traces:
        raise TraceError(f"{path}: no trace; write one JSON object a line")
    return traces


def _trace(where: str, line: str) -> Trace:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        raise TraceError(f"{where}: not JSON ({e.msg} at column {e.colno})") from e
    if not isinstance(row, dict) or set(row) != KEYS:
        raise TraceError(f"{where}: must be an object with the keys {sorted(KEYS)}")
    texts = isinstance(row["agent"], str) and isinstance(row["answer"], str)
    if not texts or not row["answer"]:
        raise TraceError(f"{where}: 'agent' and 'answer' must be texts that are there")
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise TraceError(f"{where}: 'messages' must be a list of turns")
    turns = tuple(
        _message(f"{where}: messages[{i}]", m) for i, m in enumerate(messages)
    )
    return Trace(row["agent"], turns, row["answer"], where)


def _message(where: str, row: Any) -> Message:
    if not isinstance(row, dict) or set(row) != {"role", "content"}:
        raise TraceError(f"{where}: must have the keys 'role' and 'content'")
    if row["role"] not in ROLES or not isinstance(row["content"], str):
        raise TraceError(f"{where}: role must be one of {ROLES}, content a text")
    return Message(row["role"], row["content"])


def write_traces(path: str | os.PathLike[str], traces: Iterable[Trace]) -> None:
    """The inverse of `read_traces`; the file is whole or absent."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        for trace in traces:
            messages = [dataclasses.asdict(m) for m in trace.messages]
            row = {"agent": trace.agent, "messages": messages, "answer": trace.answer}
            file.write(json.dumps(row) + "\n")
    part.replace(path)


def to_action(
    trace: Trace,
    tokenizer: Tokenizer,
    *,
    thinking: bool,
    new_tokens: int,
    context: int,
) -> Action:
    """The trace as an action that ends with the first of the stop ids.

    Args:
      trace: what is to be imitated.
      tokenizer: the agent's.
      thinking: the chat template opens a thinking section.
      new_tokens: that the agent may write in an action, the stop id included.
      context: tokens of prompt and answer together, at most.

    Raises:
      TraceError: the answer or the whole is too long, or holds control tokens.
    """
    if tokenizer.sanitise(trace.answer) != trace.answer:
        raise TraceError(
            f"{trace.where}: the answer spells a control token; leave it out (what "
            "ends an answer is added by itself)"
        )
    prompt = tokenizer.render(trace.messages, thinking=thinking)
    ids = np.asarray([*tokenizer.encode(trace.answer), tokenizer.stop_ids[0]], np.int32)
    for count, most, key in (
        (len(ids), new_tokens, f"agents.{trace.agent}.max_new_tokens"),
        (len(prompt) + len(ids), context, "sampler.context"),
    ):
        if count > most:
            raise TraceError(
                f"{trace.where}: {count} tokens, but config.{key}={most}; raise that, "
                "or leave the trace out"
            )
    return Action(
        agent=trace.agent,
        turn=sum(m.role == "assistant" for m in trace.messages),
        messages=trace.messages,
        prompt_ids=prompt,
        token_ids=ids,
        logprobs=np.zeros(len(ids), np.float32),
        finish="stop",
        text=trace.answer,
        content=trace.answer,
    )
