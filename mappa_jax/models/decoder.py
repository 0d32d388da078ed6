"""One decoder-only transformer for every family, scanned over its layers.

Axes: N rows, T tokens, D model width, A agents (adapters), R adapter rank,
L layers, V vocabulary, S cache slots; K, G, H as in attention.py.

The same module runs whole rows (training, prefill) and further tokens over a
cache (decoding: one each). A row may carry a low-rank adapter of its own (LoRA, arXiv
2106.09685): adapters of all agents sit side by side and a row's agent selects.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mappa_jax.models import attention
from mappa_jax.models import cache as caches
from mappa_jax.models.attention import inner
from mappa_jax.models.cache import Cache
from mappa_jax.models.config import ModelConfig, Rope
from mappa_jax.parallel.mesh import Layout

ACTIVATIONS = {
    "silu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}


LAYER_INPUT, PROJECTION = "layer_input", "projection"
_saved = jax.checkpoint_policies
# What the backward pass keeps of a layer beside its input; the rest is recomputed.
REMAT: Mapping[str, Any] = {
    "full": _saved.nothing_saveable,
    "projections": _saved.save_only_these_names(PROJECTION, attention.ATTENTION),
    "offload": _saved.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


class Adapters(NamedTuple):
    """Low-rank updates of all agents, and which agent's each row uses.

    Attributes:
      a: target name -> [L, A, in, R].
      b: target name -> [L, A, R, out].
      scale_A: [A] float32, alpha / rank.
      row_agent_N: [N] int32 index into A.
    """

    a: Mapping[str, jax.Array]
    b: Mapping[str, jax.Array]
    scale_A: jax.Array
    row_agent_N: jax.Array


class Context(NamedTuple):
    """What every layer shares. Rope tables are [N, T, H/2] pairs (cos, sin)."""

    positions: jax.Array
    ends: jax.Array | None
    slots: jax.Array | None
    rope: tuple[jax.Array, jax.Array]
    local_rope: tuple[jax.Array, jax.Array]
    blocks: jax.Array | None
    adapted: tuple[jax.Array, jax.Array] | None  # scale_A, row_agent_N


def rope_frequencies(rope: Rope, head_dim: int) -> jax.Array:
    """Angular frequencies, [H/2] float32, in radians per token."""
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    freq = 1.0 / (rope.theta**exponent)
    if rope.kind == "linear":
        return freq / rope.factor
    if rope.kind == "llama3":
        turns = rope.original_context * freq / (2 * jnp.pi)
        low, high = rope.low_freq_factor, rope.high_freq_factor
        keep = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
        return keep * freq + (1 - keep) * freq / rope.factor
    return freq


def rope_table(
    rope: Rope, head_dim: int, positions_NxT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """cos and sin, each [N, T, H/2] float32."""
    angle = positions_NxT[..., None] * rope_frequencies(rope, head_dim)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_NxTxMxH: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the halves of each head (RoFormer, arXiv 2104.09864)."""
    cos, sin = (t[:, :, None] for t in table)
    x1, x2 = jnp.split(x_NxTxMxH.astype(jnp.float32), 2, axis=-1)
    out = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)
    return out.astype(x_NxTxMxH.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + weight), in float32 (arXiv 1910.07467)."""

    eps: float
    offset: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.constant(1.0 - self.offset)
        weight = self.param("weight", init, (x.shape[-1],))
        scale = self.offset + weight.astype(jnp.float32)
        return _rms_norm(x.astype(jnp.float32), scale, self.eps).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    return _rms_norm_fwd(x, scale, eps)[0]


def _rms_norm_fwd(x, scale, eps):
    inverse = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
    return x * inverse * scale, (x, scale, inverse)


def _rms_norm_bwd(eps, kept, grad):
    x, scale, inverse = kept
    own = grad * scale
    along = inner(own, x) * inverse**2 / x.shape[-1]
    by_scale = jnp.sum(grad * x * inverse, tuple(range(x.ndim - 1)))
    return inverse * (own - x * along), by_scale


_rms_norm.defvjp(_rms_norm_fwd, _rms_norm_bwd)


@jax.custom_vjp
def _product(x_NxTxD: jax.Array, w_DxF: jax.Array) -> jax.Array:
    """x W, whose gradient by W is asked for in the order in which W lies: in the other,
    XLA's CPU backend transposes what the layer's activations are made of."""
    return x_NxTxD @ w_DxF


def _product_fwd(x, w):
    return x @ w, (x, w)


def _product_bwd(kept, grad):
    x, w = kept
    by_x = jnp.einsum("ntf,df->ntd", grad, w)
    return by_x, jnp.einsum("ntd,ntf->df", x, grad)


_product.defvjp(_product_fwd, _product_bwd)


class Dense(nn.Module):
    """x W (+ bias) (+ the row's adapter). W is [in, out], or int8 and a scale for each
    output (int8.params)."""

    features: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, adapter=None) -> jax.Array:
        kernel = self.param(
            "kernel", nn.initializers.normal(0.02), (x.shape[-1], self.features)
        )
        y = _product(x, kernel.astype(self.dtype))
        if self.has_variable("params", "scale"):
            scale = self.get_variable("params", "scale")[0]
            y = (y * scale).astype(self.dtype)
        if adapter is not None:
            y += _adapt(x, *adapter).astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y += bias.astype(self.dtype)
        return checkpoint_name(y, PROJECTION)


def _adapt(x_NxTxD, a_AxDxR, b_AxRxF, scale_A, row_agent_N) -> jax.Array:
    """x A B of each row's own agent, [N, T, F]."""
    a, b = a_AxDxR.astype(x_NxTxD.dtype), b_AxRxF.astype(x_NxTxD.dtype)
    if x_NxTxD.shape[1] > 1:
        # Each row gathers its adapter, so that a row which is not finite reaches
        # no other agent's gradient.
        scale = scale_A[row_agent_N][:, None, None]
        h = jnp.einsum("ntd,ndr->ntr", x_NxTxD, a[row_agent_N]) * scale
        return jnp.einsum("ntr,nrf->ntf", h.astype(a.dtype), b[row_agent_N])
    # One token: to run all adapters reads less than to gather one for each row.
    h = jnp.einsum("ntd,adr->ntar", x_NxTxD, a)
    own_NxA = jax.nn.one_hot(row_agent_N, a.shape[0]) * scale_A
    h *= own_NxA[:, None, :, None].astype(a.dtype)
    return jnp.einsum("ntar,arf->ntf", h, b)


class Block(nn.Module):
    """One layer: attention and a gated feed-forward part, each with a residual."""

    cfg: ModelConfig
    dtype: Any
    block: int
    keep_kv: bool
    layout: Layout
    rows: tuple[str, ...] | None
    fused: str | None = None

    @nn.compact
    def __call__(self, carry, per_layer, ctx: Context):
        cfg, place, rows = self.cfg, self.layout.constrain, self.rows
        x, cache = carry
        index, sliding, lora_a, lora_b = per_layer
        # Between layers a row's tokens lie apart (arXiv 2205.05198), so that what is
        # kept for the backward pass does.
        spread = cache is None and x.shape[1] % self.layout.tensor == 0
        apart = (rows, "tensor" if spread else None, None)
        x = checkpoint_name(place(x, *apart), LAYER_INPUT)

        def norm(name, eps=cfg.rms_norm_eps):
            return RMSNorm(eps, cfg.norm_offset, self.dtype, name=name)

        def dense(name, features, bias, h):
            adapter = None
            if name in lora_a:
                adapter = (lora_a[name], lora_b[name], *ctx.adapted)
            return Dense(features, bias, self.dtype, name=name)(h, adapter)

        n, t, _ = x.shape
        h = place(norm("attn_norm")(x), rows, None, None)
        q = dense("q", cfg.n_heads * cfg.head_dim, cfg.qkv_bias, h)
        k = dense("k", cfg.n_kv_heads * cfg.head_dim, cfg.qkv_bias, h)
        v = dense("v", cfg.n_kv_heads * cfg.head_dim, cfg.qkv_bias, h)
        heads = (rows, None, "tensor", None)
        q = place(q.reshape(n, t, cfg.n_heads, cfg.head_dim), *heads)
        k = place(k.reshape(n, t, cfg.n_kv_heads, cfg.head_dim), *heads)
        v = place(v.reshape(n, t, cfg.n_kv_heads, cfg.head_dim), *heads)
        if cfg.qk_norm:
            q, k = norm("q_norm")(q), norm("k_norm")(k)
        table = ctx.rope
        if cfg.local_rope is not None:
            table = jax.tree.map(
                lambda local, full: jnp.where(sliding, local, full),
                ctx.local_rope,
                ctx.rope,
            )
        q, k = rotate(q, table), rotate(k, table)
        q = q.reshape(n, t, cfg.n_kv_heads, -1, cfg.head_dim)
        window = jnp.where(sliding, cfg.sliding_window, jnp.iinfo(jnp.int32).max)
        kept = None
        if cache is None:
            out = attention.attend_rows(
                q,
                k,
                v,
                ctx.positions,
                ctx.ends,
                window,
                scale=cfg.attn_scale,
                fused=self.fused,
            )
            if self.keep_kv:
                kept = Cache(k.swapaxes(1, 2), v.swapaxes(1, 2))
        else:
            cache = caches.write(cache, index, ctx.slots, k, v, ctx.positions)
            out = attention.attend_cache(
                q,
                cache,
                index,
                ctx.slots,
                ctx.positions,
                window,
                ctx.blocks,
                block=self.block,
                scale=cfg.attn_scale,
                fused=self.fused,
            )
        out = place(out, *heads, None)
        out = place(dense("o", cfg.d_model, cfg.o_bias, out.reshape(n, t, -1)), *apart)
        x += norm("attn_out_norm")(out) if cfg.post_norms else out

        h = place(norm("mlp_norm")(x), rows, None, None)
        gate = ACTIVATIONS[cfg.activation](dense("gate", cfg.d_ff, cfg.mlp_bias, h))
        up = dense("up", cfg.d_ff, cfg.mlp_bias, h)
        wide = place(gate * up, rows, None, "tensor")
        out = place(dense("down", cfg.d_model, cfg.mlp_bias, wide), *apart)
        x += norm("mlp_out_norm")(out) if cfg.post_norms else out
        return (place(x, *apart), cache), kept


class Decoder(nn.Module):
    """Tokens in, last hidden states out; `logits` applies the head.

    Attributes:
      cfg: the architecture.
      dtype: of the compute; parameters keep theirs.
      remat: what the backward pass keeps of a layer, of REMAT.
      cache_block: the cache is read in blocks of so many tokens.
      layout: how arrays lie on the mesh.
      rows: the mesh axes of the rows' axis.
      fused: whose fused kernels attention uses, "gpu" or "tpu"; None: XLA's everywhere.
    """

    cfg: ModelConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    cache_block: int = 128
    layout: Layout = Layout()
    rows: tuple[str, ...] | None = None
    fused: str | None = None

    @nn.compact
    def __call__(
        self,
        tokens_NxT: jax.Array,
        positions_NxT: jax.Array,
        ends_NxT: jax.Array | None = None,
        *,
        adapters: Adapters | None = None,
        cache: Cache | None = None,
        blocks: jax.Array | None = None,
        slots: jax.Array | None = None,
        keep_kv: bool = False,
        member: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Runs whole rows, or further tokens of rows over a cache.

        Args:
          tokens_NxT: int32.
          positions_NxT: int32, of each token within its sequence.
          ends_NxT: int32, where in the row the tokens end that may see this one, 0
            for padding (attention.attend_rows); whole rows only.
          adapters: low-rank updates; None runs the bare weights.
          cache: with it the tokens are written at their positions (none beyond the
            cache) and attend over the first `blocks` blocks.
          blocks: how many cache blocks to read, a traced scalar.
          slots: [N] int32, rows of the cache; None: the first N.
          keep_kv: whole rows only: also return the keys and values.
          member: [] int32: "layers" are those of several policies, [A, L, ...], and
            this is the one to run. Its weights are read where they lie: to take them
            out of the stack first would copy them.

        Returns:
          Hidden states [N, T, D] after the last norm, and the cache: the updated
          one, or the rows' keys and values [L, N, K, T, H], or None.
        """
        cfg = self.cfg
        embed = self.param(
            "embed", nn.initializers.normal(0.02), (cfg.vocab_size, cfg.d_model)
        )
        if not cfg.tie_embeddings:
            self.param("head", nn.initializers.normal(0.02), embed.shape)
        x = self.layout.constrain(embed[tokens_NxT], self.rows, None, None)
        if self.has_variable("params", "embed_scale"):
            x = x * self.get_variable("params", "embed_scale")[tokens_NxT]
        x = x.astype(self.dtype)
        x *= jnp.asarray(cfg.embed_scale, self.dtype)
        table = rope_table(cfg.rope, cfg.head_dim, positions_NxT)
        local = table
        if cfg.local_rope is not None:
            local = rope_table(cfg.local_rope, cfg.head_dim, positions_NxT)
        lora_a, lora_b, adapted = {}, {}, None
        if adapters is not None:
            lora_a, lora_b = adapters.a, adapters.b
            adapted = (adapters.scale_A, adapters.row_agent_N)
        per_layer = (
            jnp.arange(cfg.n_layers, dtype=jnp.int32),
            jnp.asarray(cfg.sliding_layers),
            lora_a,
            lora_b,
        )
        ctx = Context(positions_NxT, ends_NxT, slots, table, local, blocks, adapted)
        how = (cfg, self.dtype, self.cache_block, keep_kv, self.layout, self.rows)
        how += (self.fused,)
        if member is None:
            layers = _all_layers(cfg, self.remat)(*how, name="layers")
            (x, cache), kept = layers((x, cache), per_layer, ctx)
        else:
            stack = self.variables["params"]["layers"]

            def one(carry, per_layer):
                at = member * cfg.n_layers + per_layer[0]
                own = jax.tree.map(lambda p: p.reshape(-1, *p.shape[2:])[at], stack)
                return Block(*how, parent=None).apply(
                    {"params": own}, carry, per_layer, ctx
                )

            (x, cache), kept = jax.lax.scan(one, (x, cache), per_layer)
        norm = RMSNorm(cfg.rms_norm_eps, cfg.norm_offset, self.dtype, name="final_norm")
        return norm(x), kept if cache is None else cache


def _all_layers(cfg: ModelConfig, remat: str) -> Any:
    """Block, scanned over the layers, each with its own weights."""
    layer = Block
    if remat != "none":
        layer = nn.remat(Block, prevent_cse=False, policy=REMAT[remat])
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        length=cfg.n_layers,
    )


def head_weights(params: Mapping[str, Any], cfg: ModelConfig) -> jax.Array:
    """The output projection, [V, D], whether tied or not."""
    return params["embed"] if cfg.tie_embeddings else params["head"]


def logits(params: Mapping[str, Any], cfg: ModelConfig, hidden: jax.Array) -> jax.Array:
    """[..., D] -> [..., V] float32, soft-capped where the family does."""
    head = head_weights(params, cfg).astype(hidden.dtype)
    out = jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)
    name = "embed_scale" if cfg.tie_embeddings else "head_scale"
    if name in params:
        out *= params[name][:, 0]
    cap = cfg.final_softcap
    return cap * jnp.tanh(out / cap) if cap else out
