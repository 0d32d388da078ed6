"""One compiled update for the whole team.

Agents are stacked and vmapped; gradients are accumulated over micro-batches by
`lax.scan`; each agent's gradient is clipped by its own norm and applied by Optax
with its own learning rate. An agent without tokens, or with a gradient that is
not finite, keeps its weights and its optimiser state.

Axes: A agents, M micro-batches, R rows, C action tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mappa_jax.config import Config, OptimizerConfig
from mappa_jax.learning import credit, objective
from mappa_jax.learning.batch import ActionFacts, TrainBatch
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
      updates: [A] int32, optimiser steps taken.
      skipped: [A] int32, updates refused because the gradient was not finite.
    """

    trainable: Any
    opt_state: Any
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
    zeros = jax.device_put(np.zeros((agents,), np.int32), placed.updates)
    return TeamState(
        trainable=trainable,
        opt_state=opt_state,
        updates=zeros,
        skipped=jax.device_put(np.zeros((agents,), np.int32), placed.skipped),
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
        updates=by_agent,
        skipped=by_agent,
    )


class Learner:
    """The compiled functions of the learning half.

    Every function is compiled ahead of time for the row lengths in
    `config.train_buckets`; other shapes raise.
    """

    def __init__(self, policy: Policy, config: Config, mesh: Mesh):
        self._policy = policy
        self._config = config
        self._mesh = mesh
        self._rates = np.asarray(
            [a.learning_rate for a in config.agents.values()], np.float32
        )
        total = config.optimizer.total_updates
        self._totals = (
            np.full_like(estimated_updates(config), total)
            if total
            else estimated_updates(config)
        )
        self.action_tokens = max(a.max_new_tokens for a in config.agents.values())
        self._score: dict[int, Callable] = {}
        self._reference: dict[int, Callable] = {}
        self._update: dict[int, Callable] = {}

    # -- shapes ----------------------------------------------------------------

    @property
    def minibatch(self) -> tuple[int, int]:
        """(M, R) of one optimiser step."""
        rows = self._config.optimizer.rows_per_microbatch
        return self._config.optimizer.actions_per_update // rows, rows

    @property
    def rows(self) -> int:
        """N of a rollout batch: every agent's most actions, whole mini-batches."""
        data, size = self._config.data, self._config.optimizer.actions_per_update
        turns = max(a.max_turns for a in self._config.agents.values())
        most = data.prompts_per_step * data.samples_per_prompt * turns
        return -(-most // size) * size

    def _batch_shapes(self, t: int) -> TrainBatch:
        m, r = self.minibatch
        lead = (self._policy.agents, m, r)
        where = meshlib.batch_sharding(self._mesh, agent_axis=True, rows_axis=2)
        meshlib.check_divides(
            self._mesh,
            "optimizer.rows_per_microbatch",
            lead,
            ("agent", None, "batch"),
        )

        def shape(width, dtype):
            return jax.ShapeDtypeStruct((*lead, width), dtype, sharding=where)

        wide = dict.fromkeys(("tokens", "positions", "segments"), shape(t, jnp.int32))
        fields = ("mask", "temperature", "behaviour", "reference", "old")
        fields += ("importance", "advantage")
        c = self.action_tokens
        narrow = dict.fromkeys(fields, shape(c, jnp.float32))
        return TrainBatch(**wide, **narrow, index=shape(c, jnp.int32))

    def warm_up(self, state: TeamState, frozen: Any) -> None:
        """Compiles everything for these weights and all row lengths."""
        config, policy, mesh = self._config, self._policy, self._mesh
        shapes = functools.partial(
            jax.tree.map,
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        )
        state_shapes, frozen_shapes = shapes(state), shapes(frozen)
        agents = NamedSharding(mesh, PartitionSpec("agent"))
        a = policy.agents
        rates = jax.ShapeDtypeStruct((a,), jnp.float32, sharding=agents)
        totals = jax.ShapeDtypeStruct((a,), jnp.int32, sharding=agents)
        placed = state_shardings(state.trainable, config, mesh)
        rows = meshlib.batch_sharding(mesh, agent_axis=True, rows_axis=2)
        update = jax.jit(
            functools.partial(team_update, policy, config),
            donate_argnums=(0,),
            out_shardings=(placed, agents),
        )
        score = jax.jit(functools.partial(team_logprobs, policy), out_shardings=rows)
        reference = jax.jit(
            functools.partial(reference_logprobs, policy), out_shardings=rows
        )
        base = frozen_shapes if policy.mode == "lora" else None
        for t in config.train_buckets:
            batch = self._batch_shapes(t)
            self._reference[t] = reference.lower(frozen_shapes, batch).compile()
            if config.objective.old_logprobs == "recompute":
                trained = state_shapes.trainable
                self._score[t] = score.lower(trained, base, batch).compile()
            self._update[t] = update.lower(
                state_shapes, base, batch, rates, totals
            ).compile()
        n, c = self.rows, self.action_tokens

        def of(*shape, dtype=jnp.float32):
            return jax.ShapeDtypeStruct((a, *shape), dtype, sharding=agents)

        credit_fn = jax.jit(
            functools.partial(team_advantages, config), out_shardings=agents
        )
        ids = of(n, dtype=jnp.int32)
        self._advantages = credit_fn.lower(
            of(n), of(n, c), of(n, c), ids, ids
        ).compile()

    # -- the stages --------------------------------------------------------------

    def _minibatches(self, batch: TrainBatch) -> Iterator[TrainBatch | None]:
        """[A, N, ...] -> mini-batches [A, M, R, ...] on the mesh.

        None stands for one without any token to train on.
        """
        m, r = self.minibatch
        where = meshlib.batch_sharding(self._mesh, agent_axis=True, rows_axis=2)

        def cut(x, i):
            part = x[:, i * m * r : (i + 1) * m * r]
            return jax.device_put(part.reshape(-1, m, r, x.shape[-1]), where)

        for i in range(batch.tokens.shape[1] // (m * r)):
            if batch.mask[:, i * m * r : (i + 1) * m * r].any():
                yield jax.tree.map(lambda x, i=i: cut(x, i), batch)
            else:
                yield None

    def _over(self, compiled: Callable, batch: TrainBatch, *weights: Any) -> np.ndarray:
        """The scores of every mini-batch, [A, N, C]; 0 where there is no token."""
        a, _, c = batch.mask.shape
        blank = np.zeros((a, math.prod(self.minibatch), c), np.float32)
        parts = [
            blank if part is None else compiled(*weights, part)
            for part in self._minibatches(batch)
        ]
        return np.concatenate([np.asarray(p).reshape(blank.shape) for p in parts], 1)

    def assign_credit(
        self, state: TeamState, frozen: Any, batch: TrainBatch, facts: ActionFacts
    ) -> TrainBatch:
        """Fills in reference and old log-probabilities and the advantages.

        The reference forward is skipped where the KL has no weight; its mean is then
        reported as 0.
        """
        config = self._config
        t = batch.tokens.shape[-1]
        reference = batch.behaviour
        if config.kl.beta:
            reference = self._over(self._reference[t], batch, frozen)
        old, importance = batch.behaviour, batch.importance
        if config.objective.old_logprobs == "recompute":
            base = frozen if self._policy.mode == "lora" else None
            old = self._over(self._score[t], batch, state.trainable, base)
            drift = np.exp(np.where(batch.mask > 0, old - batch.behaviour, 0.0))
            importance = np.minimum(drift, config.objective.is_truncation)
            importance = importance.astype(np.float32)
        kl = np.where(batch.mask > 0, batch.behaviour - reference, 0.0)
        advantage = self._advantages(
            facts.reward, kl, batch.mask, facts.group, facts.kind
        )
        return batch.replace(
            reference=reference,
            old=old,
            importance=importance,
            advantage=np.asarray(advantage),
        )

    def update(
        self, state: TeamState, frozen: Any, batch: TrainBatch
    ) -> tuple[TeamState, dict[str, np.ndarray]]:
        """One pass over the batch: an optimiser step per mini-batch.

        `state` is donated.

        Returns:
          The new state, and per-agent metrics [A], means over tokens or over updates.
        """
        compiled = self._update[batch.tokens.shape[-1]]
        base = frozen if self._policy.mode == "lora" else None
        where = NamedSharding(self._mesh, PartitionSpec("agent"))
        rates, totals = jax.device_put((self._rates, self._totals), where)
        sums = []
        for part in filter(None, self._minibatches(batch)):
            state, metrics = compiled(state, base, part, rates, totals)
            sums.append(metrics)
        return state, _summary(jax.device_get(sums), self._policy.agents)


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


def team_advantages(config: Config, reward, kl, mask, group, kind) -> jax.Array:
    """`credit.advantages` for every agent: [A, N, C]."""
    beta = config.kl.beta if config.kl.place == "reward" else 0.0
    one = functools.partial(
        credit.advantages,
        estimator=config.advantage.estimator,
        weight=config.advantage.weight,
        beta=beta,
    )
    return jax.vmap(one)(reward, kl, mask, group, kind)


def _over_agents(function: Callable, in_axes: Any) -> Callable:
    return jax.vmap(function, in_axes=in_axes, spmd_axis_name="agent")


def team_logprobs(policy: Policy, trainable, base, batch: TrainBatch) -> jax.Array:
    """Log-probabilities under the policies being trained: [A, M, R, C]."""

    def agent(own, part):
        params, adapters = policy.for_training(own, base)
        return jax.lax.map(
            lambda rows: objective.action_logprobs(policy, params, adapters, rows), part
        )

    return _over_agents(agent, (0, 0))(trainable, batch)


def reference_logprobs(policy: Policy, frozen, batch: TrainBatch) -> jax.Array:
    """Log-probabilities under the reference policy: [A, M, R, C]."""

    def agent(params, part):
        return jax.lax.map(
            lambda rows: objective.action_logprobs(policy, params, None, rows), part
        )

    axis = 0 if policy.stacked_reference else None
    return _over_agents(agent, (axis, 0))(frozen, batch)


def team_update(
    policy: Policy, config: Config, state: TeamState, base, batch, rates_A, totals_A
) -> tuple[TeamState, dict[str, jax.Array]]:
    """One optimiser step of every agent on a mini-batch [A, M, R, ...]."""
    agent = functools.partial(agent_update, policy, config)
    return _over_agents(agent, (0, None, 0, 0, 0))(
        state, base, batch, rates_A, totals_A
    )


def agent_update(
    policy: Policy, config: Config, state: TeamState, base, batch, rate, total
) -> tuple[TeamState, dict[str, jax.Array]]:
    """One agent's optimiser step: [M, R, ...] arrays, no agent axis."""
    weights = objective.token_weights(batch.mask, config.objective)

    def loss_fn(own, rows, weight):
        params, adapters = policy.for_training(own, base)
        logp = objective.action_logprobs(policy, params, adapters, rows)
        logp = jnp.where(rows.mask > 0, logp, 0.0)
        loss, clipped = objective.surrogate(logp, rows, config.objective, config.kl)
        sums = {
            "loss": (weight * loss).sum(),
            "kl": (rows.mask * (rows.behaviour - rows.reference)).sum(),
            "clip_fraction": (rows.mask * clipped).sum(),
            "mismatch": (rows.mask * jnp.abs(logp - rows.behaviour)).sum(),
            "entropy": -(rows.mask * rows.behaviour).sum(),
            "tokens": rows.mask.sum(),
        }
        return sums["loss"], sums

    def micro(carry, part):
        grads, sums = carry
        (_, new), grad = jax.value_and_grad(loss_fn, has_aux=True)(
            state.trainable, *part
        )
        return (
            jax.tree.map(lambda a, g: a + g.astype(a.dtype), grads, grad),
            jax.tree.map(jnp.add, sums, new),
        ), None

    names = ("loss", "kl", "clip_fraction", "mismatch", "entropy", "tokens")
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), state.trainable)
    start = (zeros, {name: jnp.zeros(()) for name in names})
    (grads, sums), _ = jax.lax.scan(micro, start, (batch, weights))

    norm = optax.global_norm(grads)
    finite = jnp.isfinite(norm)
    used = finite & (sums["tokens"] > 0)
    share = schedule_share(config.optimizer, state.updates, total)
    step, opt_state = optimizer(config.optimizer).update(
        grads, state.opt_state, state.trainable
    )
    trainable = jax.tree.map(
        lambda p, u: (p - rate * share * u).astype(p.dtype), state.trainable, step
    )

    def keep(new, old):
        return jax.tree.map(lambda n, o: jnp.where(used, n, o), new, old)

    new_state = TeamState(
        trainable=keep(trainable, state.trainable),
        opt_state=keep(opt_state, state.opt_state),
        updates=state.updates + used,
        skipped=state.skipped + ~finite,
    )
    sums |= {
        "grad_norm": jnp.where(used, norm, 0.0),
        "learning_rate": jnp.where(used, rate * share, 0.0),
        "updates": used.astype(jnp.int32),
        "nonfinite": (~finite).astype(jnp.int32),
    }
    return new_state, sums


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
