"""The whole data-science pipeline with fixed texts in place of a model: real tables of
scikit-learn, the real sandbox, the real grader, the offline judge."""

import dataclasses
import pathlib
import textwrap

import pytest

from mappa_jax.config import AgentConfig, Config, DataConfig, SandboxConfig
from mappa_jax.data.sources import load_tasks, parse_sources
from mappa_jax.judges.rubric import RubricJudge
from mappa_jax.rollout import Stage, rollout
from mappa_jax.sampling.team import Seat
from mappa_jax.tabular.submission import SubmissionGrader, SubmissionSpec
from mappa_jax.testing import CharTokenizer, ScriptedEngine
from mappa_jax.text import cut_middle
from mappa_jax.tools import make_sandbox
from mappa_jax.workflows.base import brief, seated
from mappa_jax.workflows.datascience import DATASCIENCE

AGENTS = ("engineer", "modeller", "analyst")
SANDBOX = SandboxConfig(
    preload=("numpy", "pandas", "joblib", "sklearn.ensemble"),
    wall_seconds=20.0,
    cpu_seconds=3,
    memory_mb=1024,
    workers=2,
)

ENGINEER = """
import pandas as pd
train, test = pd.read_csv("train.csv"), pd.read_csv("test.csv")
both = pd.get_dummies(pd.concat([train.drop(columns={targets}), test]))
both = both.drop(columns="id").fillna(both.median(numeric_only=True))
both[: len(train)].to_pickle("X_train.pkl")
train[{targets}].to_pickle("y_train.pkl")
both[len(train) :].to_pickle("X_test.pkl")
print(both.shape)
"""
MODELLER = """
import joblib, pandas as pd
from sklearn.ensemble import {forest}
X, y = pd.read_pickle("X_train.pkl"), pd.read_pickle("y_train.pkl")
joblib.dump({forest}(random_state=0).fit(X, y.squeeze()), "model.pkl")
print(X.shape)
"""
ANALYST = """
import joblib, pandas as pd
model, X = joblib.load("model.pkl"), pd.read_pickle("X_test.pkl")
out = pd.DataFrame(model.predict(X), columns={targets})
out.insert(0, "id", pd.read_csv("test.csv")["id"])
out.to_csv("submission.csv", index=False)
print(out.head(2))
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A classification and a regression task, by kind."""
    config = DataConfig(cache_dir=str(tmp_path_factory.mktemp("tabular")))
    found = {}
    for name in ("wine", "diabetes"):
        (spec,) = parse_sources(f"tabular:{name}")
        for task in load_tasks(spec, "train", config):
            wanted = SubmissionSpec.from_dict(task.metadata["submission"])
            if wanted.metric in ("accuracy", "f1_macro", "rmse", "mae"):
                found.setdefault(task.kind, task)
    return found


def spec_of(task):
    return SubmissionSpec.from_dict(task.metadata["submission"])


def said(code, task):
    forest = {
        "classification": "RandomForestClassifier",
        "regression": "RandomForestRegressor",
    }[task.kind]
    filled = code.format(targets=list(spec_of(task).targets), forest=forest)
    return f"```python\n{textwrap.dedent(filled).strip()}\n```\nDONE"


async def play(task, turns=1, **lines):
    """The trajectory of a team that says `lines`, judged and graded."""
    well = {"engineer": ENGINEER, "modeller": MODELLER, "analyst": ANALYST}
    said_by = {
        name: [said(code, task) for code in lines.get(name, [well[name]])]
        for name in AGENTS
    }
    agent = AgentConfig(max_new_tokens=2000, max_turns=turns)
    config = Config(agents=dict.fromkeys(AGENTS, agent))
    sandbox = make_sandbox(SANDBOX)
    tokenizer = CharTokenizer()
    stage = Stage(
        workflow=seated(DATASCIENCE, config),
        brief=brief(config, cut_middle),
        seats={n: Seat(n, i, agent, tokenizer) for i, n in enumerate(AGENTS)},
        engine=ScriptedEngine(lambda who, where: said_by[AGENTS[who]][where[4]]),
        tools=sandbox,
        judge=RubricJudge(),
        grader=SubmissionGrader(),
        show_reference="last",
    )
    try:
        rolling = await rollout(
            stage, [task], samples=1, step=1, evaluation=False, on_done=lambda: None
        )
        rolled = await rolling.close()
    finally:
        await sandbox.aclose()
    return rolled.trajectories[0]


def scores(trajectory):
    return {a.agent: v.score for a, v in zip(*both(trajectory), strict=True)}


def both(trajectory):
    return trajectory.actions, trajectory.verdicts


@pytest.mark.parametrize("kind", ["classification", "regression"])
async def test_a_team_that_does_everything_right(tasks, kind):
    trajectory = await play(tasks[kind])
    assert [a.agent for a in trajectory.actions] == [*AGENTS]
    assert all(a.observation.ok for a in trajectory.actions)
    assert trajectory.outcome.score == 1.0 and trajectory.outcome.quality["gap"] > 0.5
    found = scores(trajectory)
    assert found["engineer"] == found["modeller"] == 9.0
    assert 4.0 + 2.5 < found["analyst"] <= 9.0
    made = [
        set(a.observation.files) - set(a.observation.files_before)
        for a in trajectory.actions
    ]
    assert made == [
        {"X_train.pkl", "y_train.pkl", "X_test.pkl"},
        {"model.pkl"},
        {"submission.csv"},
    ]
    assert trajectory.verdicts[-1].correct is True


async def test_who_forgets_a_file_is_blamed_and_not_who_misses_it(tasks):
    forgetful = "\n".join(
        line for line in ENGINEER.splitlines() if "X_test.pkl" not in line
    )
    trajectory = await play(tasks["classification"], engineer=[forgetful])
    found = scores(trajectory)
    assert found["engineer"] <= 2.0
    assert found["modeller"] == 9.0
    assert 3.0 <= found["analyst"] <= 5.0
    assert "owed by the data engineer" in trajectory.verdicts[-1].rationale
    assert trajectory.outcome.score == 0.0


async def test_who_loops_forever_is_blamed_and_named(tasks):
    trajectory = await play(tasks["classification"], modeller=["while True: pass"])
    assert trajectory.actions[1].observation.limit == "cpu_time"
    found = scores(trajectory)
    assert found["engineer"] == 9.0 and found["modeller"] == 0.5
    assert found["analyst"] == 4.0
    assert "cpu_time" in trajectory.verdicts[1].rationale


async def test_who_reads_the_answers_gets_nothing(tasks):
    task = tasks["classification"]
    thief = """
import os
path = {path!r}
for base, folders, names in os.walk("/"):
    if "answers.csv" in names: path = os.path.join(base, "answers.csv")
    folders[:] = set(folders) - set("lib packages proc site-packages usr".split())
open("submission.csv", "w").write(open(path).read())
"""
    thief = thief.replace("{path!r}", repr(spec_of(task).answers))
    assert pathlib.Path(spec_of(task).answers).read_text()  # it is there, out here
    trajectory = await play(
        task, engineer=[thief], modeller=["print(1)"], analyst=["print(1)"]
    )
    assert "FileNotFoundError" in trajectory.actions[0].observation.stderr
    assert trajectory.outcome.score == 0.0
    assert scores(trajectory)["engineer"] <= 2.0


async def test_a_second_turn_may_mend_the_first(tasks):
    task = dataclasses.replace(tasks["classification"])
    trajectory = await play(task, turns=2, engineer=["1 / 0", ENGINEER])
    assert [(a.agent, a.turn) for a in trajectory.actions] == [
        *(("engineer", 0), ("engineer", 1), ("modeller", 0), ("analyst", 0))
    ]
    assert trajectory.verdicts[0].score <= 2.0 < trajectory.verdicts[1].score
    assert trajectory.outcome.score == 1.0
