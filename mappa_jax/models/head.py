"""Log-probabilities of single tokens, without the scores of the vocabulary.

The output projection, the softmax and their backward pass, a few tokens at a time: the
scores of all tokens never exist together, and the backward pass computes them again
(the idea of Liger's fused linear cross entropy, arXiv 2410.10989).

Axes: M tokens, D model width, V vocabulary, B tokens of a block.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mappa_jax.parallel.mesh import Layout


class Scores(NamedTuple):
    """Of each token, [M] float32: its log-probability, the log-sum-exp of all scores
    at its place, and the entropy in nats (0 unless asked for)."""

    logprob: jax.Array
    lse: jax.Array
    entropy: jax.Array


@dataclasses.dataclass(frozen=True)
class Head:
    """What is static.

    Attributes:
      block: tokens whose scores exist at a time, on each device.
      softcap: scores are softcap * tanh(score / softcap) (Gemma 2, arXiv 2408.00118);
        0 leaves them as they are.
      entropy: whether to compute it.
      layout: the vocabulary lies over its axis "tensor".
    """

    block: int = 256
    softcap: float = 0.0
    entropy: bool = False
    layout: Layout = Layout()

    def scores(self, w_VxD, h_BxD, temperature_B) -> tuple[jax.Array, jax.Array]:
        """[B, V] float32, and their derivative by the projection's result (an array
        or, without a soft cap, [B, 1])."""
        out = jnp.einsum("bd,vd->bv", h_BxD, w_VxD, preferred_element_type=jnp.float32)
        out = self.layout.constrain(out, None, "tensor")
        slope = 1 / temperature_B[:, None]
        if self.softcap:
            bent = jnp.tanh(out / self.softcap)
            return self.softcap * bent * slope, (1 - bent * bent) * slope
        return out * slope, slope

    def own(self, scores_BxV, token_B) -> jax.Array:
        """Whether a score is the token's own: not an index, which would bring together
        what lies apart along V."""
        return jnp.arange(scores_BxV.shape[-1]) == token_B[:, None]


@jax.named_scope("head")
def token_scores(
    head: Head,
    w_VxD: jax.Array,
    h_MxD: jax.Array,
    token_M: jax.Array,
    temperature_M: jax.Array,
    blocks: jax.Array,
) -> Scores:
    """log-softmax(h W^T / temperature) of the first `blocks` blocks of tokens.

    Args:
      head: the static half.
      w_VxD: the projection; it is computed with in the dtype of `h_MxD`.
      h_MxD: hidden states.
      token_M: int32.
      temperature_M: float32.
      blocks: [] int32; further tokens have zeros, and no gradient.

    Returns:
      Scores, differentiable by w_VxD and h_MxD.
    """
    m = token_M.shape[0]
    head = dataclasses.replace(head, block=min(head.block, m))
    short = -m % head.block

    def padded(x, value):
        width = ((0, short),) + ((0, 0),) * (x.ndim - 1)
        return jnp.pad(x, width, constant_values=value)

    found = _token_scores(
        head,
        *(w_VxD, padded(h_MxD, 0), padded(token_M, 0), padded(temperature_M, 1)),
        jnp.minimum(blocks, (m + short) // head.block),
    )
    return jax.tree.map(lambda x: x[:m], found)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_scores(head: Head, w, h, token, temperature, blocks) -> Scores:
    return _forward(head, w, h, token, temperature, blocks)[0]


def _block(head: Head, arrays, i):
    """Block i of arrays [M, ...]."""
    start = i * head.block
    return [jax.lax.dynamic_slice_in_dim(x, start, head.block) for x in arrays]


def _put(head: Head, whole, part, i):
    return jax.lax.dynamic_update_slice_in_dim(whole, part, i * head.block, 0)


def _forward(head, w, h, token, temperature, blocks):
    own_w = head.layout.constrain(w.astype(h.dtype), "tensor", None)

    def body(i, out):
        part, own_token, own_temperature = _block(head, (h, token, temperature), i)
        scores, _ = head.scores(own_w, part, own_temperature)
        chosen = jnp.where(head.own(scores, own_token), scores, 0.0).sum(-1)
        lse = jax.nn.logsumexp(scores, -1)
        entropy = jnp.zeros_like(lse)
        if head.entropy:
            entropy = lse - (jnp.exp(scores - lse[:, None]) * scores).sum(-1)
        found = Scores(chosen - lse, lse, entropy)
        return jax.tree.map(lambda x, new: _put(head, x, new, i), out, found)

    zeros = Scores(*(jnp.zeros(token.shape, jnp.float32) for _ in Scores._fields))
    out = jax.lax.fori_loop(0, blocks, body, zeros)
    return out, (w, h, token, temperature, blocks, out)


def _backward(head, kept, grad):
    w, h, token, temperature, blocks, out = kept
    own_w = head.layout.constrain(w.astype(h.dtype), "tensor", None)

    def body(i, carry):
        dw, dh = carry
        part, own_token, own_temperature = _block(head, (h, token, temperature), i)
        scores, slope = head.scores(own_w, part, own_temperature)

        def column(x):
            return _block(head, (x,), i)[0][:, None]

        logp = scores - column(out.lse)
        share = column(grad.lse - grad.logprob)
        if head.entropy:
            share -= column(grad.entropy) * (logp + column(out.entropy))
        own = head.own(scores, own_token)
        step = jnp.exp(logp) * share + jnp.where(own, column(grad.logprob), 0.0)
        step = (step * slope).astype(h.dtype)
        step = head.layout.constrain(step, None, "tensor")
        dw += jnp.einsum("bv,bd->vd", step, part, preferred_element_type=jnp.float32)
        down = jnp.einsum("bv,vd->bd", step, own_w, preferred_element_type=jnp.float32)
        return dw, _put(head, dh, down.astype(h.dtype), i)

    dw = head.layout.constrain(jnp.zeros(w.shape, jnp.float32), "tensor", None)
    dw, dh = jax.lax.fori_loop(0, blocks, body, (dw, jnp.zeros_like(h)))
    return dw.astype(w.dtype), dh, None, None, None


_token_scores.defvjp(_forward, _backward)
