"""What a workflow is, and the little that it may call.

A workflow is an ordinary async function over one task. It asks agents to act,
runs their code with the tool, and records every action; it never thinks of
batching, padding or devices. The protocols here are implemented elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol

from mappa_jax.config import Config
from mappa_jax.types import (
    Action,
    Message,
    Observation,
    Outcome,
    Role,
    Task,
)


class Agent(Protocol):
    """One seat of the team, within one trajectory."""

    async def act(self, messages: Sequence[Message]) -> Action:
        """Samples one action; it counts once it is recorded."""
        ...

    def conversation(self) -> AbstractContextManager[Agent]:
        """The agent with turns that each go on from the one before: what their chats
        begin with alike is computed once (config.sampler.extend_buckets). Until the
        block ends no other agent of the trajectory may act."""
        ...


class Team(Protocol):
    """The agents of one trajectory, and the record of what they did."""

    def __getitem__(self, name: str) -> Agent: ...

    def record(
        self,
        action: Action,
        *,
        code: str | None = None,
        observation: Observation | None = None,
        fault: str | None = None,
        outcome: Outcome | None = None,
    ) -> Action:
        """Closes an action with what followed; its judging may start at once.

        Args:
          action: from `Agent.act`.
          code: what was run of it.
          observation: what running it gave.
          fault: why the tool could not run it; masks the action.
          outcome: what the ground truth says of the answer that it has left, where that
            is not simply its text. The last action's is the trajectory's.
        """
        ...


class Workspace(Protocol):
    """A work folder in which programs run; files persist between runs."""

    async def run(self, code: str) -> Observation:
        """Runs a program. Raises ToolFault where the tool itself fails."""
        ...

    async def read(self, name: str, most: int) -> bytes | None:
        """A file of at most so many bytes, or None. Raises FileTooLarge, ToolFault."""
        ...


class Tools(Protocol):
    """What a workflow may use besides the team."""

    def workspace(
        self, files: Mapping[str, str] = {}, first: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[Workspace]:
        """A fresh work folder in which `files` (name -> path) can be read; observations
        list those called as in `first` before all others."""
        ...

    async def grade(self, task: Task, answer: str | None) -> Outcome | None:
        """What the ground truth says of an answer (None: there is no file of that
        name); None where there is no ground truth."""
        ...


@dataclasses.dataclass(frozen=True)
class Brief:
    """What a workflow's prompts need to know of the config.

    Attributes:
      token_limits: agent -> new tokens per action.
      max_turns: agent -> actions per trajectory.
      tool_tokens: an observation is cut in the middle to this.
      handoff_tokens: likewise what one agent hands to the next.
      tool_role: the role of a turn that carries an observation.
      instructions: begin with a system message that tells the agent its part.
      example: show every agent a worked example first.
      cut: shortens a text to so many tokens, in the middle and visibly.
    """

    token_limits: dict[str, int]
    max_turns: dict[str, int]
    tool_tokens: int
    handoff_tokens: int
    tool_role: str
    instructions: bool
    example: bool
    cut: Callable[[str, int], str]


def brief(config: Config, cut: Callable[[str, int], str]) -> Brief:
    """The brief of a config; `cut` shortens a text to so many tokens."""
    return Brief(
        token_limits={n: a.max_new_tokens for n, a in config.agents.items()},
        max_turns={n: a.max_turns for n, a in config.agents.items()},
        tool_tokens=config.workflow.tool_output_tokens,
        handoff_tokens=config.workflow.handoff_tokens,
        tool_role="tool" if config.workflow.tool_role else "user",
        instructions=config.workflow.instructions,
        example=config.workflow.example,
        cut=cut,
    )


def first_messages(
    system: str, example: Sequence[Message], asked: str, brief: Brief
) -> list[Message]:
    """What a turn's conversation begins with: instructions, a worked example (each if
    the brief wants it), and what is asked."""
    return [
        *([Message("system", system)] if brief.instructions else ()),
        *(example if brief.example else ()),
        Message("user", asked),
    ]


def render_observation(observation: Observation, brief: Brief) -> str:
    """What an agent is shown of a run, cut in the middle to the token budget."""
    parts = [observation.stdout.strip()]
    if observation.stderr.strip():
        parts.append("stderr:\n" + observation.stderr.strip())
    if observation.limit:
        parts.append(f"stopped: {observation.limit} limit")
    elif observation.exit_status:
        parts.append(f"exit status {observation.exit_status}")
    body = "\n".join(p for p in parts if p)
    return brief.cut(body, brief.tool_tokens) or "(no output)"


@dataclasses.dataclass(frozen=True)
class Workflow:
    """A team's shape and the function that runs it on one task.

    Attributes:
      name: the config's `workflow.name`.
      roles: in the order in which they act; the last one's answer counts.
      run: async (task, team, tools, brief) -> None, recording every action.
    """

    name: str
    roles: tuple[Role, ...]
    run: Callable


def seated(workflow: Workflow, config: Config) -> Workflow:
    """The workflow with the number of turns that the config gives each role."""
    turns = {name: agent.max_turns for name, agent in config.agents.items()}
    roles = tuple(
        dataclasses.replace(role, max_turns=turns[role.name]) for role in workflow.roles
    )
    return dataclasses.replace(workflow, roles=roles)
