"""launch/evaluate.py as a whole: the trained team, the untrained, a single agent."""

import json
import shutil
import uuid

import fsspec
import numpy as np
import pytest
from absl import flags

from mappa_jax.config import ConfigError
from mappa_jax.records import evaluation_path, read_trajectories

STEPS = {"trained": 1, "untrained": 0, "single": 0}
TEAM = {"solver", "coder", "verifier"}
PROBLEMS, SAMPLES = 2, 2


@pytest.fixture(scope="module")
def evaluated(launch, cache, trained, tmp_path_factory):
    """(workdir, what was printed)."""
    workdir = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "run")
    done = launch("evaluate.py", f"--workdir={workdir}", f"--cache_dir={cache}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


@pytest.fixture(scope="module")
def tried(evaluated):
    """The trajectories by who made them."""
    workdir, _ = evaluated
    return {
        who: read_trajectories(evaluation_path(workdir, step, f"{who}_chain_sum"))
        for who, step in STEPS.items()
    }


def test_everyone_tries_every_problem_and_is_graded(tried):
    for who, trajectories in tried.items():
        assert len(trajectories) == PROBLEMS * SAMPLES, who
        assert len({t.task.id for t in trajectories}) == PROBLEMS
        assert all(t.outcome is not None and t.verdicts == () for t in trajectories)
        agents = {a.agent for t in trajectories for a in t.actions}
        assert agents == ({"single"} if who == "single" else TEAM)


def test_the_trained_team_is_that_of_the_checkpoint(tried):
    """Greedy choices on the same prompt: they can differ by the weights alone."""
    first = {who: tried[who][0].actions[0] for who in ("trained", "untrained")}
    one, other = first["trained"], first["untrained"]
    np.testing.assert_array_equal(one.prompt_ids, other.prompt_ids)
    assert one.token_ids.tolist() != other.token_ids.tolist()


def test_the_single_agent_may_write_as_much_as_the_team(tried):
    budget = 16 * (1 + 2 + 1)  # max_new_tokens of every turn
    longest = max(len(t.actions[0].token_ids) for t in tried["single"])
    assert longest == budget
    assert all(len(t.actions) == 1 for t in tried["single"])


def test_the_same_on_other_devices(launch, cache, evaluated, tmp_path):
    """Of a run on one device, on two; and with more samples, of which the first are the
    same."""
    workdir = shutil.copytree(evaluated[0], tmp_path / "run")
    arguments = (f"--workdir={workdir}", f"--cache_dir={cache}", "--who=trained")
    path = evaluation_path(workdir, 1, "trained_chain_sum")
    before = [t.actions for t in read_trajectories(path)]
    devices = "--xla_force_host_platform_device_count=2"
    done = launch(
        "evaluate.py",
        *(*arguments, "--mesh=1,1,2,1", f"--samples={SAMPLES + 1}"),
        env={"XLA_FLAGS": devices},
    )
    assert done.returncode == 0, done.stderr
    tries = read_trajectories(path)
    assert len(tries) == PROBLEMS * (SAMPLES + 1)
    after = [t.actions for t in tries if t.sample < SAMPLES]
    for one, other in zip(before, after, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.token_ids, b.token_ids)


def test_the_numbers_are_kept_and_shown(evaluated, tried):
    workdir, said = evaluated
    lines = [
        json.loads(line)
        for line in (workdir / "evaluations.jsonl").read_text().splitlines()
    ]
    assert [(line["label"], line["step"]) for line in lines] == list(STEPS.items())
    for line in lines:
        found = line["sources"]["chain_sum"]
        scores = [t.outcome.score for t in tried[line["label"]]]
        assert found["avg"] == pytest.approx(np.mean(scores))
        assert found["avg_low"] <= found["avg"] <= found["avg_high"]
        assert (found["problems"], found["samples"]) == (PROBLEMS, len(scores))
        tokens = [
            sum(len(a.token_ids) for a in t.actions) for t in tried[line["label"]]
        ]
        assert found["tokens"] == pytest.approx(np.mean(tokens))
        shown = [row for row in said.splitlines() if f" {line['label']} " in row]
        row = shown[0]
        assert f"{found['avg']:.2f} [{found['avg_low']:.2f}" in row
        assert f"{found['pass']:.2f} [{found['pass_low']:.2f}" in row
    assert "held-out problems of chain_sum" in said


def test_what_was_evaluated_is_kept_where_the_run_is(
    launch_path, cache, trained, monkeypatch, tmp_path
):
    """Of a run in object storage, although the second evaluation fails."""
    known = set(flags.FLAGS)
    from mappa_jax.commands import evaluate

    added = set(flags.FLAGS) - known
    store, where = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}/run"
    store.put(f"{trained}/", where, recursive=True)
    flags.FLAGS(["evaluate.py", f"--workdir=memory:/{where}", f"--cache_dir={cache}"])
    done = []

    async def one(name, config, workdir, *rest):
        if done:
            raise ConfigError("no more")
        done.append(name)
        (workdir.local / "evaluations.jsonl").write_text("{}\n")
        return {}

    monkeypatch.setattr(evaluate, "_evaluate_one", one)
    try:
        with pytest.raises(ConfigError, match="no more"):
            evaluate.main(["evaluate.py"])
    finally:
        for name in added:
            delattr(flags.FLAGS, name)
    assert store.cat_file(f"{where}/evaluations.jsonl") == b"{}\n"
