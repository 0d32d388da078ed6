"""The Team that workflows talk to: chats in, actions out, over the engine."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence

from mappa_jax import text
from mappa_jax.config import AgentConfig
from mappa_jax.models.tokenizer import Tokenizer
from mappa_jax.sampling.engine import Conversation, Engine, Options
from mappa_jax.types import Action, Message, Observation, Outcome, Task


@dataclasses.dataclass(frozen=True)
class Seat:
    """What is fixed about one agent over a run.

    `temperature` replaces the config's when it is not None (evaluation). `on_content`
    is told what an action says so far, after every chunk of its tokens.
    """

    name: str
    index: int
    config: AgentConfig
    tokenizer: Tokenizer
    temperature: float | None = None
    on_content: Callable[[str], None] | None = None

    def options(self) -> Options:
        config = self.config
        heat = config.temperature if self.temperature is None else self.temperature
        return Options(
            temperature=heat,
            top_k=config.top_k,
            top_p=config.top_p,
            min_new=config.min_new_tokens,
            max_new=config.max_new_tokens,
            stop_ids=self.tokenizer.stop_ids,
            stopped_at=self._stopped_at if config.stop else None,
        )

    def _stopped_at(self, tokens: list[int]) -> int | None:
        """How many tokens hold the first stop string, or None without one."""
        if not self._stops(tokens):
            return None
        low, high = 1, len(tokens)
        while low < high:  # text grows with tokens, so bisection finds the first
            middle = (low + high) // 2
            low, high = (
                (low, middle) if self._stops(tokens[:middle]) else (middle + 1, high)
            )
        return low

    def _stops(self, tokens: list[int]) -> bool:
        found = self.tokenizer.decode(tokens)
        return any(stop in found for stop in self.config.stop)


@dataclasses.dataclass(frozen=True)
class Address:
    """Where in the run an episode stands: its randomness is folded from this."""

    step: int
    task: Task
    sample: int
    evaluation: bool

    def of(self, agent: int, turn: int) -> tuple[int, ...]:
        name = f"{self.task.source}/{self.task.id}"
        task = zlib.crc32(name.encode()) & 0x7FFFFFFF
        return (self.step, task, self.sample, agent, turn, int(self.evaluation))


class EpisodeTeam:
    """The team of one trajectory (`workflows.base.Team`).

    Args:
      seats: by agent name.
      engine: a running engine.
      address: of the episode.
      on_action: called with the index and the action when one is recorded.
    """

    def __init__(
        self,
        seats: dict[str, Seat],
        engine: Engine,
        address: Address,
        on_action: Callable[[int, Action], None],
    ):
        self._agents = {n: _Agent(s, engine, self, address) for n, s in seats.items()}
        self._on_action = on_action
        self.actions: list[Action] = []
        self.talking: str | None = None  # the agent of the conversation that is open

    def __getitem__(self, name: str) -> _Agent:
        return self._agents[name]

    def record(
        self,
        action: Action,
        *,
        code: str | None = None,
        observation: Observation | None = None,
        fault: str | None = None,
        outcome: Outcome | None = None,
    ) -> Action:
        action = dataclasses.replace(
            action, code=code, observation=observation, fault=fault, outcome=outcome
        )
        self.actions.append(action)
        self._on_action(len(self.actions) - 1, action)
        return action


class _Agent:
    def __init__(self, seat: Seat, engine: Engine, team: EpisodeTeam, address: Address):
        self._seat = seat
        self._engine = engine
        self._team = team
        self._address = address
        self._turn = 0
        self._conversation: Conversation | None = None

    @contextlib.contextmanager
    def conversation(self) -> Iterator[_Agent]:
        self._check_alone()
        if self._conversation is not None:
            raise RuntimeError(f"{self._seat.name} is in a conversation already")
        with self._engine.conversation() as talk:
            self._team.talking, self._conversation = self._seat.name, talk
            try:
                yield self
            finally:
                self._team.talking = self._conversation = None

    def _check_alone(self) -> None:
        """A slot that is held while another agent waits for one could wait for ever."""
        talking = self._team.talking
        if talking is not None and talking != self._seat.name:
            raise RuntimeError(
                f"{self._seat.name} acts within a conversation of {talking}; the "
                "workflow has to end that first"
            )

    async def act(self, messages: Sequence[Message]) -> Action:
        self._check_alone()
        seat, turn = self._seat, self._turn
        self._turn += 1
        tokenizer = seat.tokenizer
        prompt = tokenizer.render(messages, thinking=seat.config.thinking)
        opened = tokenizer.opens_thinking(prompt)

        def content_of(written: str) -> str:
            return text.strip_thinking(written, opened=opened)

        options = seat.options()
        if (told := seat.on_content) is not None:
            options = dataclasses.replace(
                options,
                on_tokens=lambda tokens: told(content_of(tokenizer.decode(tokens))),
            )
        sample = await self._engine.generate(
            seat.index,
            prompt,
            options,
            self._address.of(seat.index, turn),
            self._conversation,
            last=self._turn >= seat.config.max_turns,
        )
        written = tokenizer.decode(sample.token_ids)
        return Action(
            agent=seat.name,
            turn=turn,
            messages=tuple(messages),
            prompt_ids=prompt,
            token_ids=sample.token_ids,
            logprobs=sample.logprobs,
            finish=sample.finish,
            text=written,
            content=content_of(written),
            temperature=options.temperature,
        )
