"""launch/train.py --profile_steps."""

import json

import pytest


def test_iterations_are_traced(launch, train_arguments, tmp_path):
    workdir = tmp_path / "run"
    arguments = train_arguments(workdir, steps=3)
    done = launch("train.py", *arguments, "--profile_steps=2")
    assert done.returncode == 0, done.stderr
    (trace,) = (workdir / "profile").glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 0
    path = workdir / "profile" / "timeline.json"
    events = json.loads(path.read_text())["traceEvents"]
    spans = [event["name"] for event in events if event["ph"] == "X"]
    for name in ("rollout", "verdicts", "pack", "credit", "update", "decode"):
        assert name in spans
    assert spans.count("update") == 1
    tracks = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert tracks >= {"train", "engine", "judge"}


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("last", "--profile_steps=last: expected first:last"),
        ("2:3", "--profile_steps=2:3: config.steps=1"),
        ("5:3", "--profile_steps=5:3: the last comes before the first"),
    ],
)
def test_steps_that_are_none_are_refused(
    launch, train_arguments, tmp_path, steps, said
):
    done = launch("train.py", *train_arguments(tmp_path), f"--profile_steps={steps}")
    assert done.returncode == 2
    assert said in done.stderr
