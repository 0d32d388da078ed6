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

HEAD_CHUNK = 256  # action tokens whose logits exist at a time


def action_logprobs(
    policy: Policy, params: Any, adapters: Any, batch: TrainBatch
) -> jax.Array:
    """log pi of every action token, [N, C] float32, at its sampling temperature.

    The head is evaluated at action positions only, a chunk of tokens at a time, and
    recomputed in the backward pass: [N, T, V] never exists.
    """
    model = policy.decoder(remat=policy.remat)
    hidden, _ = model.apply(
        {"params": params},
        batch.tokens,
        batch.positions,
        batch.ends,
        adapters=adapters,
    )
    picked = jnp.take_along_axis(hidden, batch.index[..., None], 1)

    @jax.checkpoint
    def chunk(args):
        h, token, temperature = args
        scores = logits(params, policy.cfg, h) / temperature[:, None]
        chosen = jnp.take_along_axis(scores, token[:, None], 1)[:, 0]
        return chosen - jax.nn.logsumexp(scores, -1)

    flat = (
        picked.reshape(-1, picked.shape[-1]),
        batch.target.reshape(-1),
        batch.temperature.reshape(-1),
    )
    out = jax.lax.map(chunk, _chunks(flat)).reshape(-1)
    return out[: batch.target.size].reshape(batch.target.shape)


def _chunks(flat: Any) -> Any:
    count = flat[1].shape[0]
    size = min(HEAD_CHUNK, count)
    pad = -count % size

    def one(x):
        x = jnp.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1), constant_values=1)
        return x.reshape(-1, size, *x.shape[1:])

    return jax.tree.map(one, flat)


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
