"""Causal attention: over whole rows, and of one new token over a cache.

Axes: N rows, T tokens, K key/value heads, G query heads per key/value head,
H head dimension, S cache slots.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a fully masked row gives no NaN


def attend_rows(
    q_NxTxKxGxH: jax.Array,
    k_NxTxKxH: jax.Array,
    v_NxTxKxH: jax.Array,
    positions_NxT: jax.Array,
    ends_NxT: jax.Array,
    window: jax.Array,
    *,
    scale: float,
) -> jax.Array:
    """Causal attention within the sequences that share a row.

    Query j sees key i if i <= j < ends[i] and if the key's position is less than
    `window` before its own. So a sequence alone in a row has its length as the end
    of all its tokens, packed sequences end where the next starts, and a prefix that
    several share ends after the last of them (a tree of tokens in depth-first
    order). Padding has end 0. Scores and softmax are in float32.

    Returns:
      [N, T, K, G, H], in the dtype of `v`.
    """
    scores = jnp.einsum(
        "ntkgh,nskh->nkgts",
        q_NxTxKxGxH,
        k_NxTxKxH,
        preferred_element_type=jnp.float32,
    )
    scores *= scale
    gap_NxTxT = positions_NxT[:, :, None] - positions_NxT[:, None, :]
    index_T = jnp.arange(ends_NxT.shape[1])
    seen = (gap_NxTxT < window) & (index_T[:, None] >= index_T)
    seen &= index_T[:, None] < ends_NxT[:, None, :]
    scores = jnp.where(seen[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_NxTxKxH.dtype)
    return jnp.einsum("nkgts,nskh->ntkgh", weights, v_NxTxKxH)


def attend_cache(
    q_NxKxGxH: jax.Array,
    k_LxNxKxSxH: jax.Array,
    v_LxNxKxSxH: jax.Array,
    layer: jax.Array,
    positions_N: jax.Array,
    window: jax.Array,
    blocks: jax.Array,
    *,
    block: int,
    scale: float,
) -> jax.Array:
    """Attention of one token per row over the first `blocks` blocks of the cache.

    Cache slot s of a row holds its position s. The softmax is accumulated block
    by block (Milakov and Gimelshein, arXiv 1805.02867). A block beyond a row's
    length leaves the accumulators bit for bit as they were, so a row's result
    does not depend on how long its neighbours are.

    Returns:
      [N, K, G, H], in the dtype of `q`; the cache may have another.
    """
    _, n, kv_heads, _, head_dim = k_LxNxKxSxH.shape
    size = (1, n, kv_heads, block, head_dim)
    zero, dtype = jnp.zeros((), jnp.int32), q_NxKxGxH.dtype

    def body(carry):
        j, top, total, out = carry
        start = (layer, zero, zero, j * block, zero)
        k = jax.lax.dynamic_slice(k_LxNxKxSxH, start, size)[0].astype(dtype)
        v = jax.lax.dynamic_slice(v_LxNxKxSxH, start, size)[0].astype(dtype)
        scores = jnp.einsum(
            "nkgh,nksh->nkgs", q_NxKxGxH, k, preferred_element_type=jnp.float32
        )
        scores *= scale
        gap = positions_N[:, None] - (j * block + jnp.arange(block))
        seen = (gap >= 0) & (gap < window)
        scores = jnp.where(seen[:, None, None], scores, MASKED)
        new_top = jnp.maximum(top, scores.max(-1))
        weights = jnp.where(
            seen[:, None, None], jnp.exp(scores - new_top[..., None]), 0.0
        )
        decay = jnp.exp(top - new_top)
        total = total * decay + weights.sum(-1)
        part = jnp.einsum("nkgs,nksh->nkgh", weights.astype(v.dtype), v)
        return j + 1, new_top, total, out * decay[..., None] + part

    shape = q_NxKxGxH.shape[:-1]
    start = (
        zero,
        jnp.full(shape, MASKED, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(q_NxKxGxH.shape, jnp.float32),
    )
    _, _, total, out = jax.lax.while_loop(lambda c: c[0] < blocks, body, start)
    return (out / total[..., None]).astype(dtype)
