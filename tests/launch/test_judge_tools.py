"""launch/judge_report.py and launch/rejudge.py on a run that was really trained."""

import dataclasses
import json
import shutil

import pytest

from mappa_jax import records
from mappa_jax.types import Missing, MissingReason


@pytest.fixture(scope="module", name="trained")
def trained_fixture(trained, tmp_path_factory):
    copy = tmp_path_factory.mktemp("judged") / "run"
    return shutil.copytree(trained, copy)


@pytest.fixture(scope="module")
def reported(launch, trained):
    done = launch("judge_report.py", f"--workdir={trained}")
    assert done.returncode == 0, done.stderr
    return json.loads((trained / "judge_report.json").read_text()), done.stdout


def test_the_report_covers_every_agent(reported, trained):
    report, said = reported
    found = records.read_trajectories(records.training_path(trained, 1))
    for name, row in report["agents"].items():
        actions = [a for t in found for a in t.actions if a.agent == name]
        assert row["actions"] == len(actions)
        assert name in said
    assert set(report["agents"]) == {"solver", "coder", "verifier"}
    assert report["missing"] == {} and report["drift"] == []


def test_steps_that_are_not_there_are_named(launch, trained):
    done = launch("judge_report.py", f"--workdir={trained}", "--steps=7:9")
    assert done.returncode == 2
    assert "7:9" in done.stderr


def test_the_same_judge_again_agrees_with_itself(launch, trained):
    done = launch("rejudge.py", f"--workdir={trained}")
    assert done.returncode == 0, done.stderr
    before = records.read_trajectories(records.training_path(trained, 1))
    path = trained / "rejudged" / records.training_path("", 1).name
    after = records.read_trajectories(path)
    scores = [[v.score for t in run for v in t.verdicts] for run in (before, after)]
    assert scores[0] == scores[1]
    assert "disputed" not in done.stdout


def test_what_was_scored_again_is_kept(launch, trained):
    """A second time is numbered; who was not asked about is as the run has it."""
    path = records.training_path(trained, 1)
    before = path.read_text()
    first, *rest = records.read_trajectories(path)
    call = first.verdicts[0].call
    actions = (dataclasses.replace(first.actions[0], fault="it died"),)
    gone = (Missing(MissingReason.INFRASTRUCTURE, "the sandbox died", call),)
    first = dataclasses.replace(
        first,
        actions=actions + first.actions[1:],
        verdicts=gone + first.verdicts[1:],
    )
    records.write_trajectories(path, [first, *rest])
    try:
        done = launch("rejudge.py", f"--workdir={trained}")
    finally:
        path.write_text(before)
    assert done.returncode == 0, done.stderr
    assert "1 x infrastructure: the sandbox died" in done.stdout
    name = records.training_path("", 1).name
    assert (trained / "rejudged" / name).exists()  # of the test above
    (again, *_) = records.read_trajectories(trained / "rejudged" / "2" / name)
    assert again.verdicts[0] == gone[0]


def test_an_ensemble_can_be_had_and_left(launch, trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    members = "--judge.members=rubric,openai:m"
    done = launch(
        "rejudge.py", f"--workdir={workdir}", "--judge.provider=ensemble", members
    )
    assert done.returncode == 2 and "OPENAI_API_KEY" in done.stderr
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    config["judge"] |= {"provider": "ensemble", "members": "openai:m,rubric"}
    config["judge"]["replay"] = "gone.jsonl"
    path.write_text(json.dumps(config))
    done = launch("rejudge.py", f"--workdir={workdir}", "--judge.provider=rubric")
    assert done.returncode == 0, done.stderr


def test_another_judge_is_checked_like_a_config(launch, trained):
    done = launch("rejudge.py", f"--workdir={trained}", "--judge.provider=oracle")
    assert done.returncode == 2
    assert "judge.provider" in done.stderr
    done = launch("rejudge.py", f"--workdir={trained}", "--judge.provider=openai")
    assert done.returncode == 2
    assert "OPENAI_API_KEY" in done.stderr
