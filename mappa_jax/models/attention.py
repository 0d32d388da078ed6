"""Causal attention: over whole rows, and of new tokens over a cache.

Axes: N rows, T tokens, K key/value heads, G query heads per key/value head,
H head dimension, S cache slots.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from mappa_jax.models import cache as caches
from mappa_jax.models import kernels
from mappa_jax.models.cache import Cache

ATTENTION = "attention"  # what `remat` may keep: results, and their log-sum-exp
SHORTEST_BLOCK = 256
MOST_BLOCKS = 32  # that a row is cut into
MASKED = -1e30  # finite, so that a fully masked row gives no NaN


@jax.named_scope("attention")
def attend_rows(
    q_NxTxKxGxH: jax.Array,
    k_NxTxKxH: jax.Array,
    v_NxTxKxH: jax.Array,
    positions_NxT: jax.Array,
    ends_NxT: jax.Array,
    window: jax.Array,
    *,
    scale: float,
    block: int | None = None,
    fused: str | None = None,
) -> jax.Array:
    """Causal attention within the sequences that share a row.

    Query j sees key i if i <= j < ends[i] and if the key's position is less than
    `window` before its own. So a sequence alone in a row has its length as the end
    of all its tokens, packed sequences end where the next starts, and a prefix that
    several share ends after the last of them (a tree of tokens in depth-first
    order). Padding has end 0; its own results mean nothing. Scores and softmax are in
    float32.

    Rows longer than `block` are computed block by block, forward and backward, so that
    no array of T x T numbers exists (FlashAttention-2, arXiv 2307.08691), and what lies
    above the diagonal is not computed.

    `fused`, "gpu" or "tpu", has it done by that platform's kernel (kernels.py, whose
    `unfit` says what it cannot do).

    Returns:
      [N, T, K, G, H], in the dtype of `v`.
    """
    where = (positions_NxT, ends_NxT, window)
    qkv = (q_NxTxKxGxH, k_NxTxKxH, v_NxTxKxH)
    if fused == "gpu":
        return kernels.rows_by_cudnn(*qkv, _seen_in_rows(*where), scale=scale)
    if fused == "tpu":
        return kernels.rows_by_splash(*qkv, ends_NxT, scale=scale, name=ATTENTION)
    block = block or row_block(q_NxTxKxGxH.shape[1])
    if q_NxTxKxGxH.shape[1] <= block:
        return _attend_whole(*qkv, where, scale)
    return _attend_blocks(*qkv, where, scale, block)


def row_block(length: int) -> int:
    """How many tokens of a row of so many are one block."""
    short = -(-length // MOST_BLOCKS)
    return max(SHORTEST_BLOCK, -(-short // 128) * 128)


def _attend_whole(q, k, v, where, scale: float) -> jax.Array:
    """`attend_rows` by its definition."""
    scores = jnp.einsum("ntkgh,nskh->nkgts", q, k, preferred_element_type=jnp.float32)
    seen = _seen_in_rows(*where)
    scores = jnp.where(seen[:, None, None], scores * scale, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("nkgts,nskh->ntkgh", weights, v)


def _seen_in_rows(positions_NxT, ends_NxT, window) -> jax.Array:
    """[N, T queries, T keys] bool."""
    places = (jnp.arange(ends_NxT.shape[1]), positions_NxT)
    return _seen(places, (*places, ends_NxT), window)


def _seen(queries, keys, window) -> jax.Array:
    """[N, queries, keys] bool; each of them as places in the row [.], positions
    [N, .], and keys with their ends [N, .]."""
    (at_Q, position_NxQ), (at_K, position_NxK, ends_NxK) = queries, keys
    seen = position_NxQ[:, :, None] - position_NxK[:, None, :] < window
    seen &= at_Q[:, None] >= at_K
    return seen & (at_Q[:, None] < ends_NxK[:, None, :])


def inner(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner products along the last axis, which is kept. XLA's CPU backend sums a
    product of two arrays several times as fast when it is asked for as a dot."""
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("...d,...d->...", a, b, precision=exact)[..., None]


class _Blocks(NamedTuple):
    """A row in pieces: [N, K, G, B, H] for a block of queries, [N, K, B, H] of keys,
    or with the last two axes swapped.

    A product that sums over queries takes them swapped, so that the pairs' numbers, the
    largest of all by far, are never transposed.
    """

    size: int
    where: tuple[jax.Array, jax.Array, jax.Array]

    def of(self, x: jax.Array, i: jax.Array, axis: int = -2) -> jax.Array:
        """Block i along the axis of tokens."""
        return jax.lax.dynamic_slice_in_dim(x, i * self.size, self.size, axis)

    def put(
        self, x: jax.Array, part: jax.Array, i: jax.Array, axis: int = -2
    ) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, part, i * self.size, axis)

    def scores(self, q, k_swapped, i, j, scale) -> tuple[jax.Array, jax.Array]:
        """Of block i's queries and block j's keys, [N, K, G, B, B] float32; and who
        sees whom, [N, 1, 1, B, B]."""
        positions, ends, window = self.where

        def places(block):
            start = block * self.size
            own = jax.lax.dynamic_slice_in_dim(positions, start, self.size, 1)
            return start + jnp.arange(self.size), own

        own_ends = jax.lax.dynamic_slice_in_dim(ends, j * self.size, self.size, 1)
        seen = _seen(places(i), (*places(j), own_ends), window)
        scores = jnp.einsum(
            "nkgth,nkhs->nkgts", q, k_swapped, preferred_element_type=jnp.float32
        )
        return scores * scale, seen[:, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend_blocks(q, k, v, where, scale: float, block: int) -> jax.Array:
    """`attend_rows` over the pairs of blocks on and below the diagonal."""
    return _attend_blocks_fwd(q, k, v, where, scale, block)[0]


def _attend_blocks_fwd(q, k, v, where, scale, block):
    q, k, v, where, length = _in_blocks(q, k, v, where, block)
    # Who sees whom is known before q is: `jax.checkpoint` would take it out of the
    # loop, and keep it for all pairs.
    pairs = _pairs(q.shape[3] // block)
    q, where, pairs = jax.lax.optimization_barrier((q, where, pairs))
    blocks, k_swapped = _Blocks(block, where), k.swapaxes(-1, -2)

    def step(carry, pair):
        out, lse, state = carry
        i, j = pair
        first = (j == 0)[None]
        top, total, acc = jax.tree.map(
            lambda x, x0: jnp.where(first, x0, x), state, new
        )
        keys = blocks.of(k_swapped, j, -1)
        scores, seen = blocks.scores(blocks.of(q, i), keys, i, j, scale)
        scores = jnp.where(seen, scores, MASKED)
        higher = jnp.maximum(top, scores.max(-1, keepdims=True))
        weights = jnp.where(seen, jnp.exp(scores - higher), 0.0)
        decay = jnp.exp(top - higher)
        total = total * decay + weights.sum(-1, keepdims=True)
        acc = acc * decay + jnp.einsum(
            "nkgts,nksh->nkgth",
            weights.astype(v.dtype),
            blocks.of(v, j),
            preferred_element_type=jnp.float32,
        )
        # Padding sees nothing at all.
        done = acc / jnp.where(total > 0, total, 1.0)
        out = blocks.put(out, done.astype(v.dtype), i)
        lse = blocks.put(lse, higher + jnp.log(jnp.where(total > 0, total, 1.0)), i)
        return (out, lse, (higher, total, acc)), None

    shape = (*q.shape[:3], block)
    new = (
        jnp.full((*shape, 1), MASKED, jnp.float32),
        jnp.zeros((*shape, 1), jnp.float32),
        jnp.zeros((*shape, q.shape[-1]), jnp.float32),
    )
    start = (jnp.zeros(q.shape, v.dtype), jnp.zeros((*q.shape[:-1], 1), jnp.float32))
    (out, lse, _), _ = jax.lax.scan(step, (*start, new), pairs)
    out = checkpoint_name(out, ATTENTION)
    lse = checkpoint_name(lse, ATTENTION)
    rows = jnp.moveaxis(out, 3, 1)[:, :length]
    return rows, (q, k, v, where, out, lse, length)


def _attend_blocks_bwd(scale, block, kept, grad):
    q, k, v, where, out, lse, length = kept
    blocks = _Blocks(block, where)
    grad = _pad(jnp.moveaxis(grad, 1, 3), block)
    # Of the softmax: the same for all keys of a query.
    dot = inner(grad.astype(jnp.float32), out.astype(jnp.float32))
    swapped = [x.swapaxes(-1, -2) for x in (q, k, v, grad)]
    q_swapped, k_swapped, v_swapped, grad_swapped = swapped

    def step(carry, pair):
        dq, dk, dv = carry
        i, j = pair
        keys = blocks.of(k_swapped, j, -1)
        scores, seen = blocks.scores(blocks.of(q, i), keys, i, j, scale)
        weights = jnp.where(seen, jnp.exp(scores - blocks.of(lse, i)), 0.0)
        along = jnp.einsum(
            "nkgth,nkhs->nkgts",
            blocks.of(grad, i),
            blocks.of(v_swapped, j, -1),
            preferred_element_type=jnp.float32,
        )
        slope = (weights * (along - blocks.of(dot, i)) * scale).astype(q.dtype)
        weights = weights.astype(v.dtype)

        def add(total, i, axis, how, *of):
            part = jnp.einsum(how, *of, preferred_element_type=jnp.float32)
            return blocks.put(total, blocks.of(total, i, axis) + part, i, axis)

        dq = add(dq, i, -2, "nkgts,nksh->nkgth", slope, blocks.of(k, j))
        by_query = "nkght,nkgts->nkhs"
        dk = add(dk, j, -1, by_query, blocks.of(q_swapped, i, -1), slope)
        dv = add(dv, j, -1, by_query, blocks.of(grad_swapped, i, -1), weights)
        return (dq, dk, dv), None

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k_swapped, v_swapped))
    (dq, dk, dv), _ = jax.lax.scan(step, zeros, _pairs(q.shape[3] // block))
    dq = jnp.moveaxis(dq, 3, 1)[:, :length].astype(q.dtype)
    dk, dv = (
        jnp.moveaxis(d, 3, 1)[:, :length].astype(x.dtype) for d, x in ((dk, k), (dv, v))
    )
    return dq, dk, dv, jax.tree.map(lambda _: None, where)


_attend_blocks.defvjp(_attend_blocks_fwd, _attend_blocks_bwd)


def _in_blocks(q, k, v, where, block):
    """Tokens last but one, padded to whole blocks; and how many there were."""
    positions, ends, window = where
    length = q.shape[1]
    q, k, v = (_pad(jnp.moveaxis(x, 1, x.ndim - 2), block) for x in (q, k, v))
    positions, ends = (_pad(x[..., None], block)[..., 0] for x in (positions, ends))
    return q, k, v, (positions, ends, window), length


def _pad(x: jax.Array, block: int) -> jax.Array:
    """Zeros along the axis before the last, up to a multiple of `block`."""
    short = -x.shape[-2] % block
    return jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((0, short), (0, 0)))


def _pairs(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(query block, key block) on and below the diagonal, in the order of queries."""
    i, j = np.tril_indices(count)
    return i.astype(np.int32), j.astype(np.int32)


@jax.named_scope("cache_attention")
def attend_cache(
    q_NxTxKxGxH: jax.Array,
    cache: Cache,
    layer: jax.Array,
    rows_N: jax.Array | None,
    positions_NxT: jax.Array,
    window: jax.Array,
    blocks: jax.Array,
    *,
    block: int,
    scale: float,
    fused: str | None = None,
) -> jax.Array:
    """Attention of T tokens per row over the first `blocks` blocks of the cache.

    Cache slot s of a row holds its position s; a token sees the positions up to its
    own. The softmax is accumulated block by block (Milakov and Gimelshein, arXiv
    1805.02867). A block that a token does not see leaves its accumulators bit for bit
    as they were, so a row's result does not depend on how long its neighbours are.

    Args:
      q_NxTxKxGxH: queries.
      cache: it holds the tokens' own keys and values already.
      layer: [] int32.
      rows_N: [N] int32, the cache's rows; None: its first N.
      positions_NxT: int32, the queries'; one beyond the cache is padding, which sees
        nothing.
      window: a key is seen if it is less than this before the query.
      blocks: [] int32.
      block: tokens of a block, static.
      scale: of the scores.
      fused: "gpu" or "tpu": one token a row is left to that platform's kernel
        (kernels.py, whose `unfit` says what it cannot do).

    Returns:
      [N, T, K, G, H], in the dtype of `q`; the cache may have another. Zeros for who
      sees nothing in these blocks.
    """
    n, t, kv_heads, group, head_dim = q_NxTxKxGxH.shape
    dtype = q_NxTxKxGxH.dtype
    if fused and t == 1:
        at = positions_NxT[:, 0]
        lengths = jnp.where(at < cache.length, jnp.minimum(at + 1, blocks * block), 0)
        out = kernels.over_cache(
            q_NxTxKxGxH[:, 0],
            cache,
            layer,
            rows_N,
            lengths,
            scale=scale,
            platform=fused,
        )
        return out[:, None]
    q = q_NxTxKxGxH.swapaxes(1, 2).reshape(n, kv_heads, t * group, head_dim)
    # The heads of one token see alike: one row of the mask does for all of them.
    positions = positions_NxT if t == 1 else jnp.repeat(positions_NxT, group, axis=1)
    real = positions[:, :, None] < cache.length

    def body(carry):
        j, top, total, out = carry
        part = caches.read(
            cache, layer, n if rows_N is None else rows_N, j * block, block
        )
        k, v = part.k.astype(dtype), part.v.astype(dtype)
        scores = jnp.einsum("nkqh,nksh->nkqs", q, k, preferred_element_type=jnp.float32)
        scores *= scale
        if part.k_scale is not None:
            scores *= part.k_scale[:, :, None]
        gap = positions[:, :, None] - (j * block + jnp.arange(block))
        seen = (gap >= 0) & (gap < window) & real
        # What a slot's last row left there may be no number, and 0 * NaN is none.
        used = seen.any(1)[:, None, :]
        v = jnp.where(used[..., None], v, 0)
        seen = seen[:, None]
        scores = jnp.where(seen, scores, MASKED)
        new_top = jnp.maximum(top, scores.max(-1))
        weights = jnp.where(seen, jnp.exp(scores - new_top[..., None]), 0.0)
        decay = jnp.exp(top - new_top)
        total = total * decay + weights.sum(-1)
        if part.v_scale is not None:
            weights *= jnp.where(used, part.v_scale, 0.0)[:, :, None]
        new = jnp.einsum("nkqs,nksh->nkqh", weights.astype(v.dtype), v)
        return j + 1, new_top, total, out * decay[..., None] + new

    start = (
        jnp.zeros((), jnp.int32),
        jnp.full(q.shape[:-1], MASKED, jnp.float32),
        jnp.zeros(q.shape[:-1], jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    _, _, total, out = jax.lax.while_loop(lambda c: c[0] < blocks, body, start)
    out = out / jnp.where(total > 0, total, 1.0)[..., None]
    out = out.astype(dtype)
    return out.reshape(n, kv_heads, t, group, head_dim).swapaxes(1, 2)
