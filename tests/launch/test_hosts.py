"""Runs on several hosts: real processes on this machine, joined by JAX."""

import json
import signal
import socket
import subprocess
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mappa_jax import records

STEPS = 3
ONE_LOST = 60.0  # seconds in which the others must have noticed


def settings(server):
    return {
        "steps": STEPS,
        "packing.rows": 4,
        "mesh.data": 2,
        "mesh.fsdp": 2,
        "mesh.tensor": 2,
        "judge.provider": "openai",
        "judge.model": "m",
        "judge.base_url": server.address,
        "judge.form": "fenced",
        "judge.concurrency": 4,
        "judge.forecast": 0,
        "eval.at_end": True,
    }


@pytest.fixture
def start(command, train_arguments, server):
    """(workdir, how many) -> processes of eight devices together."""
    running = []

    def go(workdir, count, **changes):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        arguments = train_arguments(workdir, **settings(server) | changes)
        for index in range(count):
            by_hand = (
                *("--coordinator_address", address, "--num_processes", count),
                *("--process_id", index, "--heartbeat_seconds", 20),
            )
            made = command("train.py", *arguments, *(by_hand if count > 1 else ()))
            devices = f"--xla_force_host_platform_device_count={8 // count}"
            made["env"] |= {"XLA_FLAGS": devices}
            running.append(
                subprocess.Popen(**made, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            )
        return running[-count:]

    yield go
    for process in running:
        process.kill()
        process.communicate()


def ends(processes, timeout=300.0):
    """(exit code, stderr) of each."""
    said = [process.communicate(timeout=timeout)[1] for process in processes]
    codes = [process.returncode for process in processes]
    return list(zip(codes, said, strict=True))


def wait_for_step(workdir, step, processes):
    """Returns when an iteration's trajectories are on disk."""
    path = records.training_path(workdir, step)
    while not path.exists():
        assert all(p.poll() is None for p in processes), ends(processes)
        time.sleep(0.05)


def state_of(workdir):
    """(step, arrays by name) of the last checkpoint, on whatever devices it lay."""
    folder = (workdir / "checkpoints").resolve()
    step = max(int(p.name) for p in folder.iterdir() if p.name.isdigit())
    reader = ocp.PyTreeCheckpointer()
    tree = reader.metadata(folder / str(step) / "state").item_metadata.tree
    how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    found = reader.restore(folder / str(step) / "state", restore_args=how)
    leaves = jax.tree.leaves_with_path(found)
    return step, {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def assert_same_run(workdir, other):
    """The same weights, trajectories, verdicts and numbers; each written once."""
    (step, state), (last, expected) = state_of(workdir), state_of(other)
    assert step == last == STEPS
    for name, want in expected.items():
        # Gradients are sums, whose order over the hosts may be another; and where one
        # is nearly nothing Adam makes a step of usual size of it all the same.
        np.testing.assert_allclose(
            state[name], want, rtol=1e-5, atol=1e-5 * np.abs(want).max(), err_msg=name
        )
    for number in range(1, STEPS + 1):
        pair = [
            records.read_trajectories(records.training_path(w, number))
            for w in (workdir, other)
        ]
        for one, two in zip(*pair, strict=True):
            assert (one.task.id, one.sample) == (two.task.id, two.sample)
            assert [v.score for v in one.verdicts] == [v.score for v in two.verdicts]
            for a, b in zip(one.actions, two.actions, strict=True):
                np.testing.assert_array_equal(a.token_ids, b.token_ids)
    lines = [
        [json.loads(line) for line in (w / "metrics.jsonl").read_text().splitlines()]
        for w in (workdir, other)
    ]
    assert [row["step"] for row in lines[0]] == [*range(1, STEPS + 1)]
    for one, two in zip(*lines, strict=True):
        for name in ("team/success", "judge/spent", "agents/coder/grad_norm"):
            assert one[name] == pytest.approx(two[name], rel=1e-4), name
    (mine,) = (workdir / "evaluations.jsonl").read_text().splitlines()
    (theirs,) = (other / "evaluations.jsonl").read_text().splitlines()
    assert mine == theirs


def answered(path):
    """Keys of the actions' calls that were made; every host also makes a probe."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    calls = [row["call"] for row in rows if "call" in row]
    return [call["key"] for call in calls if call["address"] and call["attempts"]]


@pytest.fixture(scope="module")
def alone(command, train_arguments, server, tmp_path_factory):
    """The workdir of the whole run on one host of eight devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    made = command("train.py", *train_arguments(workdir, **settings(server)))
    made["env"] |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(**made, capture_output=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_preempted_run_of_two_hosts_goes_on_on_one(alone, start, tmp_path):
    """SIGTERM to the second: both save at the same point and exit cleanly; one host
    then ends the run where an uninterrupted one ends, and pays for nothing twice."""
    workdir = tmp_path / "run"
    two = start(workdir, 2)
    wait_for_step(workdir, 2, two)  # so that the first is whole
    two[1].send_signal(signal.SIGTERM)
    for code, said in ends(two):
        assert code == 143, said
        assert "host 1 was told to stop; saved" in said
    step, _ = state_of(workdir)
    assert 1 <= step < STEPS
    ledgers = [workdir / f"judge_ledger{part}.jsonl" for part in ("", ".host1")]
    paid = [set(answered(path)) for path in ledgers]
    assert all(paid) and not paid[0] & paid[1]  # each its own share
    before = sum(len(answered(path)) for path in ledgers)

    ((code, said),) = ends(start(workdir, 1))
    assert code == 0, said
    assert_same_run(workdir, alone)
    everything = [key for path in ledgers for key in answered(path)]
    assert len(everything) == len(set(everything)) > before
    assert len(answered(alone / "judge_ledger.jsonl")) == len(everything)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_the_loss_of_a_host_ends_the_others_with_a_reason(
    alone, start, tmp_path, killed
):
    """Killed in the middle of an iteration; four hosts go on from the last
    checkpoint."""
    workdir = tmp_path / "run"
    two = start(workdir, 2)
    wait_for_step(workdir, 2, two)
    two[killed].kill()
    began = time.monotonic()
    code, said = ends(two)[1 - killed]
    assert time.monotonic() - began < ONE_LOST
    assert code not in (0, 143)
    if killed:  # without the coordinator JAX's own service may be first, and aborts
        assert code == 2, said
        assert "error: another host has gone" in said
        assert "it goes on from the last checkpoint" in said
    for code, said in ends(start(workdir, 4)):
        assert code == 0, said
    assert_same_run(workdir, alone)


OTHERS = {
    "lora": {
        "mode": "lora",
        "staleness": 1,
        "sampler.extend_buckets": (128,),
        "objective.old_logprobs": "recompute",
        "judge.forecast": 2,
    },
    "shared": {"mode": "shared", "mesh.agent": 2, "mesh.tensor": 1, "packing.rows": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", OTHERS)
def test_two_hosts_are_as_one(start, command, cache, tmp_path, mode):
    """Teams of other kinds, trained and then evaluated again."""
    one, two = tmp_path / "one", tmp_path / "two"
    for workdir, count in ((one, 1), (two, 2)):
        for code, said in ends(start(workdir, count, **OTHERS[mode])):
            assert code == 0, said
    assert_same_run(two, one)
    made = command(
        *("evaluate.py", f"--workdir={two}", f"--cache_dir={cache}"),
        *("--who=trained", "--mesh=1,1,1,1"),
    )
    done = subprocess.run(**made, capture_output=True, timeout=400)
    assert done.returncode == 0, done.stderr
    first, again = map(json.loads, (two / "evaluations.jsonl").read_text().splitlines())
    assert first["sources"] == again["sources"]


@pytest.mark.slow
def test_a_host_that_hangs_does_not_hang_the_others(start, tmp_path):
    workdir = tmp_path / "run"
    two = start(workdir, 2, steps=200)
    wait_for_step(workdir, 1, two)
    two[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    code = two[0].wait(timeout=3 * ONE_LOST)
    assert code != 0
    assert time.monotonic() - began < 2 * ONE_LOST


def test_half_of_the_flags_is_refused(launch, train_arguments, tmp_path):
    done = launch("train.py", *train_arguments(tmp_path / "run"), "--num_processes=2")
    assert done.returncode == 2
    assert "--coordinator_address, --process_id: give all" in done.stderr
