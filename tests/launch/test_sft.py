"""launch/sft.py: a team learns from traces, goes on, and starts a run."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from mappa_jax.traces import Trace, write_traces
from mappa_jax.types import Message

SAID = {"solver": "{a}+{b}={c}", "coder": "print({a}+{b})", "verifier": "{c}"}


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """Sums of digits, as each of the team would do them."""
    path = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    rows = [
        Trace(agent, (Message("user", f"{a}+{b}?"),), said.format(a=a, b=b, c=a + b))
        for a, b in [(i % 10, 7 * i % 10) for i in range(40)]
        for agent, said in SAID.items()
    ]
    write_traces(path, rows)
    return path


@pytest.fixture(scope="module")
def tune(launch, traces, cache):
    def run(workdir, *more):
        return launch(
            "sft.py",
            *("--config=configs/tiny.py", f"--traces={traces}", f"--cache_dir={cache}"),
            *(f"--workdir={workdir}", "--epochs=2", "--learning_rate=0.01"),
            *("--held_out=0.2", *more),
        )

    return run


@pytest.fixture(scope="module")
def tuned(tune, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sft") / "run"
    done = tune(workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def metrics(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


def weights(workdir, agent):
    return load_file(workdir / "agents" / agent / "model-00001.safetensors")


def test_every_agent_learns_what_it_was_shown(tuned):
    workdir, _ = tuned
    rows = metrics(workdir)
    assert [row["step"] for row in rows] == [0, 1, 2]
    for agent in SAID:
        held_out = [row[f"agents/{agent}/nll_held_out"] for row in rows]
        assert held_out[2] < held_out[1] < held_out[0] - 1
        assert rows[1][f"agents/{agent}/updates"] == 4  # of 32 traces, 8 at a time
        assert rows[1][f"agents/{agent}/tokens"] > 32


def test_it_goes_on_where_it_stopped(tuned, tune, tmp_path):
    """Without its last epoch: the same weights to the bit."""
    workdir = tmp_path / "run"
    shutil.copytree(tuned[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "2")
    shutil.rmtree(workdir / "agents")
    done = tune(workdir)
    assert done.returncode == 0, done.stderr
    assert metrics(workdir) == metrics(tuned[0])
    for agent in SAID:
        again, first = weights(workdir, agent), weights(tuned[0], agent)
        assert again.keys() == first.keys()
        for name in first:
            np.testing.assert_array_equal(again[name], first[name])


def test_other_traces_are_refused(tuned, tune, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tuned[0], workdir)
    done = tune(workdir, "--held_out=0.1")
    assert done.returncode == 2
    assert "other traces" in done.stderr and "Traceback" not in done.stderr


def test_an_agent_without_traces_is_refused(launch, traces, cache, tmp_path):
    path = tmp_path / "solver.jsonl"
    lines = traces.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if '"solver"' in x))
    done = launch(
        "sft.py",
        *("--config=configs/tiny.py", f"--traces={path}", f"--cache_dir={cache}"),
        f"--workdir={tmp_path / 'run'}",
    )
    assert done.returncode == 2
    assert "config.agents.coder: there is no trace" in done.stderr


def test_a_team_starts_from_it(tuned, launch, train_arguments, tmp_path):
    """As it says at its end; the reference policy is what was tuned."""
    said = [x for x in tuned[1].splitlines() if x.startswith("--config.agents.")]
    assert len(said) == 3
    done = launch("train.py", *train_arguments(tmp_path / "run"), *said)
    assert done.returncode == 0, done.stderr
    (row,) = metrics(tmp_path / "run")
    assert abs(row["agents/solver/kl"]) < 1e-5 < row["agents/solver/grad_norm"]


def test_its_objective_trains_no_team(launch, train_arguments, tmp_path):
    arguments = train_arguments(tmp_path, **{"objective.loss": "likelihood"})
    done = launch("train.py", *arguments)
    assert done.returncode == 2
    assert "config.objective.loss" in done.stderr
