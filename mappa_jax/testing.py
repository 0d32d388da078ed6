"""Scripted doubles of a run's parts: a team, tools, a judge with faults, progress.

They stand behind the protocols of `workflows.base`, `rollout` and `train`, so that a
test states what the outside world does and asserts what the code makes of it. Nothing
here imports jax.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from mappa_jax.judges.base import Meter
from mappa_jax.types import (
    Action,
    FileTooLarge,
    JudgeCall,
    JudgeRequest,
    Message,
    Missing,
    MissingReason,
    Observation,
    Outcome,
    Task,
    Verdict,
)


def make_action(agent: str, content: str, turn: int = 0, **fields: Any) -> Action:
    """An action that says `content`, with as many tokens as it has characters."""
    tokens = np.arange(max(len(content), 1), dtype=np.int32)
    given: dict[str, Any] = {
        "messages": (),
        "prompt_ids": np.zeros((2,), np.int32),
        "token_ids": tokens,
        "logprobs": np.full(tokens.shape, -1.0, np.float32),
        "finish": "stop",
        "text": content,
    }
    return Action(agent=agent, turn=turn, content=content, **(given | fields))


class ScriptedTeam:
    """Agents that say what they were told to, in order (`workflows.base.Team`).

    Attributes:
      chats: (agent, messages) of every request, in order.
      actions: what was recorded, in order.
    """

    def __init__(self, **lines: Sequence[str]):
        self._lines = {name: iter(said) for name, said in lines.items()}
        self.chats: list[tuple[str, list[Message]]] = []
        self.actions: list[Action] = []

    def __getitem__(self, name: str) -> _ScriptedAgent:
        return _ScriptedAgent(self, name)

    def next_line(self, name: str, messages: Sequence[Message]) -> Action:
        turn = sum(asked == name for asked, _ in self.chats)
        self.chats.append((name, list(messages)))
        return make_action(
            name, next(self._lines[name]), turn, messages=tuple(messages)
        )

    def record(self, action: Action, **after: Any) -> Action:
        self.actions.append(dataclasses.replace(action, **after))
        return self.actions[-1]

    def seen_by(self, name: str, turn: int = 0) -> list[Message]:
        """The chat that an agent was given at its `turn`."""
        return [messages for asked, messages in self.chats if asked == name][turn]


@dataclasses.dataclass
class _ScriptedAgent:
    team: ScriptedTeam
    name: str

    async def act(self, messages: Sequence[Message]) -> Action:
        return self.team.next_line(self.name, messages)

    @contextlib.contextmanager
    def conversation(self) -> Iterator[_ScriptedAgent]:
        yield self


class ScriptedTools:
    """Programs that have the given outcomes, in order (`workflows.base.Tools`).

    An outcome that is an exception is raised. `programs` lists what was run, and
    `workspaces` counts the work folders. `files` are what can be read in them.
    """

    def __init__(self, *outcomes: Observation | Exception):
        self._outcomes = iter(outcomes)
        self.programs: list[str] = []
        self.workspaces = 0
        self.files: dict[str, bytes] = {}

    @contextlib.asynccontextmanager
    async def workspace(
        self, files: Mapping[str, str] = {}, first: Sequence[str] = ()
    ) -> AsyncIterator[ScriptedTools]:
        self.workspaces += 1
        yield self

    async def forget(self, files: Mapping[str, str]) -> None:
        """Nothing is kept."""

    async def read(self, name: str, most: int) -> bytes | None:
        content = self.files.get(name)
        if content is not None and len(content) > most:
            raise FileTooLarge(f"{name} has more than {most} bytes")
        return content

    async def grade(self, task: Task, answer: str | None) -> Outcome | None:
        """Valid (1.0) where there is any text."""
        return Outcome(float(bool(answer)), report=f"got {answer!r}")

    async def run(self, code: str) -> Observation:
        self.programs.append(code)
        outcome = next(self._outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class CharTokenizer:
    """A token is a character. Stands behind `sampling.team.Seat`."""

    stop_ids = (0,)

    def render(self, messages, *, thinking):
        chat = "".join(m.content for m in messages)
        return np.asarray([ord(c) for c in chat], np.int32)

    def decode(self, ids):
        return "".join(chr(i) for i in ids)

    def opens_thinking(self, prompt_ids):
        return False


class ScriptedEngine:
    """Says `say(agent, address)` in place of a model; an exception is raised instead.

    `agent` is the index of the seat, `address` as of `sampling.team.Address.of`; those
    that were asked for are kept in `addresses`.
    """

    def __init__(self, say: Callable[[int, tuple[int, ...]], str | Exception]):
        self.say = say
        self.addresses: list[tuple[int, ...]] = []

    def conversation(self) -> contextlib.nullcontext:
        return contextlib.nullcontext()

    async def generate(
        self, agent, prompt, options, address, conversation=None, *, last=False
    ):
        self.addresses.append(address)
        await asyncio.sleep(0)
        said = self.say(agent, address)
        if isinstance(said, Exception):
            raise said
        tokens = np.asarray([ord(c) for c in said], np.int32)
        return SimpleNamespace(
            token_ids=tokens, logprobs=np.zeros(len(tokens)), finish="stop"
        )


CALL = JudgeCall(judge="scripted")


class ScriptedJudge:
    """Scores by a function of the request; every so-many-th call has no verdict.

    Args:
      score: request -> 0..10.
      missing_every: 0 for a judge without faults; 3: calls 3, 6, ... are `Missing`.
      gate: waited for before every verdict, if given.

    Attributes:
      requests: what it was asked, in order.
    """

    name = "scripted"

    def __init__(
        self,
        score: Callable[[JudgeRequest], float] = lambda request: 5.0,
        *,
        missing_every: int = 0,
        gate: asyncio.Event | None = None,
    ):
        self._score = score
        self._missing_every = missing_every
        self._gate = gate
        self.requests: list[JudgeRequest] = []

    async def check(self) -> None:
        """Nothing can be wrong."""

    async def score(self, request: JudgeRequest) -> Verdict | Missing:
        self.requests.append(request)
        number = len(self.requests)
        if self._gate is not None:
            await self._gate.wait()
        if self._missing_every and number % self._missing_every == 0:
            return Missing(MissingReason.SERVER_ERROR, "scripted fault", CALL)
        return Verdict(self._score(request), "scripted", CALL)

    def meter(self) -> Meter:
        return Meter()

    def sync(self) -> None:
        """Nothing is recorded."""

    async def aclose(self) -> None:
        """Nothing is held."""


class ScriptedGrader:
    """Right (1.0) where the text contains the reference answer; None without one."""

    async def grade(self, task: Task, text: str) -> Outcome | None:
        if task.answer is None:
            return None
        return Outcome(float(task.answer in text), text)


class Silent:
    """A `train.Progress` that shows nothing; `on_finish` is called with each step.

    Attributes:
      steps: the iterations that have finished.
      notes: what was said besides.
    """

    def __init__(self, on_finish: Callable[[int], None] = lambda step: None):
        self._on_finish = on_finish
        self.steps: list[int] = []
        self.notes: list[str] = []

    def start(self, step: int, phase: str, total: int) -> Callable[[], None]:
        return lambda: None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def watch(self, meter: Callable[[], Meter], load: Callable[[], Any]) -> None:
        pass

    def finish(self, step: int, metrics: dict[str, Any]) -> None:
        self.steps.append(step)
        self._on_finish(step)
