"""Which tasks a step gets: subset, epochs, mixture, resumption."""

import collections
import dataclasses
import json

import numpy as np
import pytest

from mappa_jax.data import DataError, TaskStream
from mappa_jax.data.pool import draw_subset, subset_indices, take_turns
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
        ({"stratify": True}, "stratify"),
    ],
)
def test_other_data_are_refused_on_resumption(changed, field):
    stream = _stream(10, 5)
    other = dataclasses.replace(stream, **changed)
    with pytest.raises(DataError, match=f"differ in '{field}'"):
        other.restore(stream.state(3))


# --- batches of typical kinds --------------------------------------------------


def _mixed(counts, source="a"):
    """A pool with so many tasks of each kind, kind after kind."""
    kinds = [k for k, count in enumerate(counts) for _ in range(count)]
    return tuple(
        Task(f"{source}{i}", f"p{i}", source=source, metadata={"kind": f"k{kind}"})
        for i, kind in enumerate(kinds)
    )


def _stratified(*pools, step, seed=0, weights=None):
    return TaskStream(pools, weights or (1.0,) * len(pools), step, seed, stratify=True)


def test_without_stratification_the_order_is_what_it_was():
    # Checkpoints address tasks by their place: these orders must never change.
    assert _ids(_stream(10), range(3)) == [
        *("a5", "a8", "a9", "a7", "a4", "a2", "a1", "a0", "a3", "a6"),
        *("a6", "a9"),
    ]
    assert _ids(_stream(10, 5, weights=(2.0, 1.0)), range(3)) == [
        *("a5", "a8", "b2", "a9", "a7", "b3", "a4", "a2", "b0", "a1", "a0", "b1"),
    ]


@pytest.mark.parametrize("counts", [(40, 24), (5, 3, 2), (31, 1, 7), (4,), (3, 3, 3)])
def test_stratified_batches_are_typical_and_epochs_whole(counts):
    pool, total = _mixed(counts), sum(counts)
    step = min(16, total)
    stream = _stratified(pool, step=step)
    drawn = [task for s in range(3 * total) for task in stream.batch(s)]
    for start in range(0, len(drawn), total):
        epoch = [task.id for task in drawn[start : start + total]]
        assert sorted(epoch) == sorted(task.id for task in pool)
    for start in range(0, len(drawn) - step, 3):
        found = collections.Counter(t.kind for t in drawn[start : start + step])
        for kind, count in enumerate(counts):
            assert abs(found[f"k{kind}"] - step * count / total) < 2


def test_where_the_proportions_come_out_even_every_batch_is_exact():
    stream = _stratified(_mixed((40, 24)), step=16)
    for step in range(12):
        kinds = collections.Counter(task.kind for task in stream.batch(step))
        assert kinds == {"k0": 10, "k1": 6}


def test_stratified_epochs_differ_and_depend_on_the_seed():
    pool = _mixed((6, 6))
    one, two = (_ids(_stratified(pool, step=12), [s]) for s in (0, 1))
    assert one != two and sorted(one) == sorted(two)
    assert one == _ids(_stratified(pool, step=12), [0])
    assert one != _ids(_stratified(pool, step=12, seed=1), [0])


def test_stratified_steps_are_addressed_not_consumed():
    pools = _mixed((6, 4)), _mixed((3, 2), "b")
    forwards = [_ids(_stratified(*pools, step=5), [s]) for s in range(9)]
    stream = _stratified(*pools, step=5)
    assert [_ids(stream, [s]) for s in reversed(range(9))] == forwards[::-1]


def test_a_stratified_mixture_keeps_its_weights_and_its_epochs():
    pools = _mixed((4, 2)), _mixed((3, 3), "b")
    drawn = _ids(_stratified(*pools, step=3, weights=(2.0, 1.0)), range(12))
    assert collections.Counter(name[0] for name in drawn) == {"a": 24, "b": 12}
    for source in "ab":
        own = [name for name in drawn if name[0] == source]
        assert all(len(set(own[i : i + 6])) == 6 for i in range(0, len(own), 6))


def test_the_kinds_are_of_a_stratified_pool_s_identity():
    one, other = (_stratified(_mixed(c), step=2) for c in ((4, 2), (3, 3)))
    with pytest.raises(DataError, match="differ in 'fingerprint'"):
        other.restore(one.state(1))
    plain = [dataclasses.replace(stream, stratify=False) for stream in (one, other)]
    assert plain[1].restore(plain[0].state(1)) == 1


def test_a_state_from_before_stratification_is_read():
    state = _stream(10).state(2)
    del state["stratify"]
    assert _stream(10).restore(state) == 2


@pytest.mark.parametrize("counts", [(1,), (1, 1), (7, 2), (100, 1, 1, 7, 30), (5, 5)])
def test_turns_never_stray_by_a_whole_one(counts):
    turns, total = take_turns(counts), sum(counts)
    had = [0] * len(counts)
    for turn, index in enumerate(turns, start=1):
        had[index] += 1
        for count, so_far in zip(counts, had, strict=True):
            assert abs(so_far * total - turn * count) < total
    assert tuple(had) == counts
