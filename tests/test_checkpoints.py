"""Saving and restoring a team's state, and what happens when that fails."""

import contextlib
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mappa_jax.checkpoints import CheckpointError, Checkpoints
from mappa_jax.config import CheckpointConfig
from mappa_jax.learning.update import GroupState, TeamState


def make_state(value: float) -> TeamState:
    weights = jnp.linspace(value, value + 1, 24, dtype=jnp.float32).reshape(2, 3, 4)
    moments = (jnp.asarray([3, 4], jnp.int32), {"mu": weights.astype(jnp.bfloat16)})
    group = GroupState(
        trainable={"layers": {"q": weights / 3}},
        opt_state=(moments, ()),
        updates=jnp.asarray([5, 6], jnp.int32),
        skipped=jnp.zeros((2,), jnp.int32),
    )
    # Between two groups, one that is not trained.
    beta = jnp.asarray([0.1, 0.3, 0.2], jnp.float32)
    other = group.replace(trainable={"embed": -weights})
    return TeamState(groups=(group, None, other), beta=beta)


def bits(state: TeamState) -> list[bytes]:
    group, none, other = state.groups
    assert none is None
    arrays = [
        group.trainable["layers"]["q"],
        group.opt_state[0][0],
        group.opt_state[0][1]["mu"],
        state.beta,
        group.updates,
        group.skipped,
        other.trainable["embed"],
    ]
    return [np.asarray(a).tobytes() for a in arrays]


@contextlib.contextmanager
def opened(folder, **config):
    checkpoints = Checkpoints(folder, CheckpointConfig(**config))
    yield checkpoints
    checkpoints.close()


def save(checkpoints, step, value=None, metrics=None):
    state = make_state(step if value is None else value)
    checkpoints.save(step, state, {"data": {"position": step}}, metrics or {})
    checkpoints.wait()


def steps_in(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def test_a_state_comes_back_bit_for_bit(tmp_path):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 7, 0.1)
    with opened(tmp_path) as checkpoints:
        assert checkpoints.latest() == 7
        state, extra = checkpoints.restore(7, make_state(99.0))
    assert bits(state) == bits(make_state(0.1))
    assert bits(state) != bits(make_state(99.0))
    assert state.groups[0].opt_state[0][1]["mu"].dtype == jnp.bfloat16
    assert extra == {"data": {"position": 7}}


def test_a_new_folder_has_no_step(tmp_path):
    with opened(tmp_path / "new") as checkpoints:
        assert checkpoints.latest() is None


def test_only_the_last_are_kept(tmp_path):
    with opened(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            save(checkpoints, step)
    assert steps_in(tmp_path) == [3, 4]


def test_the_best_is_kept_besides_the_last(tmp_path):
    with opened(tmp_path, keep=2, best_metric="eval/avg") as checkpoints:
        for step, score in ((1, 0.2), (2, 0.9), (3, 0.1), (4, 0.3), (5, 0.2)):
            save(checkpoints, step, metrics={"eval/avg": score, "other": 1.0})
        assert checkpoints.latest() == 5
    assert steps_in(tmp_path) == [2, 4, 5]


def test_steps_without_the_metric_neither_stay_nor_push_out_the_best(tmp_path):
    with opened(tmp_path, keep=1, best_metric="eval/avg") as checkpoints:
        save(checkpoints, 1, metrics={"eval/avg": 0.9})
        for step in (2, 3, 4):
            save(checkpoints, step)
    assert steps_in(tmp_path) == [1, 4]


def test_the_best_is_remembered_after_a_restart(tmp_path):
    settings = {"keep": 1, "best_metric": "eval/avg"}
    for step, score in ((1, 0.9), (2, 0.1), (3, 0.2)):
        with opened(tmp_path, **settings) as checkpoints:
            save(checkpoints, step, metrics={"eval/avg": score})
    assert steps_in(tmp_path) == [1, 3]


@pytest.mark.parametrize(
    ("full", "why"),
    [
        ("large files", "File too large"),
        ("files", "File too large"),
        ("folders", "No space left on device"),
    ],
)
def test_a_failed_save_names_the_folder_and_leaves_the_step_before(tmp_path, full, why):
    """And its process ends at once, whatever threads Orbax has left."""
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 1, 0.5)
    failed = subprocess.run(
        [sys.executable, Path(__file__).with_name("failed_save.py"), tmp_path, full],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert failed.returncode == 0, failed.stderr
    assert str(tmp_path) in failed.stdout
    assert why in failed.stdout
    assert "latest: 1" in failed.stdout
    assert "run the same command again" in failed.stdout
    with opened(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        state, _ = checkpoints.restore(1, make_state(0.0))
    assert bits(state) == bits(make_state(0.5))


def test_a_damaged_step_is_named_with_the_remedy(tmp_path):
    with opened(tmp_path) as checkpoints:
        save(checkpoints, 1, 0.5)
        save(checkpoints, 2)
    for path in (tmp_path / "2" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    with opened(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError) as e:
            checkpoints.restore(2, make_state(0.0))
        assert f"{tmp_path}/2" in str(e.value)
        assert "remove that folder" in str(e.value)
        state, _ = checkpoints.restore(1, make_state(0.0))
    assert bits(state) == bits(make_state(0.5))


def test_a_step_is_chosen(tmp_path):
    with opened(tmp_path, keep=2, best_metric="eval/x") as checkpoints:
        for step, value in ((1, 0.9), (2, 0.1), (3, 0.2)):
            save(checkpoints, step, metrics={"eval/x": value})
        chosen = {wanted: checkpoints.choose(wanted) for wanted in ("", "best", "2")}
        assert chosen == {"": 3, "best": 1, "2": 2}
        for wanted in ("4", "last", "-1"):
            with pytest.raises(CheckpointError, match=r"those are \[1, 2, 3\]"):
                checkpoints.choose(wanted)


def test_a_step_is_not_made_up(tmp_path):
    with opened(tmp_path) as checkpoints:
        with pytest.raises(CheckpointError, match="train first"):
            checkpoints.choose("")
        with pytest.raises(CheckpointError, match="kept no best one"):
            checkpoints.choose("best")
