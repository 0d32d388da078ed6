"""Sequences to rows: each is found again, sees its own tokens and nothing else."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mappa_jax.config import ConfigError, PackingConfig
from mappa_jax.learning.packing import Item, pack_rows

SMALL = PackingConfig(row_tokens=12, row_action_tokens=6, rows=1)
APART = dataclasses.replace(SMALL, share_prefixes=False)


def items(*sequences, actions=1):
    return [Item(i, np.asarray(s, np.int32), actions) for i, s in enumerate(sequences)]


def visible(row):
    """[n, n] bool: which keys each query sees (models/attention.attend_rows)."""
    index = np.arange(len(row.tokens))
    return (index[:, None] >= index) & (index[:, None] < row.ends)


def test_a_common_start_is_held_once():
    (row,) = pack_rows(items([7, 8, 1, 2], [7, 8, 3], [7, 9]), SMALL)
    np.testing.assert_array_equal(row.tokens, [7, 8, 1, 2, 3, 9])
    np.testing.assert_array_equal(row.positions, [0, 1, 2, 3, 2, 1])
    np.testing.assert_array_equal(row.ends, [6, 5, 4, 4, 5, 6])
    paths = {number: path.tolist() for number, path in row.placed}
    assert paths == {0: [0, 1, 2, 3], 1: [0, 1, 4], 2: [0, 5]}


def test_a_later_turn_extends_the_earlier():
    (row,) = pack_rows(items([5, 6, 7, 8, 9], [5, 6, 7]), SMALL)
    np.testing.assert_array_equal(row.tokens, [5, 6, 7, 8, 9])
    np.testing.assert_array_equal(row.ends, [5] * 5)


def test_equal_sequences_share_everything():
    (row,) = pack_rows(items([5, 6], [5, 6]), SMALL)
    np.testing.assert_array_equal(row.tokens, [5, 6])
    assert [path.tolist() for _, path in row.placed] == [[0, 1], [0, 1]]


def test_without_sharing_they_lie_side_by_side():
    (row,) = pack_rows(items([5, 6], [5, 6, 7]), APART)
    np.testing.assert_array_equal(row.tokens, [5, 6, 7, 5, 6])
    np.testing.assert_array_equal(row.ends, [3, 3, 3, 5, 5])


def test_the_room_for_action_tokens_counts():
    rows = pack_rows(items([5, 6], [5, 7], [5, 8], actions=3), SMALL)
    assert [len(row.placed) for row in rows] == [2, 1]


@pytest.mark.parametrize(("length", "actions"), [(13, 1), (2, 7)])
def test_what_fits_no_row_is_refused(length, actions):
    with pytest.raises(ConfigError, match="packing.row_tokens=12"):
        pack_rows(items(range(length), actions=actions), SMALL)


SEQUENCES = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=10), min_size=1, max_size=12
)


@settings(max_examples=200, deadline=None)
@given(sequences=SEQUENCES, share=st.booleans())
def test_every_sequence_sees_itself_and_nothing_else(sequences, share):
    config = SMALL if share else APART
    found = {}
    for row in pack_rows(items(*sequences), config):
        assert len(row.tokens) <= config.row_tokens
        seen = visible(row)
        for number, path in row.placed:
            want = sequences[number]
            found[number] = row.tokens[path].tolist()
            np.testing.assert_array_equal(row.positions[path], np.arange(len(want)))
            for depth, node in enumerate(path):
                np.testing.assert_array_equal(
                    np.flatnonzero(seen[node]), path[: depth + 1]
                )
    assert found == dict(enumerate(sequences))


@settings(max_examples=100, deadline=None)
@given(sequences=SEQUENCES)
def test_one_wide_row_holds_each_distinct_prefix_once(sequences):
    wide = PackingConfig(row_tokens=200, row_action_tokens=200, rows=1)
    (row,) = pack_rows(items(*sequences), wide)
    prefixes = {tuple(s[: n + 1]) for s in sequences for n in range(len(s))}
    assert len(row.tokens) == len(prefixes)
