"""MathChat: problem solver -> code executor -> verifier (METHOD.md, "MathChat").

Every agent sees the problem. The executor also gets the solver's answer, may write
Python, sees what it printed, and may then act again. The verifier gets the
executor's last action and last tool result, and states the final answer.
"""

from __future__ import annotations

from mappa_jax import text
from mappa_jax.types import Action, Message, Observation, Role, Task, ToolFault
from mappa_jax.workflows.base import Brief, Team, Tools, Workflow

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
_SOLVER = _PLACE + " Solve the problem step by step, then state the answer."
_CODER = _PLACE + (
    " Check the solution: write one ```python block that computes the answer and "
    "prints it. You will see what it prints."
)
_VERIFIER = _PLACE + (
    " Weigh the code executor's work and its output, then end with the final answer "
    "as \\boxed{{answer}}."
)


async def mathchat(task: Task, team: Team, tools: Tools, brief: Brief) -> None:
    """Runs the team on one problem; every action is recorded in order."""
    solver = team.record(
        await team["solver"].act(_open("solver", _SOLVER, brief, task))
    )
    async with tools.workspace() as workspace:
        coder, printed = await _execute(task, solver, team, workspace, brief)
    problem = f"{_problem(task)}\n\nCode executor:\n{_hand_on(coder, brief)}"
    if printed is not None:
        problem += f"\n\nOutput of its code:\n{printed}"
    team.record(
        await team["verifier"].act(
            [_system("verifier", _VERIFIER, brief), Message("user", problem)]
        )
    )


async def _execute(task, solver, team, workspace, brief) -> tuple[Action, str | None]:
    """The executor's turns; returns its last action and the last tool result."""
    messages = [
        _system("coder", _CODER, brief),
        Message(
            "user",
            f"{_problem(task)}\n\nProblem solver:\n{_hand_on(solver, brief)}",
        ),
    ]
    printed = None
    for turn in range(brief.max_turns["coder"]):
        action = await team["coder"].act(messages)
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
    return text.cut_middle(body, brief.tool_characters) or "(no output)"


def _problem(task: Task) -> str:
    return f"Problem:\n{task.prompt}"


def _system(name: str, template: str, brief: Brief) -> Message:
    title = next(role.title for role in ROLES if role.name == name)
    limit = brief.token_limits[name]
    return Message("system", template.format(title=title, limit=limit))


def _open(name: str, template: str, brief: Brief, task: Task) -> list[Message]:
    return [_system(name, template, brief), Message("user", _problem(task))]


def _hand_on(action: Action, brief: Brief) -> str:
    return text.cut_middle(action.content, brief.handoff_characters)


MATHCHAT = Workflow("mathchat", ROLES, mathchat)
