"""Data science: engineer -> modeller -> analyst (METHOD.md, "Data science").

They share a work folder in which files stay from turn to turn and from agent to agent.
Each owes the others certain files, sees the task, the files that are there and what
the agent before it has left, writes Python, sees what it printed, and may go on. Its
turns end when its files are there and it says so, or at their limit. What counts is
the submission that lies in the folder in the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mappa_jax import text
from mappa_jax.types import (
    Action,
    FileTooLarge,
    Message,
    Observation,
    Outcome,
    Role,
    Task,
    ToolFault,
)
from mappa_jax.workflows.base import (
    Agent,
    Brief,
    Team,
    Tools,
    Workflow,
    Workspace,
    first_messages,
    render_observation,
)

SUBMISSION = "submission.csv"
MAX_SUBMISSION_BYTES = 64 * 1024 * 1024
MAX_TURNS = 4

ROLES = (
    Role(
        "engineer",
        "data engineer",
        "reads the data and turns them into features and target",
        max_turns=MAX_TURNS,
        uses_tool=True,
        makes=("X_train.pkl", "y_train.pkl", "X_test.pkl"),
    ),
    Role(
        "modeller",
        "modeller",
        "fits a model to the engineer's features",
        max_turns=MAX_TURNS,
        uses_tool=True,
        makes=("model.pkl",),
    ),
    Role(
        "analyst",
        "analyst",
        "predicts with the model and writes the submission",
        max_turns=MAX_TURNS,
        uses_tool=True,
        makes=(SUBMISSION,),
    ),
)
SINGLE_ROLES = (
    Role(
        "single",
        "data scientist",
        "does the whole task",
        max_turns=3 * MAX_TURNS,
        uses_tool=True,
        makes=(SUBMISSION,),
    ),
)

_PLACE = (
    "You are the {title} of a team of three that works on one task in one folder: the "
    "data engineer saves X_train.pkl, y_train.pkl and X_test.pkl, the modeller saves "
    "model.pkl, the analyst saves submission.csv. "
)
_ALONE = "You are a data scientist who works alone on a task in a folder. "
_DUTIES = {
    "engineer": (
        "Read the CSV files with pandas, turn every column into numbers, fill what is "
        "missing, and treat test rows exactly as training rows. Save the features of "
        "the training rows as X_train.pkl, the target as y_train.pkl and the features "
        "of the test rows, in their order, as X_test.pkl (pandas.to_pickle)."
    ),
    "modeller": (
        "Load X_train.pkl and y_train.pkl, fit a model of scikit-learn that suits the "
        "metric, look at its cross-validated score, and save it, fitted, as model.pkl "
        "(joblib.dump)."
    ),
    "analyst": (
        "Load model.pkl and X_test.pkl, predict, and write submission.csv with exactly "
        "the columns and the ids that the task asks for, one row per test row."
    ),
    "single": (
        "Read the CSV files with pandas, fit a model of scikit-learn that suits the "
        "metric, predict the test rows, and write submission.csv with exactly the "
        "columns and the ids that the task asks for."
    ),
}
_RULES = (
    " Write one ```python block in each turn; it runs in the folder, and you see what "
    "it prints. You have {turns} turns of {limit} tokens. When {files} there and you "
    "have nothing to mend, write DONE on a line of its own."
)
_DONE = re.compile(r"^\W*DONE\W*$", re.MULTILINE)
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)

# One worked task, as each agent would meet it (workflow.example).
_EXAMPLE_TASK = (
    "Predict the column `y` of test.csv, a number, from `x`. Metric: rmse. Write "
    "submission.csv with the columns id and y."
)
_EXAMPLE_FILES = ("sample_submission.csv", "test.csv", "train.csv")
_EXAMPLE_CODE = {
    "engineer": (
        "import pandas as pd\n"
        'train, test = pd.read_csv("train.csv"), pd.read_csv("test.csv")\n'
        'train[["x"]].fillna(0).to_pickle("X_train.pkl")\n'
        'train["y"].to_pickle("y_train.pkl")\n'
        'test[["x"]].fillna(0).to_pickle("X_test.pkl")\n'
        "print(train.shape, test.shape)"
    ),
    "modeller": (
        "import joblib, pandas as pd\n"
        "from sklearn.ensemble import RandomForestRegressor\n"
        'X, y = pd.read_pickle("X_train.pkl"), pd.read_pickle("y_train.pkl")\n'
        'joblib.dump(RandomForestRegressor().fit(X, y), "model.pkl")\n'
        "print(X.shape)"
    ),
    "analyst": (
        "import joblib, pandas as pd\n"
        'model, X = joblib.load("model.pkl"), pd.read_pickle("X_test.pkl")\n'
        'ids = pd.read_csv("test.csv")["id"]\n'
        'out = pd.DataFrame({"id": ids, "y": model.predict(X)})\n'
        'out.to_csv("submission.csv", index=False)\n'
        "print(out.shape)"
    ),
}


def first_chat(
    role: Role,
    task: Task,
    files: Sequence[str],
    handed: tuple[Role, Action] | None,
    brief: Brief,
) -> list[Message]:
    """What an agent sees on its first turn.

    Args:
      role: its role.
      task: the task.
      files: names of all files that it can read.
      handed: the role before it and that role's last action, or None.
      brief: budgets, turns, and whether to show a worked example.
    """
    place = _ALONE if role.name == "single" else _PLACE.format(title=role.title)
    there = "it is" if len(role.makes) == 1 else "all of your files are"
    rules = _RULES.format(
        turns=brief.max_turns[role.name],
        limit=brief.token_limits[role.name],
        files=there,
    )
    asked = f"Task:\n{task.prompt}\n\nFiles: {text.shown_names(files) or 'none'}"
    if handed is not None:
        before, action = handed
        left = brief.cut(action.content, brief.handoff_tokens)
        asked += f"\n\n{before.title.capitalize()}:\n{left}"
        if action.observation is not None:
            printed = render_observation(action.observation, brief)
            asked += f"\n\nOutput of its code:\n{printed}"
    system = place + _DUTIES[role.name] + rules
    return first_messages(system, _example(role), asked, brief)


def _example(role: Role) -> list[Message]:
    code = _EXAMPLE_CODE.get(role.name)
    if code is None:
        return []
    made = [name for r in ROLES[: ROLES.index(role)] for name in r.makes]
    files = ", ".join([*_EXAMPLE_FILES, *made])
    return [
        Message("user", f"Task:\n{_EXAMPLE_TASK}\n\nFiles: {files}"),
        Message("assistant", f"```python\n{code}\n```\nDONE"),
    ]


def says_done(content: str) -> bool:
    """Whether the word DONE stands on a line of its own, outside code."""
    return _DONE.search(_CODE.sub("", content)) is not None


async def datascience(task: Task, team: Team, tools: Tools, brief: Brief) -> None:
    """Runs the team on one task; every action is recorded in order."""
    await _run(ROLES, task, team, tools, brief)


async def datascience_single(
    task: Task, team: Team, tools: Tools, brief: Brief
) -> None:
    """One agent that does the whole task: what the team has to be compared with."""
    await _run(SINGLE_ROLES, task, team, tools, brief)


async def _run(roles: Sequence[Role], task, team, tools, brief) -> None:
    owed = [name for role in roles for name in role.makes]
    async with tools.workspace(task.files, owed) as workspace:
        handed, files = None, ()
        for role in roles:
            last = role is roles[-1]
            episode = _Turns(role, task, team, tools, workspace, brief, last)
            with team[role.name].conversation() as agent:
                action, files = await episode.take(agent, handed, files)
            handed = (role, action)


class _Turns:
    """The turns of one agent in one episode."""

    def __init__(self, role, task, team, tools, workspace, brief, is_last):
        self._role, self._task, self._team, self._brief = role, task, team, brief
        self._tools: Tools = tools
        self._workspace: Workspace = workspace
        self._is_last = is_last

    async def take(
        self,
        agent: Agent,
        handed: tuple[Role, Action] | None,
        files: tuple[str, ...],
    ) -> tuple[Action, tuple[str, ...]]:
        """Acts until it has done its part; its last action and the files then."""
        role, brief = self._role, self._brief
        seen_files = sorted({*self._task.files, *files})
        messages = first_chat(role, self._task, seen_files, handed, brief)
        turns = brief.max_turns[role.name]
        for turn in range(turns):
            action = await agent.act(messages)
            action = await self._observe(action)
            if action.observation is not None:
                files = action.observation.files
            missing = [name for name in role.makes if name not in files]
            done = says_done(action.content) or action.code is None
            if (done and not missing) or turn + 1 == turns:
                break
            messages += [
                Message("assistant", brief.cut(action.content, brief.handoff_tokens)),
                Message(brief.tool_role, _feedback(action.observation, missing, brief)),
            ]
        return action, files

    async def _observe(self, action: Action) -> Action:
        """Runs the action's code, grades what it left if it counts, and records it."""
        code = text.extract_code(action.content)
        observation = outcome = None
        try:
            if code is not None:
                observation = await self._workspace.run(code)
            if self._is_last:
                outcome = await self._grade()
        except ToolFault as e:
            self._team.record(action, code=code, fault=str(e))
            raise
        return self._team.record(
            action, code=code, observation=observation, outcome=outcome
        )

    async def _grade(self) -> Outcome | None:
        try:
            left = await self._workspace.read(SUBMISSION, MAX_SUBMISSION_BYTES)
        except FileTooLarge as e:
            return Outcome(0.0, report=str(e))
        submission = None if left is None else left.decode("utf-8", errors="replace")
        return await self._tools.grade(self._task, submission)


def _feedback(
    observation: Observation | None, missing: Sequence[str], brief: Brief
) -> str:
    """What an agent is told between two of its turns."""
    if observation is None:
        said = "There was no ```python block, so nothing was run."
    else:
        said = render_observation(observation, brief)
    if missing:
        return f"{said}\n\nStill missing: {', '.join(missing)}."
    return f"{said}\n\nYour files are there. Mend them, or write DONE."


DATASCIENCE = Workflow("datascience", ROLES, datascience)
DATASCIENCE_SINGLE = Workflow("datascience_single", SINGLE_ROLES, datascience_single)
