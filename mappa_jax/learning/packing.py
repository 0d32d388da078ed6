"""Sequences packed into rows of a fixed length, each shared prefix held once.

A row is a tree of tokens written in depth-first order. A token has its position in
its sequence and the place where its subtree ends: the tokens between the two are
those that may attend to it (models/attention.attend_rows). Sequences side by side
are the tree whose branches meet nowhere; sequences that start alike (two samples of
one prompt, an agent's second turn after its first, one system prompt) meet in the
prefix, which is then computed once in the forward and once in the backward pass,
with the gradients of all its continuations. One agent's rows only: what is shared
must come from the same weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mappa_jax.config import ConfigError, PackingConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """A sequence to place: its tokens and how many action tokens it predicts."""

    number: int
    tokens: np.ndarray
    actions: int


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A packed row.

    Attributes:
      tokens, positions, ends: [n] int32, n tokens in depth-first order.
      placed: (number of an item, [length] int32 where its tokens lie in the row).
    """

    tokens: np.ndarray
    positions: np.ndarray
    ends: np.ndarray
    placed: tuple[tuple[int, np.ndarray], ...]


def pack_rows(items: Sequence[Item], config: PackingConfig) -> list[Row]:
    """Places every item in a row, in as few tokens as is simple.

    With `share_prefixes` in the order of their tokens, each where it adds the fewest;
    without, first-fit decreasing.

    Raises:
      ConfigError: an item does not fit into an empty row.
    """
    share = config.share_prefixes
    rows: list[_Growing] = []
    for item in sorted(items, key=_in_token_order if share else _longest_first):
        length, actions = len(item.tokens), item.actions
        if length > config.row_tokens or actions > config.row_action_tokens:
            raise ConfigError(
                f"packing: an action of {length} tokens, {actions} of them sampled, "
                f"does not fit into a row of packing.row_tokens={config.row_tokens} "
                f"and packing.row_action_tokens={config.row_action_tokens}"
            )
        fitting = [
            (length - shared, row, shared)
            for row in rows
            for shared in (row.shared(item.tokens) if share else 0,)
            if len(row.tokens) + length - shared <= config.row_tokens
            and row.actions + actions <= config.row_action_tokens
        ]
        if not fitting:
            rows.append(_Growing())
            fitting = [(length, rows[-1], 0)]
        _, row, shared = min(fitting, key=lambda cost_row: cost_row[0])
        row.add(item, shared)
    return [row.finished() for row in rows]


def _in_token_order(item: Item) -> bytes:
    return item.tokens.astype(">u4").tobytes()


def _longest_first(item: Item) -> int:
    return -len(item.tokens)


class _Growing:
    """A row being filled, in token order if prefixes are to be shared."""

    def __init__(self):
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.ends: list[int] = []
        self.actions = 0
        self._last = np.zeros((0,), np.int32)  # the last item's tokens
        self._path = np.zeros((0,), np.int32)  # and where they lie
        self._placed: list[tuple[int, np.ndarray]] = []

    def shared(self, tokens: np.ndarray) -> int:
        """Tokens of the longest common prefix with the last item.

        No earlier item has a longer one: items come in token order.
        """
        n = min(len(tokens), len(self._last))
        differ = np.flatnonzero(tokens[:n] != self._last[:n])
        return int(differ[0]) if len(differ) else n

    def add(self, item: Item, shared: int) -> None:
        """Continues the last item's path after its first `shared` tokens."""
        start, new = len(self.tokens), len(item.tokens) - shared
        for node in self._path[shared:]:
            self.ends[node] = start
        self.tokens += item.tokens[shared:].tolist()
        self.positions += range(shared, shared + new)
        self.ends += [0] * new  # known when the path leaves them
        added = np.arange(start, start + new, dtype=np.int32)
        self._path = np.concatenate([self._path[:shared], added])
        self._last = item.tokens
        self._placed.append((item.number, self._path))
        self.actions += item.actions

    def finished(self) -> Row:
        for node in self._path:
            self.ends[node] = len(self.tokens)
        columns = (self.tokens, self.positions, self.ends)
        arrays = (np.asarray(column, np.int32) for column in columns)
        return Row(*arrays, placed=tuple(self._placed))
