"""From rewards to advantages (METHOD.md, "Reward, return, advantage").

The only module that normalises. Pure functions over one agent's actions; never
across agents.

Axes: N actions, C tokens of an action.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

VAR_FLOOR = 1e-8
ALL_EQUAL = 1e-12  # a variance below this is rounding


def token_rewards(
    reward_N: jax.Array, kl_NxC: jax.Array, mask_NxC: jax.Array, beta: float
) -> jax.Array:
    """rho_t = -beta * k_t, plus the action's reward on its last token. [N, C]."""
    chex.assert_equal_shape([kl_NxC, mask_NxC])
    last = mask_NxC * (1 - jnp.pad(mask_NxC[:, 1:], ((0, 0), (0, 1))))
    return mask_NxC * (-beta * kl_NxC) + last * reward_N[:, None]


def returns(rho_NxC: jax.Array) -> jax.Array:
    """G_t = rho_t + G_{t+1} within the action (gamma = 1). [N, C]."""
    return jnp.cumsum(rho_NxC[:, ::-1], axis=1)[:, ::-1]


def whiten(x: jax.Array, weight: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(max(var, 1e-8)) with weights; zeros where all are equal.

    The variance is the population's (REINFORCE++, arXiv 2501.03262).
    """
    total = jnp.maximum(weight.sum(), 1e-30)
    mean = (weight * x).sum() / total
    var = (weight * (x - mean) ** 2).sum() / total
    out = (x - mean) / jnp.sqrt(jnp.maximum(var, VAR_FLOOR))
    return jnp.where((weight > 0) & (var > ALL_EQUAL), out, 0.0)


def group_mean(
    x_N: jax.Array, group_N: jax.Array, valid_N: jax.Array, *, leave_out: bool
) -> jax.Array:
    """The mean of each action's group; [N].

    Args:
      x_N: values.
      group_N: int32 below N.
      valid_N: float32, 0 leaves an action out.
      leave_out: of the others in the group; a group of one then gets the batch mean.
    """
    n = x_N.shape[0]
    total = jax.ops.segment_sum(x_N * valid_N, group_N, n)[group_N]
    count = jax.ops.segment_sum(valid_N, group_N, n)[group_N]
    if leave_out:
        total, count = total - x_N * valid_N, count - valid_N
    batch = (x_N * valid_N).sum() / jnp.maximum(valid_N.sum(), 1.0)
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), batch)


def _loo(reward, group, valid):
    return reward - group_mean(reward, group, valid, leave_out=True)


def _grpo_centred(reward, group, valid):
    """Group mean (the batch mean for a group of one)."""
    size = jax.ops.segment_sum(valid, group, reward.shape[0])[group]
    inside = group_mean(reward, group, valid, leave_out=False)
    alone = group_mean(reward, jnp.zeros_like(group), valid, leave_out=False)
    return reward - jnp.where(size > 1, inside, alone)


def _grpo_std(reward, group, valid):
    centred = _grpo_centred(reward, group, valid)
    size = jax.ops.segment_sum(valid, group, reward.shape[0])[group]
    inside = group_mean(centred**2, group, valid, leave_out=False)
    alone = group_mean(centred**2, jnp.zeros_like(group), valid, leave_out=False)
    var = jnp.where(size > 1, inside, alone)
    return centred / jnp.sqrt(jnp.maximum(var, VAR_FLOOR))


def advantages(
    reward_N: jax.Array,
    kl_NxC: jax.Array,
    mask_NxC: jax.Array,
    group_N: jax.Array,
    kind_N: jax.Array,
    *,
    estimator: str,
    weight: str,
    beta: float,
) -> jax.Array:
    """One agent's token advantages, [N, C] float32.

    Args:
      reward_N: one reward per action.
      kl_NxC: log pi - log pi_ref of each sampled token (k1).
      mask_NxC: 1 for tokens that are trained on; a fully masked action counts in
        no statistic.
      group_N: int32 below N, equal for samples of one task and turn.
      kind_N: int32 below N, equal for tasks of one type.
      estimator: a key of `ESTIMATORS`.
      weight: "token" or "action": what the whitening counts once.
      beta: KL coefficient of the reward (0 where the KL is in the loss).
    """
    chex.assert_rank([reward_N, kl_NxC, mask_NxC], [1, 2, 2])
    mask = mask_NxC.astype(jnp.float32)
    length_N = mask.sum(1)
    valid_N = (length_N > 0).astype(jnp.float32)
    baseline, whitened = ESTIMATORS[estimator]
    group = kind_N if estimator == "task_type_baseline" else group_N
    reward = baseline(reward_N, group, valid_N)
    out = returns(token_rewards(reward, kl_NxC, mask, beta)) * mask
    if whitened:
        per_action = mask / jnp.maximum(length_N, 1.0)[:, None]
        out = whiten(out, mask if weight == "token" else per_action)
        # One action alone would only be compared with its own KL.
        out = jnp.where(valid_N.sum() > 1, out, 0.0)
    return out * mask


def _as_is(reward, group, valid):
    return reward


def _batch_mean(reward, group, valid):
    one = jnp.zeros_like(group)
    return reward - group_mean(reward, one, valid, leave_out=False)


def _kind_mean(reward, group, valid):
    return reward - group_mean(reward, group, valid, leave_out=False)


# name -> (baseline on the action's reward, whiten the token returns afterwards).
ESTIMATORS: dict[str, tuple[Callable, bool]] = {
    "reinforce_pp": (_as_is, True),
    "reinforce": (_as_is, False),
    "reinforce_baseline": (_loo, True),  # REINFORCE++-baseline
    "rloo": (_loo, False),  # arXiv 2402.14740
    "grpo": (_grpo_std, False),  # arXiv 2402.03300
    "grpo_no_std": (_grpo_centred, False),  # Dr. GRPO, arXiv 2503.20783
    "agent_baseline": (_batch_mean, False),
    "task_type_baseline": (_kind_mean, False),
}
