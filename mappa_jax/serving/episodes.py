"""From a request to the team, or to one agent, at work.

A team runs as in training: the same workflow, the same seats over the same engine, the
same sandbox (`rollout.play`). Randomness is addressed: a request's seed and text say
what is drawn, whatever else is sampled at the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import jinja2

from mappa_jax.rollout import Stage, play
from mappa_jax.sampling.engine import PromptTooLong
from mappa_jax.sampling.team import Address, EpisodeTeam, Seat
from mappa_jax.serving.errors import ApiError, invalid, too_long
from mappa_jax.serving.partial import cut
from mappa_jax.serving.protocol import ChatRequest
from mappa_jax.tools import Sandbox
from mappa_jax.types import Action, Message, Outcome, Task
from mappa_jax.workflows.datascience import SUBMISSION

TEAM = "team"
# Longer than this per token of context is refused before it is tokenised.
CHARACTERS = 16
# Below these, in float32, nothing is left to draw from.
COLDEST = 1e-3  # temperatures below it are taken for 0, the likeliest token
LEAST_MASS = 1e-4  # of top_p


@dataclasses.dataclass(frozen=True)
class Served:
    """A team that can be asked.

    Attributes:
      stage: its world; its engine is running, and nothing is judged.
      context: tokens that a prompt and its answer may have.
      step: iterations that it was trained for.
      fingerprint: equal for equal weights and settings.
    """

    stage: Stage
    context: int
    step: int
    fingerprint: str

    @property
    def names(self) -> list[str]:
        """What can be asked for as `model`."""
        return [TEAM, *self.stage.seats]

    @property
    def last(self) -> str:
        """The agent whose answer counts."""
        return self.stage.workflow.roles[-1].name

    @property
    def wants_files(self) -> bool:
        """Whether a task of the team has data files."""
        return any(role.makes for role in self.stage.workflow.roles)


@dataclasses.dataclass(frozen=True)
class Answer:
    """One choice.

    Attributes:
      content: the text.
      finish: "stop" or "length".
      actions: of the agents, in order.
      files: what a data-science team has left, name -> text.
    """

    content: str
    finish: str
    actions: tuple[Action, ...]
    files: dict[str, str] | None = None

    @property
    def prompt_tokens(self) -> int:
        """Of all actions together."""
        return sum(len(action.prompt_ids) for action in self.actions)

    @property
    def completion_tokens(self) -> int:
        return sum(len(action.token_ids) for action in self.actions)


@dataclasses.dataclass(frozen=True)
class Watch:
    """Who is told of an answer while it is being worked on.

    `content` gets what the answer says so far, where it is known to be the answer; else
    it is None.
    """

    action: Callable[[Action], None] = lambda action: None
    content: Callable[[str], None] | None = None


def check(served: Served, request: ChatRequest) -> None:
    """Raises ApiError for what can be seen to be wrong before anything is sampled."""
    if request.model not in served.names:
        raise ApiError(
            404,
            f"no model {request.model[:80]!r}; there are {', '.join(served.names)}",
            code="model_not_found",
            param="model",
        )
    size = sum(len(message.content) for message in request.chat())
    if size > CHARACTERS * served.context:
        raise too_long(
            f"{size} characters cannot fit into a context of {served.context} tokens"
        )
    if request.model != TEAM:
        if request.files is not None:
            raise invalid("files are for the team's tasks", "files")
        return
    if request.messages[-1].role != "user":
        raise invalid("the team's last message must be the user's task", "messages")
    if served.wants_files and not request.files:
        raise invalid(
            "this team works on data files: send them as files={name: text}", "files"
        )
    if request.files and not served.wants_files:
        raise invalid("this team takes no files", "files")


def task_text(chat: tuple[Message, ...]) -> str:
    """What the team is asked: the last message. What was said before it, if anything,
    stands above it as a transcript."""
    *before, last = chat
    if not before:
        return last.content
    said = "\n\n".join(f"{m.role.capitalize()}: {m.content}" for m in before)
    return f"Conversation so far:\n{said}\n\nNow:\n{last.content}"


async def answer(
    served: Served, request: ChatRequest, choice: int, seed: int, watch: Watch
) -> Answer:
    """Works one choice out.

    Args:
      served: what is asked.
      request: one that `check` has passed.
      choice: which of the request's `n`.
      seed: with which it, or the server, has begun.
      watch: is told what happens.

    Raises:
      ApiError: a prompt does not fit, the chat template refuses the roles, the sandbox
        has failed.
    """
    with _explained():
        if request.model == TEAM:
            return await _of_team(served, request, choice, seed, watch)
        return await _of_agent(served, request, choice, seed, watch)


@contextlib.contextmanager
def _explained():
    try:
        yield
    except PromptTooLong as e:
        raise too_long(str(e)) from e
    except jinja2.TemplateError as e:
        raise invalid(
            f"the model's chat template refuses these messages: {e}", "messages"
        ) from e


def _address(request: ChatRequest, task: Task, choice: int, seed: int) -> Address:
    return Address(zlib.crc32(str(seed).encode()) & 0x7FFFFFFF, task, choice, True)


def _task(request: ChatRequest, prompt: str, files: dict[str, str]) -> Task:
    said = repr((request.chat(), sorted((request.files or {}).items())))
    name = hashlib.sha256(said.encode()).hexdigest()
    return Task(id=name, prompt=prompt, source="served", files=files)


def _seat(seat: Seat, request: ChatRequest) -> Seat:
    """The seat with what a request says of every agent that works on it."""
    config = seat.config
    if request.top_p is not None:
        mass = max(request.top_p, LEAST_MASS)
        config = dataclasses.replace(config, top_p=mass)
    heat = seat.temperature if request.temperature is None else request.temperature
    if heat is not None and heat < COLDEST:
        heat = 0.0
    return dataclasses.replace(seat, config=config, temperature=heat)


def _answering(seat: Seat, request: ChatRequest, watch: Watch) -> Seat:
    """The seat of the agent whose answer counts: stop strings and length are its."""
    config = seat.config
    most = min(config.max_new_tokens, request.most_tokens or config.max_new_tokens)
    config = dataclasses.replace(
        config,
        stop=(*config.stop, *request.stops),
        max_new_tokens=most,
        min_new_tokens=min(config.min_new_tokens, most),
    )
    seat = _seat(dataclasses.replace(seat, config=config), request)
    # Of several turns, which one is the answer is known afterwards.
    told = watch.content if config.max_turns == 1 or request.model != TEAM else None
    return dataclasses.replace(seat, on_content=told)


async def _of_agent(served, request, choice, seed, watch) -> Answer:
    stage, name = served.stage, request.model
    seats = {name: _answering(stage.seats[name], request, watch)}
    address = _address(request, _task(request, "", {}), choice, seed)

    def on_action(_: int, action: Action) -> None:
        watch.action(action)

    team = EpisodeTeam(seats, stage.engine, address, on_action)
    action = team.record(await team[name].act(request.chat()))
    return _answered(request, action, (action,))


async def _of_team(served, request, choice, seed, watch) -> Answer:
    stage = served.stage
    seats = {name: _seat(seat, request) for name, seat in stage.seats.items()}
    seats[served.last] = _answering(stage.seats[served.last], request, watch)
    keeper = _Keeper()
    stage = dataclasses.replace(stage, seats=seats, grader=keeper)

    def on_action(_: int, action: Action) -> None:
        watch.action(action)

    async with _written(request.files or {}, stage.tools) as files:
        task = _task(request, task_text(request.chat()), files)
        address = _address(request, task, choice, seed)
        trajectory = await play(stage, address, on_action)
    if trajectory.failure is not None:
        raise _failed(trajectory.failure)
    final = trajectory.actions[-1]
    left = keeper.left if served.wants_files else None
    return _answered(request, final, trajectory.actions, left)


def _answered(request, final, actions, files=None) -> Answer:
    content, stopped = cut(final.content, request.stops)
    return Answer(content, "stop" if stopped else final.finish, tuple(actions), files)


def _failed(failure: str) -> ApiError:
    if failure.startswith("prompt too long"):
        return too_long(failure)
    return ApiError(500, failure, code="tool_fault")


class _Keeper:
    """In place of a grader: there is no ground truth. Keeps the file of predictions
    that a data-science team has left last."""

    def __init__(self):
        self.left: dict[str, str] = {}

    async def grade(self, task: Task, answer: str | None) -> Outcome | None:
        self.left = {} if answer is None else {SUBMISSION: answer}
        # No agent sees it; with None the final text would be graded in its place.
        return Outcome(0.0, report="not graded")


@contextlib.asynccontextmanager
async def _written(
    files: dict[str, str], tools: Sandbox
) -> AsyncIterator[dict[str, str]]:
    """The files on disk, name -> path, while they are needed: `tools` may not keep
    them either, as no other answer has the same."""
    if not files:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="mappa_served_") as folder:
        paths = {name: Path(folder, name) for name in files}

        def write() -> None:
            for name, path in paths.items():
                path.write_text(files[name], encoding="utf-8")

        await asyncio.to_thread(write)
        given = {name: str(path) for name, path in paths.items()}
        try:
            yield given
        finally:
            await tools.forget(given)
