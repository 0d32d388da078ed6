"""MathChat: problem solver -> code executor -> verifier (METHOD.md, "MathChat").

Every agent sees the problem. The executor also gets the solver's answer, may write
Python, sees what it printed, and may then act again. The verifier gets the
executor's last action and last tool result, and states the final answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from mappa_jax import text
from mappa_jax.types import Action, Message, Role, Task, ToolFault
from mappa_jax.workflows.base import (
    Brief,
    Team,
    Tools,
    Workflow,
    first_messages,
    render_observation,
)

ROLES = (
    Role("solver", "problem solver", "solves the problem step by step"),
    Role(
        "coder",
        "code executor",
        "checks the solver's work by running Python",
        max_turns=2,
        uses_tool=True,
    ),
    Role("verifier", "verifier", "weighs what it got and states the final answer"),
)

_PLACE = (
    "You are the {title} of a team of three: problem solver, code executor, "
    "verifier. Only the verifier's answer counts. Stay under {limit} tokens."
)
_DUTIES = {
    "solver": " Solve the problem step by step, then state the answer.",
    "coder": (
        " Check the solution: write one ```python block that computes the answer and "
        "prints it. You will see what it prints."
    ),
    "verifier": (
        " Weigh the code executor's work and its output, then end with the final "
        "answer as \\boxed{{answer}}."
    ),
}

# One worked problem, as each agent would meet it (workflow.example).
_EXAMPLE_TASK = "Tom has 4 apples, buys 7 more and eats 2. How many are left?"
_EXAMPLE_SOLVED = "4 + 7 = 11\n11 - 2 = 9\nThe answer is 9."
_EXAMPLE_CODE = "```python\nprint(4 + 7 - 2)\n```"
_EXAMPLE_CHECKED = "The code printed 9, as the problem solver found."
_EXAMPLE_VERDICT = "The code printed 9.\n\\boxed{9}"


def solver_chat(task: str, brief: Brief) -> list[Message]:
    """What the problem solver sees."""
    shown = [
        Message("user", _problem(_EXAMPLE_TASK)),
        Message("assistant", _EXAMPLE_SOLVED),
    ]
    return _chat("solver", shown, _problem(task), brief)


def coder_chat(task: str, solved: str, brief: Brief) -> list[Message]:
    """What the code executor sees on its first turn."""

    def asked(task: str, solved: str) -> str:
        return f"{_problem(task)}\n\nProblem solver:\n{solved}"

    shown = [
        Message("user", asked(_EXAMPLE_TASK, _EXAMPLE_SOLVED)),
        Message("assistant", _EXAMPLE_CODE),
        Message(brief.tool_role, "9"),
        Message("assistant", _EXAMPLE_CHECKED),
    ]
    return _chat("coder", shown, asked(task, solved), brief)


def verifier_chat(
    task: str, coded: str, printed: str | None, brief: Brief
) -> list[Message]:
    """What the verifier sees."""

    def asked(task: str, coded: str, printed: str | None) -> str:
        text = f"{_problem(task)}\n\nCode executor:\n{coded}"
        return text if printed is None else f"{text}\n\nOutput of its code:\n{printed}"

    shown = [
        Message("user", asked(_EXAMPLE_TASK, _EXAMPLE_CODE, "9")),
        Message("assistant", _EXAMPLE_VERDICT),
    ]
    return _chat("verifier", shown, asked(task, coded, printed), brief)


async def mathchat(task: Task, team: Team, tools: Tools, brief: Brief) -> None:
    """Runs the team on one problem; every action is recorded in order."""
    solver = team.record(await team["solver"].act(solver_chat(task.prompt, brief)))
    async with tools.workspace() as workspace:
        with team["coder"].conversation() as coder:
            coded, printed = await _execute(task, solver, team, coder, workspace, brief)
    chat = verifier_chat(task.prompt, _hand_on(coded, brief), printed, brief)
    team.record(await team["verifier"].act(chat))


async def _execute(
    task, solver, team, coder, workspace, brief
) -> tuple[Action, str | None]:
    """The executor's turns; returns its last action and the last tool result."""
    messages = coder_chat(task.prompt, _hand_on(solver, brief), brief)
    printed = None
    for turn in range(brief.max_turns["coder"]):
        action = await coder.act(messages)
        code = text.extract_code(action.content)
        if code is None:
            return team.record(action), printed
        try:
            observation = await workspace.run(code)
        except ToolFault as e:
            team.record(action, code=code, fault=str(e))
            raise
        action = team.record(action, code=code, observation=observation)
        printed = render_observation(observation, brief)
        if turn + 1 < brief.max_turns["coder"]:
            messages += [
                Message("assistant", _hand_on(action, brief)),
                Message(brief.tool_role, printed),
            ]
    return action, printed


def _problem(task: str) -> str:
    return f"Problem:\n{task}"


def _chat(
    name: str, shown: Sequence[Message], asked: str, brief: Brief
) -> list[Message]:
    title = next(role.title for role in ROLES if role.name == name)
    system = (_PLACE + _DUTIES[name]).format(
        title=title, limit=brief.token_limits[name]
    )
    return first_messages(system, shown, asked, brief)


def _hand_on(action: Action, brief: Brief) -> str:
    return brief.cut(action.content, brief.handoff_tokens)


MATHCHAT = Workflow("mathchat", ROLES, mathchat)
