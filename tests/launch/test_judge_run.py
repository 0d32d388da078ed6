"""A run with a paid judge: killed, resumed, replayed."""

import collections
import hashlib
import json
import random
import signal
import subprocess
import time

import pytest

from mappa_jax import records

STEPS = 3
pytestmark = pytest.mark.slow


def judged(address):
    return {
        "steps": STEPS,
        "judge.provider": "openai",
        "judge.model": "m",
        "judge.base_url": address,
        "judge.form": "auto",
        "judge.concurrency": 4,
        "judge.duplicates": 0.0,  # second opinions have the prompt of the first
    }


def answered(workdir):
    """The hashes of the prompts whose answers are in the ledger."""
    path = workdir / "judge_ledger.jsonl"
    if not path.exists():
        return set()
    whole = [line for line in path.read_text().splitlines(True) if line.endswith("\n")]
    calls = (json.loads(line).get("call") for line in whole)
    return {call["prompt"] for call in calls if call and call["outcome"] == "answered"}


def digest(prompt):
    return hashlib.sha256(prompt.encode()).hexdigest()


@pytest.fixture(scope="module")
def killed(server, command, train_arguments, train, tmp_path_factory):
    """Killed at some moment after its first verdicts, and run again to its end."""
    seed = random.SystemRandom().randrange(10**6)
    moment = random.Random(seed).randrange(8, 30)
    print(f"killed after {moment} answers: seed {seed}")
    workdir = tmp_path_factory.mktemp("killed") / "run"
    arguments = train_arguments(workdir, **judged(server.address))
    made = command("train.py", *arguments)
    process = subprocess.Popen(
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **made
    )
    deadline = time.monotonic() + 240
    while len(server.prompts) < moment and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before, known = len(server.prompts), answered(workdir)
    done = train(workdir, **judged(server.address))
    assert done.returncode == 0, done.stderr
    return workdir, server.prompts[before:], known


def test_a_run_that_was_killed_pays_for_no_verdict_twice(killed):
    workdir, again, known = killed
    assert known, "it was killed too early to say"
    asked = [digest(p) for p in again if "test of the connection" not in p]
    assert not known & set(asked)
    assert max(collections.Counter(asked).values()) == 1
    found = [
        v
        for step in range(1, STEPS + 1)
        for t in records.read_trajectories(records.training_path(workdir, step))
        for v in t.verdicts
    ]
    assert len(found) >= STEPS * 4 * 3
    assert len({v.score for v in found}) > 3


def test_a_replay_needs_no_network_and_gives_the_same(killed, server, train, tmp_path):
    """Other settings of how it is called may differ; what it is may not."""
    workdir, _, _ = killed
    ledger = workdir / "judge_ledger.jsonl"
    asked = len(server.prompts)
    settings = judged(server.address) | {"judge.replay": ledger, "judge.concurrency": 9}
    done = train(tmp_path / "again", **settings)
    assert done.returncode == 0, done.stderr
    assert len(server.prompts) == asked
    for step in range(1, STEPS + 1):
        one, other = (
            records.read_trajectories(records.training_path(folder, step))
            for folder in (workdir, tmp_path / "again")
        )
        scores = [[v.score for t in run for v in t.verdicts] for run in (one, other)]
        assert scores[0] == scores[1]
    rows = [
        [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (workdir, tmp_path / "again")
    ]
    for one, other in zip(*rows, strict=True):
        for name in one:
            if name.startswith("agents/"):
                assert one[name] == other[name], name


def test_at_its_budget_a_run_saves_and_goes_on_when_it_is_raised(
    server, train, tmp_path
):
    workdir = tmp_path / "run"
    settings = judged(server.address) | {"seed": 7}
    done = train(workdir, **settings, **{"judge.budget.calls": 20})
    assert done.returncode == 2
    assert "judge.budget.calls=20" in done.stderr and "raise it" in done.stderr
    assert (workdir / "checkpoints" / "1").is_dir()
    done = train(workdir, **settings, **{"judge.budget.calls": 200})
    assert done.returncode == 0, done.stderr
    assert "20 calls" not in done.stderr
