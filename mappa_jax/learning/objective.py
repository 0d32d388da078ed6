"""The clipped surrogate and the log-probabilities it is made of.

Axes: N rows, T tokens, C action tokens, D model width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from mappa_jax.config import ObjectiveConfig
from mappa_jax.learning.batch import TrainBatch
from mappa_jax.models.decoder import head_weights
from mappa_jax.models.head import Head, token_scores
from mappa_jax.models.policy import Policy
from mappa_jax.parallel.mesh import Layout

HEAD_BLOCK = 256  # action tokens whose scores exist at a time, on each device


def action_logprobs(
    policy: Policy, params: Any, adapters: Any, batch: TrainBatch, blocks: jax.Array
) -> jax.Array:
    """log pi of every action token that is trained on, [N, C] float32, at its sampling
    temperature; 0 for the others.

    The head is evaluated at these tokens only, see models/head.py.

    Args:
      policy: the group's.
      params, adapters: its weights.
      batch: rows, [N, ...].
      blocks: as `head_blocks` counts them.
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
    cfg = policy.cfg
    head = Head(HEAD_BLOCK, softcap=cfg.final_softcap, layout=layout)
    w = head_weights(params, cfg)

    def way(hidden_NxTxD, index, mask, target, temperature):
        n, t, d = hidden_NxTxD.shape
        order = jnp.argsort(mask.reshape(-1) == 0, stable=True)
        places = (jnp.arange(n)[:, None] * t + index).reshape(-1)[order]
        found = token_scores(
            head,
            w,
            hidden_NxTxD.reshape(-1, d)[places],
            target.reshape(-1)[order],
            temperature.reshape(-1)[order],
            blocks,
        )
        logp = jnp.zeros_like(found.logprob).at[order].set(found.logprob)
        return jnp.where(mask > 0, logp.reshape(mask.shape), 0.0)

    arrays = (hidden, batch.index, batch.mask, batch.target, batch.temperature)
    apart = [layout.constrain(in_ways(layout, x), rows) for x in arrays]
    out = layout.over_ways(way)(*apart)
    return out.reshape(batch.mask.shape)


def in_ways(layout: Layout, x: jax.Array) -> jax.Array:
    """[N, ...] -> [ways, N / ways, ...]: rows by the devices that they lie on."""
    return x.reshape(layout.ways, -1, *x.shape[1:])


def head_blocks(policy: Policy, mask: jax.Array) -> jax.Array:
    """How many blocks of tokens `action_logprobs` has to go through: of each lane's
    micro-batches, the most that any device has.

    Args:
      policy: the group's.
      mask: [W, M, R, C].

    Returns:
      [W, M] int32.
    """
    w, m, *_ = mask.shape
    tokens = (mask > 0).reshape(w, m, policy.layout.ways, -1).sum(-1)
    return -(-tokens.max(2) // HEAD_BLOCK)


def token_losses(
    logp_NxC: jax.Array, batch: TrainBatch, config: ObjectiveConfig
) -> tuple[jax.Array, jax.Array]:
    """Losses of the action tokens and whether the clip is active, both [N, C]."""
    if config.loss == "likelihood":
        return -logp_NxC, jnp.zeros(logp_NxC.shape, bool)
    return surrogate(logp_NxC, batch, config)


def surrogate(
    logp: jax.Array, batch: TrainBatch, config: ObjectiveConfig
) -> tuple[jax.Array, jax.Array]:
    """`token_losses` of policy gradient.

    -min(ratio A, clip(ratio, 1 - eps_low, 1 + eps_high) A) (PPO, arXiv 1707.06347;
    the two bounds, DAPO, arXiv 2503.14476), times the truncated importance weight.
    With config.ratio="sequence" the ratio is the geometric mean over the tokens of an
    action (GSPO, arXiv 2507.18071).
    """
    gap = logp - batch.old
    if config.ratio == "sequence":
        gap = jax.vmap(action_means)(gap, batch.action, batch.mask)
    ratio = jnp.exp(gap)
    clipped = jnp.clip(ratio, 1 - config.eps_low, 1 + config.eps_high)
    plain, bounded = ratio * batch.advantage, clipped * batch.advantage
    return -jnp.minimum(plain, bounded) * batch.importance, bounded < plain


def action_means(x_C: jax.Array, action_C: jax.Array, mask_C: jax.Array) -> jax.Array:
    """[C]: the mean over the tokens of each token's own action."""
    most = x_C.shape[0]
    total = jax.ops.segment_sum(x_C * mask_C, action_C, most)
    count = jax.ops.segment_sum(mask_C, action_C, most)
    return (total / jnp.maximum(count, 1.0))[action_C]


def k3(logp: jax.Array, reference: jax.Array) -> jax.Array:
    """exp(d) - d - 1 with d = reference - logp: an estimate of the KL per token that
    is never negative (joschu.net/blog/kl-approx.html)."""
    gap = reference - logp
    return jnp.exp(gap) - gap - 1
