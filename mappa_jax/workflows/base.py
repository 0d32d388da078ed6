"""What a workflow is, and the little that it may call.

A workflow is an ordinary async function over one task. It asks agents to act,
runs their code with the tool, and records every action; it never thinks of
batching, padding or devices. The protocols here are implemented elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from mappa_jax.config import Config
from mappa_jax.types import Action, Message, Observation, Role


class Agent(Protocol):
    """One seat of the team, within one trajectory."""

    async def act(self, messages: Sequence[Message]) -> Action:
        """Samples one action; it counts once it is recorded."""
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
    ) -> Action:
        """Closes an action with what followed; its judging may start at once."""
        ...


class Workspace(Protocol):
    """A work folder in which programs run; files persist between runs."""

    async def run(self, code: str) -> Observation:
        """Runs a program. Raises ToolFault where the tool itself fails."""
        ...


class Tools(Protocol):
    """What a workflow may use besides the team."""

    def workspace(self) -> AbstractAsyncContextManager[Workspace]: ...


@dataclasses.dataclass(frozen=True)
class Brief:
    """What a workflow's prompts need to know of the config.

    Attributes:
      token_limits: agent -> new tokens per action.
      max_turns: agent -> actions per trajectory.
      tool_tokens: an observation is cut in the middle to this.
      handoff_tokens: likewise what one agent hands to the next.
      tool_role: the role of a turn that carries an observation.
      example: show every agent a worked example first.
      cut: shortens a text to so many tokens, in the middle and visibly.
    """

    token_limits: dict[str, int]
    max_turns: dict[str, int]
    tool_tokens: int
    handoff_tokens: int
    tool_role: str
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
        example=config.workflow.example,
        cut=cut,
    )


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
