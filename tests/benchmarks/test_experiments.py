"""The scripted teams of benchmarks/experiments, and who is blamed for their faults."""

import dataclasses
import sys
from pathlib import Path

import pytest
import scripts

from mappa_jax.answers import Grader
from mappa_jax.config import DataConfig, SandboxConfig
from mappa_jax.data.sources import load_tasks, parse_sources
from mappa_jax.testing import CALL, make_action
from mappa_jax.types import Outcome, Task, Trajectory, Verdict

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "experiments"
TEAM = ("solver", "coder", "verifier")


@pytest.fixture(scope="module")
def teams():
    return scripts.load(FOLDER / "teams.py")


@pytest.fixture(scope="module")
def credit(launch_path):
    sys.path.insert(0, str(FOLDER))
    yield scripts.load(FOLDER / "credit.py")
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def sums():
    params = {"chain_sum": dict(min_terms=2, max_terms=3, min_digits=1, max_digits=2)}
    (source,) = parse_sources("reasoning_gym:chain_sum")
    data = DataConfig(params=params, train_size=6, eval_size=1)
    return load_tasks(source, "train", data)


async def play(teams, tasks, faults):
    grader = Grader(workers=1, seconds=5.0)
    try:
        return await teams.play(
            "mathchat",
            tasks,
            teams.math_scripts(faults),
            grader=grader,
            sandbox=SandboxConfig(),
            max_turns=2,
        )
    finally:
        await grader.aclose()


async def test_a_team_without_faults_is_right(teams, sums):
    for trajectory in await play(teams, sums, teams.MathFaults()):
        solver, code, report, verifier = trajectory.actions
        assert trajectory.outcome.score == 1.0
        assert code.observation.stdout.strip() == trajectory.task.answer
        assert report.content == f"It printed {trajectory.task.answer}."
        assert f"The answer is {trajectory.task.answer}." in solver.content
        assert f"\\boxed{{{trajectory.task.answer}}}" in verifier.content


@pytest.mark.parametrize(
    ("fault", "right"),
    [
        ("wrong_sum", True),  # the executor computes it anew
        ("wrong_number", False),
        ("crash", False),
        ("no_code", False),
        ("miscopy", False),
        ("no_box", False),
    ],
)
async def test_every_fault_is_its_agents_own(teams, sums, fault, right):
    well = await play(teams, sums, teams.MathFaults())
    found = await play(teams, sums, teams.MathFaults(**{fault: 1.0}))
    for good, bad in zip(well, found, strict=True):
        changed = {
            a.agent
            for a, b in zip(bad.actions, good.actions, strict=False)
            if a.agent == b.agent and a.content != b.content
        }
        culprit = teams.MATH_FAULTS[fault]
        first = next(a.agent for a in bad.actions if a.agent in changed)
        assert first == culprit
        assert bad.outcome.score < 1 or right or good.task.answer == "0"


async def test_what_is_believed_goes_on(teams, sums):
    faults = teams.MathFaults(wrong_sum=1.0, trusting=True)
    found = await play(teams, sums, faults)
    assert not any(t.outcome.score == 1.0 for t in found)


def test_every_fault_of_the_data_team_changes_a_program(teams):
    programs = {
        "engineer": teams.ENGINEER,
        "modeller": teams.MODELLER,
        "analyst": teams.ANALYST,
    }
    for agent, there, instead in teams.DATA_FAULTS.values():
        assert programs[agent].count(there) == 1 and instead != there


def trajectory(number, scores, outcome):
    return Trajectory(
        task=Task(str(number), "?"),
        step=1,
        sample=0,
        actions=tuple(make_action(name, "x" * 9) for name in TEAM),
        verdicts=tuple(Verdict(score, "", CALL) for score in scores),
        outcome=Outcome(outcome),
    )


def test_blame_by_hand(credit):
    """The solver fails in the first of two trajectories, and is told so; the verifier's
    score falls by a third as much."""
    case = credit.Case(
        team="MathChat",
        fault="wrong",
        culprit="solver",
        trajectories=(
            trajectory(0, (0.0, 9.0, 6.0), 0.0),
            trajectory(1, (9.0, 9.0, 9.0), 1.0),
        ),
        faulty=(True, False),
    )

    def blame(scheme, estimator):
        return credit.blame(case, TEAM, credit.SCHEMES[scheme], estimator)

    found = blame("process", "agent_baseline")
    assert (
        found["all"]
        == found["faulty"]
        == pytest.approx({"solver": 0.75, "coder": 0.0, "verifier": 0.25})
    )
    # Whitened for each agent, a small difference weighs as much as a large one.
    assert blame("process", "reinforce_pp")["all"] == pytest.approx(
        {"solver": 0.5, "coder": 0.0, "verifier": 0.5}
    )
    third = pytest.approx(dict.fromkeys(TEAM, 1 / 3), abs=1e-4)
    assert blame("outcome to all", "agent_baseline")["all"] == third
    # What has no reward at all is as the batch's mean.
    assert blame("outcome to last", "agent_baseline")["all"] == {
        "solver": 0.0,
        "coder": 0.0,
        "verifier": 1.0,
    }
    same = dataclasses.replace(case, trajectories=(case.trajectories[1],) * 2)
    assert credit.blame(same, TEAM, {}, "reinforce_pp")["all"] is None
