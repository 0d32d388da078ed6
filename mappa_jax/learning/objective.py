"""The clipped surrogate and the log-probabilities it is made of.

Axes: N rows, T tokens, C action tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mappa_jax.config import ObjectiveConfig
from mappa_jax.learning.batch import TrainBatch
from mappa_jax.models.decoder import logits
from mappa_jax.models.policy import Policy

HEAD_CHUNK = 256  # action tokens whose logits exist at a time, on each device


def action_logprobs(
    policy: Policy, params: Any, adapters: Any, batch: TrainBatch
) -> jax.Array:
    """log pi of every action token, [N, C] float32, at its sampling temperature.

    The head is evaluated at action positions only, a few tokens of every row at a time,
    and recomputed in the backward pass: [N, T, V] never exists.
    """
    layout, rows = policy.layout, policy.layout.row_axes
    model = policy.decoder(rows=rows, remat=policy.remat)
    hidden, _ = model.apply(
        {"params": params},
        batch.tokens,
        batch.positions,
        batch.ends,
        adapters=adapters,
    )
    picked = jnp.take_along_axis(hidden, batch.index[..., None], 1)
    picked = layout.constrain(picked, rows, None, None)

    @jax.checkpoint
    def chunk(args):
        h_NxcxD, token_Nxc, temperature_Nxc = args
        scores = logits(params, policy.cfg, h_NxcxD) / temperature_Nxc[..., None]
        scores = layout.constrain(scores, rows, None, "tensor")
        # Not a gather, which would bring together what lies apart along V.
        own = jnp.arange(scores.shape[-1]) == token_Nxc[..., None]
        chosen = jnp.where(own, scores, 0.0).sum(-1)
        return chosen - jax.nn.logsumexp(scores, -1)

    n, c = batch.target.shape
    width = min(c, max(1, HEAD_CHUNK * layout.ways // n))
    parts = _split((picked, batch.target, batch.temperature), width)
    out = jax.lax.map(chunk, parts)
    return out.swapaxes(0, 1).reshape(n, -1)[:, :c]


def _split(arrays: Any, width: int) -> Any:
    """[N, C, ...] -> [ceil(C / width), N, width, ...], padded with ones."""

    def one(x):
        pad = ((0, 0), (0, -x.shape[1] % width)) + ((0, 0),) * (x.ndim - 2)
        x = jnp.pad(x, pad, constant_values=1)
        return x.reshape(x.shape[0], -1, width, *x.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(one, arrays)


def surrogate(
    logp: jax.Array, batch: TrainBatch, config: ObjectiveConfig
) -> tuple[jax.Array, jax.Array]:
    """Token losses and whether the clip is active, both [.., C].

    -min(ratio A, clip(ratio, 1 - eps_low, 1 + eps_high) A) (PPO, arXiv 1707.06347;
    the two bounds, DAPO, arXiv 2503.14476), times the truncated importance weight.
    """
    ratio = jnp.exp(logp - batch.old)
    clipped = jnp.clip(ratio, 1 - config.eps_low, 1 + config.eps_high)
    plain, bounded = ratio * batch.advantage, clipped * batch.advantage
    return -jnp.minimum(plain, bounded) * batch.importance, bounded < plain


def k3(logp: jax.Array, reference: jax.Array) -> jax.Array:
    """exp(d) - d - 1 with d = reference - logp: an estimate of the KL per token that
    is never negative (joschu.net/blog/kl-approx.html)."""
    gap = reference - logp
    return jnp.exp(gap) - gap - 1
