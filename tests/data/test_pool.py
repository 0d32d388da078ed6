"""Which tasks a step gets: subset, epochs, mixture, resumption."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from mappa_jax.data import DataError, TaskStream
from mappa_jax.data.pool import draw_subset, subset_indices
from mappa_jax.types import Task


def _tasks(count, source="a"):
    return tuple(Task(f"{source}{i}", f"p{i}", source=source) for i in range(count))


def _stream(*sizes, weights=None, step=4, seed=0):
    sources = tuple(_tasks(n, "abc"[i]) for i, n in enumerate(sizes))
    return TaskStream(sources, weights or (1.0,) * len(sizes), step, seed)


def _ids(stream, steps):
    return [task.id for step in steps for task in stream.batch(step)]


def test_the_subset_of_the_reference_experiment():
    indices = subset_indices(933, 512, 42)
    expected = np.random.RandomState(42).permutation(933)[:512]
    assert sorted(expected) == list(indices)
    assert len(set(indices)) == 512 and list(indices) == sorted(indices)


def test_a_subset_keeps_order_and_source():
    first, second = draw_subset((_tasks(50, "a"), _tasks(50, "b")), 60, seed=1)
    assert len(first) + len(second) == 60
    for kept, source in ((first, "a"), (second, "b")):
        assert kept == tuple(t for t in _tasks(50, source) if t in kept)


def test_a_subset_larger_than_the_pool_is_refused():
    with pytest.raises(DataError, match="data.subset=11 exceeds the 10"):
        draw_subset((_tasks(10),), 11, seed=1)


def test_each_task_once_per_epoch_also_when_steps_span_epochs():
    drawn = _ids(_stream(10), range(10))  # 40 = 4 epochs of 10
    epochs = [drawn[i : i + 10] for i in range(0, 40, 10)]
    everything = sorted(t.id for t in _tasks(10))
    assert [sorted(epoch) for epoch in epochs] == [everything] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4  # each in an order of its own


def test_steps_are_addressed_not_consumed():
    stream = _stream(10, 5)
    forwards = [_ids(stream, [s]) for s in range(9)]
    backwards = [_ids(_stream(10, 5), [s]) for s in reversed(range(9))]
    assert forwards == backwards[::-1]


def test_the_seed_decides_the_order():
    assert _ids(_stream(10), range(5)) == _ids(_stream(10), range(5))
    assert _ids(_stream(10), range(5)) != _ids(_stream(10, seed=1), range(5))


def test_a_mixture_keeps_its_weights_and_its_epochs():
    drawn = _ids(_stream(6, 6, weights=(2.0, 1.0), step=3), range(12))
    counts = collections.Counter(name[0] for name in drawn)
    assert counts == {"a": 24, "b": 12}
    for source in "ab":
        own = [name for name in drawn if name[0] == source]
        assert all(len(set(own[i : i + 6])) == 6 for i in range(0, len(own), 6))


@pytest.mark.parametrize("step", [0, 11])
def test_impossible_steps_are_refused(step):
    with pytest.raises(DataError, match=f"data.prompts_per_step={step} must be"):
        _stream(10, step=step)


def test_an_empty_source_is_refused():
    with pytest.raises(DataError, match="source number 2 has no problems"):
        _stream(10, 0)


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="counted from 0"):
        _stream(10).batch(-1)


def test_a_state_restores_the_position():
    state = json.loads(json.dumps(_stream(10, 5).state(7)))
    assert _stream(10, 5).restore(state) == 7


@pytest.mark.parametrize(
    "changed, field",
    [
        ({"seed": 1}, "seed"),
        ({"prompts_per_step": 5}, "prompts_per_step"),
        ({"weights": (1.0, 2.0)}, "fingerprint"),
        ({"sources": (_tasks(10), _tasks(6, "b"))}, "fingerprint"),
        ({"sources": (_tasks(10)[::-1], _tasks(5, "b"))}, "fingerprint"),
    ],
)
def test_other_data_are_refused_on_resumption(changed, field):
    stream = _stream(10, 5)
    other = dataclasses.replace(stream, **changed)
    with pytest.raises(DataError, match=f"differ in '{field}'"):
        other.restore(stream.state(3))
