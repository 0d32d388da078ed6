"""One compiled update for the whole team.

Agents are stacked and vmapped; gradients are accumulated over micro-batches in a
loop inside the program; each agent's gradient is clipped by its own norm and
applied by Optax with its own learning rate. An agent without tokens, or with a
gradient that is not finite, keeps its weights and its optimiser state.

Axes: A agents, W lanes, M micro-batches, R rows, C action tokens (learning/batch).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mappa_jax.config import Config, KLConfig, OptimizerConfig
from mappa_jax.learning import batch as batches
from mappa_jax.learning import credit, objective
from mappa_jax.learning.batch import Minibatch, Packed, Shape, TrainBatch
from mappa_jax.models.policy import Policy
from mappa_jax.parallel import mesh as meshlib

METRICS = (
    "kl",
    "clip_fraction",
    "entropy",
    "mismatch",
    "loss",
    "grad_norm",
    "learning_rate",
    "trained_tokens",
    "updates",
    "nonfinite",
)


@chex.dataclass(frozen=True)
class TeamState:
    """What training changes; leading axis A everywhere.

    Attributes:
      trainable: weights (mode "full") or adapters (mode "lora").
      opt_state: of Optax.
      beta: [A] float32, the coefficient of the KL.
      updates: [A] int32, optimiser steps taken.
      skipped: [A] int32, updates refused because the gradient was not finite.
    """

    trainable: Any
    opt_state: Any
    beta: Any
    updates: Any
    skipped: Any


def optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping and AdamW without its learning rate, which differs by agent."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay),
    )


def estimated_updates(config: Config) -> np.ndarray:
    """[A] optimiser steps that each agent can take in the whole run, at most."""
    per_step = config.data.prompts_per_step * config.data.samples_per_prompt
    size = config.optimizer.actions_per_update
    counts = [
        config.steps * config.optimizer.epochs * -(-per_step * a.max_turns // size)
        for a in config.agents.values()
    ]
    return np.asarray(counts, np.int32)


def init_state(trainable: Any, config: Config, mesh: Mesh) -> TeamState:
    """A fresh state around `trainable`, its optimiser states placed alike."""
    tx = optimizer(config.optimizer)
    agents = len(config.agents)
    placed = state_shardings(trainable, config, mesh)
    opt_state = jax.jit(jax.vmap(tx.init), out_shardings=placed.opt_state)(trainable)

    def full(value: float, dtype: Any) -> jax.Array:
        return jax.device_put(np.full((agents,), value, dtype), placed.updates)

    return TeamState(
        trainable=trainable,
        opt_state=opt_state,
        beta=full(config.kl.beta, np.float32),
        updates=full(0, np.int32),
        skipped=full(0, np.int32),
    )


def state_shardings(trainable: Any, config: Config, mesh: Mesh) -> TeamState:
    """The placement of every leaf: moments lie where their parameters lie."""
    tx = optimizer(config.optimizer)
    where = jax.tree.map(lambda x: x.sharding, trainable)
    by_agent = NamedSharding(mesh, PartitionSpec("agent"))
    return TeamState(
        trainable=where,
        opt_state=optax.tree_utils.tree_map_params(
            tx,
            lambda _, s: s,
            jax.eval_shape(jax.vmap(tx.init), trainable),
            where,
            transform_non_params=lambda _: by_agent,
        ),
        beta=by_agent,
        updates=by_agent,
        skipped=by_agent,
    )


class Learner:
    """The compiled functions of the learning half, at their one fixed shape.

    Everything is compiled ahead of time: another shape raises, nothing recompiles.

    Raises:
      ConfigError: packing.rows does not divide the mesh.
    """

    def __init__(self, policy: Policy, config: Config, mesh: Mesh):
        rows = (config.packing.rows,)
        meshlib.check_divides(mesh, "config.packing.rows", rows, ("batch",))
        self._policy = policy
        self._config = config
        self._mesh = mesh
        self._by_agent = NamedSharding(mesh, PartitionSpec("agent"))
        rates = [a.learning_rate for a in config.agents.values()]
        totals = estimated_updates(config)
        if config.optimizer.total_updates:
            totals = np.full_like(totals, config.optimizer.total_updates)
        self._peaks = jax.device_put(
            (np.asarray(rates, np.float32), totals), self._by_agent
        )
        self._score: Callable | None = None

    @property
    def shape(self) -> Shape:
        """The shapes that `batch.pack` must fill: room for every agent's most."""
        config, policy = self._config, self._policy
        turns = max(a.max_turns for a in config.agents.values())
        rollouts = config.data.prompts_per_step * config.data.samples_per_prompt
        per_lane = config.optimizer.actions_per_update * policy.agents // policy.lanes
        return Shape(
            actions=rollouts * turns,
            action_tokens=max(a.max_new_tokens for a in config.agents.values()),
            lanes=policy.lanes,
            microbatches=-(-per_lane // config.packing.rows),
            packing=config.packing,
        )

    def _rows_sharding(self) -> NamedSharding:
        lanes = self._policy.mode == "full"
        return meshlib.batch_sharding(self._mesh, agent_axis=lanes, rows_axis=2)

    def _batch_shapes(self) -> TrainBatch:
        where = self._rows_sharding()
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            batches.blank(self.shape),
        )

    def warm_up(self, state: TeamState, frozen: Any) -> None:
        """Compiles everything for weights shaped and placed like these."""
        config, policy = self._config, self._policy

        def shapes(tree: Any) -> Any:
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                tree,
            )

        weights, batch = shapes(state), self._batch_shapes()
        base = shapes(frozen)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        rows = self._rows_sharding()
        if config.kl.beta:
            reference = functools.partial(reference_logprobs, policy)
            compiled = jax.jit(reference, out_shardings=rows)
            self._reference = compiled.lower(base, batch, count).compile()
        base = base if policy.mode == "lora" else None
        if config.objective.old_logprobs == "recompute":
            score = jax.jit(
                functools.partial(team_logprobs, policy), out_shardings=rows
            )
            self._score = score.lower(weights.trainable, base, batch, count).compile()
        update = jax.jit(
            functools.partial(team_update, policy, config),
            donate_argnums=(0,),
            out_shardings=(
                state_shardings(state.trainable, config, self._mesh),
                self._by_agent,
            ),
        )
        peaks = shapes(self._peaks)
        self._update = update.lower(weights, base, batch, count, *peaks).compile()
        credit_fn = jax.jit(
            functools.partial(team_advantages, config), out_shardings=self._by_agent
        )
        a, n, c = policy.agents, self.shape.actions, self.shape.action_tokens

        def of(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=self._by_agent)

        ids = of(a, n, dtype=jnp.int32)
        self._advantages = credit_fn.lower(
            of(a), of(a, n), of(a, n, c), of(a, n, c), ids, ids
        ).compile()

    def _placed(self, batch: TrainBatch) -> TrainBatch:
        return jax.device_put(batch, self._rows_sharding())

    def _over(self, compiled: Callable, packed: Packed, *weights: Any) -> np.ndarray:
        """Scores of all actions, [A, N, C]; 0 where there is no token."""
        out = np.zeros_like(packed.actions.behaviour)
        for part in packed.minibatches:
            batch = self._placed(part.batch)
            found = compiled(*weights, batch, np.int32(part.count))
            part.gather(np.asarray(found), out)
        return out

    def assign_credit(self, state: TeamState, frozen: Any, packed: Packed) -> Packed:
        """Fills in reference and old log-probabilities and the advantages.

        The reference forward is skipped where the KL has no weight; the reported KL
        is then 0.
        """
        config, actions = self._config, packed.actions
        reference = old = actions.behaviour
        importance = np.ones_like(old)
        if config.kl.beta:
            reference = self._over(self._reference, packed, frozen)
        if self._score is not None:
            base = frozen if self._policy.mode == "lora" else None
            old = self._over(self._score, packed, state.trainable, base)
            drift = np.exp(actions.mask * (old - actions.behaviour))
            importance = np.minimum(drift, config.objective.is_truncation)
        kl = actions.mask * (old - reference)
        advantage = np.asarray(
            self._advantages(
                *(state.beta, actions.reward, kl),
                *(actions.mask, actions.group, actions.kind),
            )
        )

        def filled(part: Minibatch) -> Minibatch:
            batch = part.batch.replace(
                reference=part.scatter(reference),
                old=part.scatter(old),
                importance=part.scatter(importance),
                advantage=part.scatter(advantage),
            )
            return dataclasses.replace(part, batch=batch)

        parts = tuple(filled(part) for part in packed.minibatches)
        return dataclasses.replace(packed, minibatches=parts)

    def update(
        self, state: TeamState, frozen: Any, packed: Packed
    ) -> tuple[TeamState, dict[str, np.ndarray]]:
        """`optimizer.epochs` passes over the batch, an optimiser step per mini-batch.

        `state` is donated.

        Returns:
          The new state, and per-agent metrics [A], means over tokens or over updates.
        """
        base = frozen if self._policy.mode == "lora" else None
        sums = []
        for part in packed.minibatches * self._config.optimizer.epochs:
            batch, count = self._placed(part.batch), np.int32(part.count)
            state, metrics = self._update(state, base, batch, count, *self._peaks)
            sums.append(metrics)
        metrics = _summary(jax.device_get(sums), self._policy.agents)
        metrics["beta"] = np.asarray(state.beta)
        if self._config.kl.target:
            beta = next_beta(metrics, self._config.kl)
            state = state.replace(beta=jax.device_put(beta, self._by_agent))
        return state, metrics


def _summary(parts: list[dict[str, np.ndarray]], agents: int) -> dict[str, np.ndarray]:
    """Sums over mini-batches -> means.

    The mismatch between sampler and trainer is the first mini-batch's: later ones
    have seen an update.
    """
    if not parts:
        return {name: np.zeros(agents) for name in METRICS}
    total = {k: np.sum([p[k] for p in parts], 0) for k in parts[0]}
    tokens = np.maximum(total["tokens"], 1)
    steps = np.maximum(total["updates"], 1)
    out = {k: total[k] / tokens for k in ("kl", "clip_fraction", "entropy")}
    first = parts[0]
    out["mismatch"] = first["mismatch"] / np.maximum(first["tokens"], 1)
    out |= {k: total[k] / steps for k in ("loss", "grad_norm", "learning_rate")}
    out |= {
        "trained_tokens": total["tokens"],
        "updates": total["updates"],
        "nonfinite": total["nonfinite"],
    }
    return out


def next_beta(metrics: dict[str, np.ndarray], config: KLConfig) -> np.ndarray:
    """The proportional controller of Ziegler et al. 2019 (arXiv 1909.08593, 2.2).

    An agent that was not trained on anything keeps its coefficient. [A] float32.
    """
    error = np.clip(metrics["kl"] / config.target - 1, -0.2, 0.2)
    moved = metrics["beta"] * (1 + config.rate * error)
    trained = metrics["trained_tokens"] > 0
    return np.where(trained, moved, metrics["beta"]).astype(np.float32)


def team_advantages(config: Config, beta, reward, kl, mask, group, kind) -> jax.Array:
    """`credit.advantages` for every agent: [A, N, C]."""
    if config.kl.place == "loss":
        beta = jnp.zeros_like(beta)
    one = functools.partial(
        credit.advantages,
        estimator=config.advantage.estimator,
        weight=config.advantage.weight,
    )
    return jax.vmap(one)(reward, kl, mask, group, kind, beta=beta)


def _over_lanes(policy: Policy, function: Callable, in_axes: Any) -> Callable:
    name = "agent" if policy.mode == "full" else None
    return jax.vmap(function, in_axes=in_axes, spmd_axis_name=name)


def _lane(policy: Policy, trainable: Any) -> Any:
    """Gives adapters, which all agents' rows share, the lane axis of size one."""
    if policy.mode == "full":
        return trainable
    return jax.tree.map(lambda p: p[None], trainable)


def team_logprobs(policy: Policy, trainable, base, batch: TrainBatch, count):
    """Log-probabilities under the policies being trained: [W, M, R, C]."""

    def lane(own, rows):
        def one(part):
            params, adapters = policy.for_training(own, base, part.agent)
            return objective.action_logprobs(policy, params, adapters, part)

        return _map_some(one, rows, count)

    return _over_lanes(policy, lane, (0, 0))(_lane(policy, trainable), batch)


def reference_logprobs(policy: Policy, frozen, batch: TrainBatch, count) -> jax.Array:
    """Log-probabilities under the reference policy: [W, M, R, C]."""

    def lane(params, rows):
        def one(part):
            return objective.action_logprobs(policy, params, None, part)

        return _map_some(one, rows, count)

    axis = 0 if policy.stacked_reference else None
    return _over_lanes(policy, lane, (axis, 0))(frozen, batch)


def _map_some(function: Callable, batch: TrainBatch, count) -> jax.Array:
    """`function` of the first `count` micro-batches; zeros for the rest."""

    def body(m, out):
        return out.at[m].set(function(_take(batch, m)))

    return jax.lax.fori_loop(0, count, body, jnp.zeros_like(batch.mask))


def _take(batch: TrainBatch, m) -> TrainBatch:
    return jax.tree.map(lambda x: x[m], batch)


SUMS = ("loss", "kl", "clip_fraction", "mismatch", "entropy", "tokens")


def team_update(
    policy: Policy, config: Config, state: TeamState, base, batch, count, rates, totals
) -> tuple[TeamState, dict[str, jax.Array]]:
    """One optimiser step of every agent.

    Args:
      policy, config: static.
      state: of the team.
      base: the frozen base weights (mode "lora") or None.
      batch: a mini-batch, [W, M, R, ...].
      count: [] int32: only the first so many micro-batches hold anything. The number
        of turns of the accumulation loop, so empty ones cost nothing.
      rates: [A] float32 peak learning rates.
      totals: [A] int32 optimiser steps of the schedule.

    Returns:
      The new state and sums per agent, [A].
    """
    grad = functools.partial(lane_gradient, policy, config)
    grads, sums = _over_lanes(policy, grad, (0, None, None, 0, None))(
        _lane(policy, state.trainable), state.beta, base, batch, count
    )
    # Sums are per lane and agent; an agent's own lane holds all that it has.
    sums = {name: value.sum(0) for name, value in sums.items()}
    if policy.mode == "lora":
        grads = jax.tree.map(lambda g: g[0], grads)
    step = functools.partial(agent_step, config.optimizer)
    state, extra = jax.vmap(step, spmd_axis_name="agent")(
        state, grads, sums["tokens"], rates, totals
    )
    return state, sums | extra


def lane_gradient(policy: Policy, config: Config, trainable, beta, base, batch, count):
    """Gradient and metric sums of one lane, accumulated over its micro-batches.

    Returns:
      A tree like `trainable`, float32, and a dict of [A] sums.
    """

    def loss_fn(own, rows):
        params, adapters = policy.for_training(own, base, rows.agent)
        logp = objective.action_logprobs(policy, params, adapters, rows)
        logp = jnp.where(rows.mask > 0, logp, 0.0)
        loss, clipped = objective.surrogate(logp, rows, config.objective)
        if config.kl.place == "loss" and config.kl.beta:
            loss += beta[rows.agent][:, None] * objective.k3(logp, rows.reference)
        per_row = {
            "loss": (rows.weight * loss).sum(1),
            "kl": (rows.mask * (rows.old - rows.reference)).sum(1),
            "clip_fraction": (rows.mask * clipped).sum(1),
            "mismatch": (rows.mask * jnp.abs(logp - rows.behaviour)).sum(1),
            "entropy": -(rows.mask * rows.behaviour).sum(1),
            "tokens": rows.mask.sum(1),
        }

        def by_agent(row_values):  # not a product: 0 * NaN would reach the others
            return jax.ops.segment_sum(row_values, rows.agent, policy.agents)

        return per_row["loss"].sum(), jax.tree.map(by_agent, per_row)

    def body(m, carry):
        grads, sums = carry
        grad, new = jax.grad(loss_fn, has_aux=True)(trainable, _take(batch, m))
        return (
            jax.tree.map(lambda a, g: a + g.astype(a.dtype), grads, grad),
            jax.tree.map(jnp.add, sums, new),
        )

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trainable)
    start = (zeros, {name: jnp.zeros((policy.agents,)) for name in SUMS})
    return jax.lax.fori_loop(0, count, body, start)


def agent_step(
    config: OptimizerConfig, state: TeamState, grads, tokens, rate, total
) -> tuple[TeamState, dict[str, jax.Array]]:
    """Clips and applies one agent's gradient; arrays have no agent axis.

    Without tokens, or with a gradient that is not finite, nothing changes.
    """
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(norm)
    used = finite & (tokens > 0)
    rate = rate * schedule_share(config, state.updates, total)
    step, opt_state = optimizer(config).update(grads, state.opt_state, state.trainable)
    trainable = jax.tree.map(
        lambda p, u: (p - rate * u).astype(p.dtype), state.trainable, step
    )

    def keep(new, old):
        return jax.tree.map(lambda n, o: jnp.where(used, n, o), new, old)

    new_state = state.replace(
        trainable=keep(trainable, state.trainable),
        opt_state=keep(opt_state, state.opt_state),
        updates=state.updates + used,
        skipped=state.skipped + ~finite,
    )
    return new_state, {
        "grad_norm": jnp.where(used, norm, 0.0),
        "learning_rate": jnp.where(used, rate, 0.0),
        "updates": used.astype(jnp.int32),
        "nonfinite": (~finite).astype(jnp.int32),
    }


def schedule_share(config: OptimizerConfig, taken, total) -> jax.Array:
    """Share of the peak learning rate after `taken` of `total` updates.

    Linear warm-up over the first `warmup_fraction`, then a cosine down to
    `final_fraction`, then constant. Counts from 1, so that the first update is not
    lost to a rate of zero.
    """
    taken = jnp.asarray(taken, jnp.float32) + 1
    total = jnp.maximum(jnp.asarray(total, jnp.float32), 1)
    warmup = jnp.round(config.warmup_fraction * total)
    rising = taken / jnp.maximum(warmup, 1)
    done = jnp.clip((taken - warmup) / jnp.maximum(total - warmup, 1), 0, 1)
    final = config.final_fraction
    falling = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
    return jnp.where(taken <= warmup, rising, falling)
