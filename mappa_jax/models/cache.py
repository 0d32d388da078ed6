"""The keys and values of rows in flight.

Axes: L layers, B rows, K key/value heads, S slots of a row (one a token), H head
dimension; N rows and T tokens of what is written or read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mappa_jax.models import int8
from mappa_jax.models.config import ModelConfig


class Cache(NamedTuple):
    """Keys and values of all layers.

    Attributes:
      k, v: [L, B, K, S, H] in the cache's dtype.
      k_scale, v_scale: [L, B, K, S] float32 if that is int8: what its numbers are
        multiples of, for each head of each token; else None.
    """

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None

    @property
    def length(self) -> int:
        """Tokens that a row has room for."""
        return self.k.shape[3]


def init_cache(
    cfg: ModelConfig, rows: int, slots: int, dtype: Any = jnp.float32
) -> Cache:
    """An empty cache for `rows` rows of `slots` tokens."""
    shape = (cfg.n_layers, rows, cfg.n_kv_heads, slots, cfg.head_dim)
    k, v = jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
    if jnp.dtype(dtype) != jnp.int8:
        return Cache(k, v)
    return Cache(k, v, jnp.zeros(shape[:-1]), jnp.zeros(shape[:-1]))


def stored(x: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
    """[..., H] keys or values as the cache holds them, and their scales [...].

    An int8 stands for so many 127ths of the largest magnitude of its head. A float8 has
    no infinity, and what is too large for it would become NaN: the largest it has
    stands for that.
    """
    if jnp.dtype(dtype) == jnp.int8:
        steps, scale = int8.rounded(x, -1)
        return steps, scale[..., 0]
    if jnp.finfo(dtype).bits == 8:
        most = float(jnp.finfo(dtype).max)
        x = jnp.clip(x, -most, most)
    return x.astype(dtype), None


def _stored(cache: Cache, k: jax.Array, v: jax.Array) -> Cache:
    (k, k_scale), (v, v_scale) = stored(k, cache.k.dtype), stored(v, cache.v.dtype)
    return Cache(k, v, k_scale, v_scale)


def write(
    cache: Cache,
    layer: jax.Array,
    rows_N: jax.Array | None,
    k_NxTxKxH: jax.Array,
    v_NxTxKxH: jax.Array,
    positions_NxT: jax.Array,
) -> Cache:
    """A layer's keys and values at their rows (None: the first N) and positions; what
    lies beyond the cache is dropped."""
    rows = jnp.arange(k_NxTxKxH.shape[0]) if rows_N is None else rows_N

    def put(table, part):
        return table.at[layer, rows[:, None], :, positions_NxT].set(part, mode="drop")

    return jax.tree.map(put, cache, _stored(cache, k_NxTxKxH, v_NxTxKxH))


def write_rows(cache: Cache, rows_N: jax.Array, kept: Cache) -> Cache:
    """Keys and values [L, N, K, T, H] of all layers from the first position on; a row
    beyond the cache is dropped."""
    t = kept.k.shape[3]

    def put(table, part):
        return table.at[:, rows_N, :, :t].set(part, mode="drop")

    return jax.tree.map(put, cache, _stored(cache, kept.k, kept.v))


def read(
    cache: Cache,
    layer: jax.Array,
    rows: jax.Array | int,
    start: jax.Array,
    size: int,
) -> Cache:
    """[N, K, size, H] of a layer, from `start` on: of the rows [N], or of the first
    `rows`."""

    def slab(table, row, count):
        at = (layer, row, 0, start, 0)[: table.ndim]
        sizes = (1, count, table.shape[2], size, *table.shape[4:])
        return jax.lax.dynamic_slice(table, at, sizes)[0]

    def of(table):
        if isinstance(rows, int):
            return slab(table, 0, rows)
        return jax.vmap(lambda row: slab(table, row, 1)[0])(rows)

    return jax.tree.map(of, cache)
