"""The attention of attention.py by kernels that JAX ships (attention="fused").

  what               on a GPU                            on a TPU
  rows               cuDNN's flash attention             splash attention
  a token a row,     paged attention (Pallas, Triton)    paged attention (Pallas,
  over the cache                                         Mosaic)

Axes as in attention.py. A cache is handed to the paged kernels as it lies: a head of a
row of a layer is a sequence of its own, and so many of its slots that follow one
another are a page. No slice of it is copied, and a row's tokens are read up to its own
length.

On one device so far. `unfit` says what else the kernels cannot do.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.gpu import paged_attention as gpu_paged
from jax.experimental.pallas.ops.tpu import paged_attention as tpu_paged
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)

from mappa_jax.models.cache import Cache
from mappa_jax.models.config import ModelConfig

ROW_BLOCK = 128  # rows are padded to a multiple of it
SPLASH_BLOCK = 512  # tokens, at most
PAGE = 64  # slots of the cache, at most
SPLITS = 16  # of a row's pages, at most, that a GPU reads side by side
TPU_LANES = 128  # what a head's numbers must be a multiple of on a TPU


def unfit(
    cfg: ModelConfig,
    platform: str,
    *,
    devices: int,
    dtype: Any,
    kv_dtype: Any,
    share_prefixes: bool,
) -> tuple[str, str] | None:
    """Why the kernels cannot run this model so: (the config's key, the reason), or
    None if they can.

    Args:
      cfg: the architecture.
      platform: of the devices, as JAX names it: "cpu", "gpu" or "tpu".
      devices: how many there are.
      dtype: of the compute.
      kv_dtype: of the cache.
      share_prefixes: whether rows of the update are trees.
    """
    dtype, kv_dtype = jnp.dtype(dtype), jnp.dtype(kv_dtype)
    if platform not in ("gpu", "tpu"):
        return "attention", f"there are fused kernels for GPUs and TPUs, not {platform}"
    if devices > 1:
        return "mesh", f"the fused kernels run on one device so far, not on {devices}"
    if any(cfg.sliding_layers):
        return "attention", "the fused kernels know no sliding windows"
    if platform == "gpu":
        if dtype != jnp.bfloat16:
            return "dtype", "cuDNN's attention needs 'bfloat16'"
        if kv_dtype not in (dtype, jnp.dtype(jnp.int8)):
            return "sampler.kv_dtype", f"on a GPU it must be {dtype.name} or int8"
        return None
    if cfg.head_dim % TPU_LANES:
        why = f"on a TPU heads must have a multiple of {TPU_LANES} dimensions"
        return "attention", f"{why}, not {cfg.head_dim}"
    if kv_dtype != dtype:
        return "sampler.kv_dtype", f"on a TPU it must be {dtype.name}"
    if share_prefixes:
        return "packing.share_prefixes", "splash attention takes no trees: set it False"
    return None


def rows_by_cudnn(
    q_NxTxKxGxH: jax.Array,
    k_NxTxKxH: jax.Array,
    v_NxTxKxH: jax.Array,
    seen_NxTxT: jax.Array,
    *,
    scale: float,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """`attention.attend_rows` of whom each query sees, [N, queries, keys] bool, trees
    and windows included. cuDNN takes that as a bias: T x T numbers a row exist.

    `implementation` "xla" is for tests where there is no cuDNN.
    """
    n, t, kv_heads, group, head_dim = q_NxTxKxGxH.shape
    pad = -t % ROW_BLOCK
    q = _padded(q_NxTxKxGxH.reshape(n, t, kv_heads * group, head_dim), pad)
    k, v = _padded(k_NxTxKxH, pad), _padded(v_NxTxKxH, pad)
    seen = jnp.pad(seen_NxTxT, ((0, 0), (0, pad), (0, pad)))
    out = jax.nn.dot_product_attention(
        q, k, v, mask=seen[:, None], scale=scale, implementation=implementation
    )
    return out[:, :t].reshape(q_NxTxKxGxH.shape)


def rows_by_splash(
    q_NxTxKxGxH: jax.Array,
    k_NxTxKxH: jax.Array,
    v_NxTxKxH: jax.Array,
    ends_NxT: jax.Array,
    *,
    scale: float,
    name: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`attention.attend_rows` of rows that are sequences side by side, not trees: then
    who ends alike is of one sequence. `name` is that of what the backward pass needs
    (`jax.ad_checkpoint.checkpoint_name`); `interpret` is for tests."""
    t, group = q_NxTxKxGxH.shape[1], q_NxTxKxGxH.shape[3]
    pad = -t % ROW_BLOCK
    b = _divisor(t + pad, SPLASH_BLOCK)
    blocks = splash.BlockSizes(
        **dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), b),
        **dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"), b),
        **dict.fromkeys(("block_q_dq", "block_kv_dq"), b),
    )
    kernel = splash.make_splash_mqa_single_device(
        masks.MultiHeadMask([masks.CausalMask((t + pad, t + pad))] * group),
        block_sizes=blocks,
        residual_checkpoint_name=name,
        interpret=interpret,
    )
    q = _padded(q_NxTxKxGxH, pad).transpose(0, 2, 3, 1, 4) * scale
    k, v = (_padded(x, pad).swapaxes(1, 2) for x in (k_NxTxKxH, v_NxTxKxH))
    ends = _padded(ends_NxT, pad)
    over_heads = jax.vmap(kernel, (0, 0, 0, None))
    segments = splash.SegmentIds(ends, ends)
    out = jax.vmap(over_heads)(q.astype(q_NxTxKxGxH.dtype), k, v, segments)
    out = out.transpose(0, 3, 1, 2, 4)[:, :t].astype(v.dtype)
    return checkpoint_name(out, name) if name else out


def _padded(x: jax.Array, more: int) -> jax.Array:
    """With so many zeros more along axis 1."""
    return jnp.pad(x, ((0, 0), (0, more)) + ((0, 0),) * (x.ndim - 2))


def over_cache(
    q_NxKxGxH: jax.Array,
    cache: Cache,
    layer: jax.Array,
    rows_N: jax.Array | None,
    lengths_N: jax.Array,
    *,
    scale: float,
    platform: str,
    interpret: bool = False,
) -> jax.Array:
    """`attention.attend_cache` of one token a row, without a window.

    Args:
      q_NxKxGxH: queries.
      cache: it holds the tokens' own keys and values already; what lies behind a row's
        length must be finite.
      layer: [] int32.
      rows_N: [N] int32, the cache's rows; None: its first N.
      lengths_N: [N] int32, how many tokens each query sees; zeros for who sees none.
      scale: of the scores.
      platform: "gpu" or "tpu".
      interpret: run the GPU's kernel by the interpreter, in tests; for the TPU's there
        is `jax.experimental.pallas.tpu.force_tpu_interpret_mode`.

    Returns:
      [N, K, G, H], in the dtype of `q`.
    """
    n, kv_heads, group, head_dim = q_NxKxGxH.shape
    rows = jnp.arange(n) if rows_N is None else rows_N
    page = _divisor(cache.length, PAGE)
    count = cache.length // page  # of a head's pages
    first = (layer * cache.k.shape[1] + rows)[:, None] * kv_heads + jnp.arange(kv_heads)
    table = first.reshape(-1, 1) * count + jnp.arange(count)
    lengths = jnp.repeat(jnp.maximum(lengths_N, 1), kv_heads).astype(jnp.int32)
    dtype = q_NxKxGxH.dtype
    q = (q_NxKxGxH * scale).astype(dtype).reshape(n * kv_heads, group, head_dim)

    def pages(x):
        return None if x is None else x.reshape(1, -1, page, *x.shape[4:])

    own = (pages(cache.k), pages(cache.v))
    if platform == "tpu":
        out = tpu_paged.paged_attention(
            q,
            *own,
            lengths,
            table.astype(jnp.int32),
            pages_per_compute_block=_divisor(count, 8),
        )
    else:
        out = gpu_paged.paged_attention(
            q,
            *own,
            table.astype(jnp.int32),
            lengths,
            pages(cache.k_scale),
            pages(cache.v_scale),
            pages_per_compute_block=1,
            k_splits=_divisor(count, SPLITS),
            interpret=interpret,
        )
    out = out.reshape(q_NxKxGxH.shape).astype(dtype)
    return jnp.where((lengths_N > 0)[:, None, None, None], out, 0)


def _divisor(number: int, most: int) -> int:
    """The largest power of two that divides it and is at most `most`."""
    return min(number & -number, most)
