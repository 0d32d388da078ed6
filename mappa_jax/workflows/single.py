"""One agent alone: what a team has to be compared with, on the same token budget."""

from __future__ import annotations

from mappa_jax.types import Message, Role, Task
from mappa_jax.workflows.base import Brief, Team, Tools, Workflow, first_messages

NAME = "single"

ROLES = (Role(NAME, "problem solver", "solves the problem and states the answer"),)

_SYSTEM = (
    "Solve the problem step by step, then end with the final answer as "
    "\\boxed{{answer}}. Stay under {limit} tokens."
)
_EXAMPLE = (
    Message(
        "user", "Problem:\nTom has 4 apples, buys 7 and eats 2. How many are left?"
    ),
    Message("assistant", "4 + 7 = 11\n11 - 2 = 9\n\\boxed{9}"),
)


async def single(task: Task, team: Team, tools: Tools, brief: Brief) -> None:
    """One action."""
    system = _SYSTEM.format(limit=brief.token_limits[NAME])
    chat = first_messages(system, _EXAMPLE, f"Problem:\n{task.prompt}", brief)
    team.record(await team[NAME].act(chat))


SINGLE = Workflow(NAME, ROLES, single)
