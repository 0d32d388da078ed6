"""One compiled update for the whole team.

Agents are stacked. Lanes (learning/batch) on different slices of the mesh are vmapped,
those of one slice run one after another. Gradients are accumulated over micro-batches
in a loop inside the program; each agent's gradient is clipped by its own norm and
applied by Optax with its own learning rate. An agent without tokens, or with a
gradient that is not finite, keeps its weights and its optimiser state. Agents of
unlike architecture form groups (models/policy.py), each a stack, in one program.

Axes: A agents, S sets of weights of a group (one in mode "shared", else its agents),
W lanes, M micro-batches, R rows, C action tokens (learning/batch).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mappa_jax import per_agent
from mappa_jax.config import Config, ConfigError, KLConfig, OptimizerConfig
from mappa_jax.learning import batch as batches
from mappa_jax.learning import credit, objective, optimizers
from mappa_jax.learning.batch import GroupShape, Minibatch, Packed, Shape, TrainBatch
from mappa_jax.models import policy as policies
from mappa_jax.models.policy import Policy
from mappa_jax.parallel import mesh as meshlib

Team = tuple[Policy, ...]  # the groups

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
class GroupState:
    """What training changes of one group; leading axis S everywhere.

    Attributes:
      trainable: weights, or adapters (mode "lora").
      opt_state: of Optax.
      updates: [S] int32, optimiser steps taken.
      skipped: [S] int32, updates refused because the gradient was not finite.
    """

    trainable: Any
    opt_state: Any
    updates: Any
    skipped: Any


@chex.dataclass(frozen=True)
class TeamState:
    """What training changes.

    Attributes:
      groups: a GroupState each; None for a group that is not trained.
      beta: [A] float32, the coefficient of each agent's KL.
    """

    groups: Any
    beta: Any

    @property
    def trainable(self) -> tuple[Any, ...]:
        """The trained weights by group."""
        return tuple(g.trainable if g is not None else None for g in self.groups)


class Schedule(NamedTuple):
    """Peak learning rates, and the shape of their course; [S] each, float32 but for
    `total`, the optimiser steps that it is laid out for."""

    rate: Any
    total: Any
    warmup: Any
    final: Any


def estimated_updates(config: Config) -> np.ndarray:
    """[A] optimiser steps that each agent can take in the whole run, at most."""
    per_step = config.data.prompts_per_step * config.data.samples_per_prompt
    size = config.optimizer.actions_per_update
    counts = [
        config.steps * config.optimizer.epochs * -(-per_step * a.max_turns // size)
        for a in config.agents.values()
    ]
    return np.asarray(counts, np.int32)


def make_schedule(policy: Policy, config: Config) -> Schedule:
    """Of one group, in NumPy."""
    totals = estimated_updates(config)
    if config.optimizer.total_updates:
        totals = np.full_like(totals, config.optimizer.total_updates)

    def of(values: Any, dtype: Any) -> np.ndarray:
        mine = np.asarray(values, dtype)[list(policy.members)]
        return (
            mine if policy.sets > 1 or policy.agents == 1 else mine.max(keepdims=True)
        )

    return Schedule(
        rate=of(per_agent.learning_rates(config), np.float32),
        total=of(totals, np.int32),
        warmup=of(per_agent.warmup_fractions(config), np.float32),
        final=of(per_agent.final_fractions(config), np.float32),
    )


def state_shapes(team: Team, config: Config, mesh: Mesh) -> TeamState:
    """The whole state as ShapeDtypeStructs that say where each leaf lies: moments lie
    where their parameters lie."""
    tx = optimizers.optimizer(config.optimizer)
    dtype = jnp.dtype(config.param_dtype)

    def one(policy: Policy) -> GroupState | None:
        if not policy.trainable:
            return None
        trainable, _ = policies.placed_shapes(policy, mesh, dtype)
        lead = meshlib.Layout(mesh).sharding(policy.layout.agent_axis)
        where = optimizers.state_shardings(tx, trainable, lead)
        opt_state = jax.tree.map(
            lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w),
            jax.eval_shape(jax.vmap(tx.init), trainable),
            where,
        )
        count = jax.ShapeDtypeStruct((policy.sets,), jnp.int32, sharding=lead)
        return GroupState(
            trainable=trainable, opt_state=opt_state, updates=count, skipped=count
        )

    whole = meshlib.replicated(mesh)
    return TeamState(
        groups=tuple(one(policy) for policy in team),
        beta=jax.ShapeDtypeStruct((len(config.agents),), jnp.float32, sharding=whole),
    )


def init_state(
    trainable: Sequence[Any], team: Team, config: Config, mesh: Mesh
) -> TeamState:
    """A fresh state around the groups' `trainable`."""
    tx = optimizers.optimizer(config.optimizer)
    shapes = state_shapes(team, config, mesh)

    def one(weights: Any, like: GroupState | None) -> GroupState | None:
        if like is None:
            return None
        where = jax.tree.map(lambda s: s.sharding, like)
        zeros = np.zeros(like.updates.shape, np.int32)
        return GroupState(
            trainable=weights,
            opt_state=jax.jit(jax.vmap(tx.init), out_shardings=where.opt_state)(
                weights
            ),
            updates=meshlib.place(zeros, where.updates),
            skipped=meshlib.place(zeros, where.skipped),
        )

    beta = np.asarray(per_agent.kl_betas(config), np.float32)
    return TeamState(
        groups=tuple(map(one, trainable, shapes.groups)),
        beta=meshlib.place(beta, shapes.beta.sharding),
    )


class Learner:
    """The compiled functions of the learning half, at their one fixed shape.

    Everything is compiled ahead of time: another shape raises, nothing recompiles.

    Raises:
      ConfigError: packing.rows does not divide the mesh, or nobody is to be trained.
    """

    def __init__(self, team: Team, config: Config, mesh: Mesh):
        if not any(policy.trainable for policy in team):
            raise ConfigError(
                "config.agents: none is trainable; set trainable=True for at least one"
            )
        for policy in team:
            rows, ways = config.packing.rows, policy.layout.ways
            if rows % ways:
                raise ConfigError(
                    f"config.packing.rows={rows} does not divide the {ways} devices of "
                    f"the mesh axes {policy.layout.row_axes}; make it a multiple"
                )
        self._team = team
        self._config = config
        self._mesh = mesh
        self._whole = meshlib.replicated(mesh)
        self._trains = [g for g, policy in enumerate(team) if policy.trainable]
        betas = np.asarray(per_agent.kl_betas(config))
        self._refers = [g for g in self._trains if betas[list(team[g].members)].any()]
        self._schedule: Any = tuple(
            make_schedule(policy, config) if policy.trainable else None
            for policy in team
        )
        self._run: dict[str, jax.stages.Compiled] = {}

    @property
    def mesh(self) -> Mesh:
        """The devices that it is compiled for."""
        return self._mesh

    @property
    def referred(self) -> frozenset[int]:
        """The agents whose log-probabilities under the reference are worked out."""
        return frozenset(m for g in self._refers for m in self._team[g].members)

    @property
    def rescored(self) -> frozenset[int]:
        """The agents whose actions the trainer scores anew before an update."""
        if self._config.objective.old_logprobs != "recompute":
            return frozenset()
        return frozenset(m for g in self._trains for m in self._team[g].members)

    def _schedule_shapes(self) -> tuple[Schedule | None, ...]:
        def one(policy: Policy, schedule: Schedule | None) -> Schedule | None:
            where = meshlib.Layout(self._mesh).sharding(policy.layout.agent_axis)
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
                schedule,
            )

        return tuple(map(one, self._team, self._schedule))

    @property
    def shape(self) -> Shape:
        """The shapes that `batch.pack` must fill: room for every agent's most."""
        config = self._config
        agents = list(config.agents.values())
        rollouts = config.data.prompts_per_step * config.data.samples_per_prompt

        def group(policy: Policy) -> GroupShape:
            size = config.optimizer.actions_per_update
            per_lane = size * policy.agents // policy.lanes
            return GroupShape(
                members=policy.members,
                trained=frozenset(m for m in policy.members if agents[m].trainable),
                lanes=policy.lanes,
                microbatches=-(-per_lane // config.packing.rows),
            )

        return Shape(
            actions=rollouts * max(a.max_turns for a in agents),
            action_tokens=max(a.max_new_tokens for a in agents),
            packing=config.packing,
            groups=tuple(map(group, self._team)),
        )

    def _rows(self, group: int) -> Any:
        """Where a [W, M, R, ...] array of a group lies."""
        layout = self._team[group].layout
        return meshlib.Layout(self._mesh).sharding(
            layout.agent_axis, None, layout.row_axes
        )

    def _batch_shapes(self, group: int) -> TrainBatch:
        where, shape = self._rows(group), self.shape
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            batches.blank(shape.packing, shape.groups[group]),
        )

    def lowered(
        self, state: TeamState, frozen: Sequence[Any]
    ) -> dict[str, jax.stages.Lowered]:
        """Every program of the learning half, for weights shaped and placed like these.

        Args:
          state: of arrays, or as `state_shapes` gives it.
          frozen: by group.

        Returns:
          By name: "credit", "update", and by group "reference/0", "logprobs/0".
        """
        config, team, whole = self._config, self._team, self._whole
        state, frozen = meshlib.shapes_of((state, tuple(frozen)))
        rows = {g: self._batch_shapes(g) for g in self._trains}
        counts = {
            g: jax.ShapeDtypeStruct((team[g].lanes,), jnp.int32, sharding=whole)
            for g in self._trains
        }
        bases = self._bases(frozen)
        out = {}
        for g in self._refers:
            reference = jax.jit(
                functools.partial(reference_logprobs, team[g]), out_shardings=whole
            )
            out[f"reference/{g}"] = reference.lower(frozen[g], rows[g], counts[g])
        if config.objective.old_logprobs == "recompute":
            for g in self._trains:
                score = jax.jit(
                    functools.partial(group_logprobs, team[g]), out_shardings=whole
                )
                own = state.groups[g].trainable
                out[f"logprobs/{g}"] = score.lower(own, bases[g], rows[g], counts[g])
        update = jax.jit(
            functools.partial(team_update, team, config),
            donate_argnums=(0,),
            out_shardings=(jax.tree.map(lambda s: s.sharding, state), whole),
        )
        everyone = range(len(team))
        out["update"] = update.lower(
            state,
            bases,
            tuple(rows.get(g) for g in everyone),
            tuple(counts.get(g) for g in everyone),
            self._schedule_shapes(),
        )
        advantages = jax.jit(
            functools.partial(team_advantages, config), out_shardings=whole
        )
        a, n, c = len(config.agents), self.shape.actions, self.shape.action_tokens

        def of(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

        ids = of(a, n, dtype=jnp.int32)
        out["credit"] = advantages.lower(
            of(a), of(a, n), of(a, n, c), of(a, n, c), ids, ids
        )
        return out

    def warm_up(self, state: TeamState, frozen: Sequence[Any]) -> None:
        """Compiles everything for weights shaped and placed like these."""
        lowered = self.lowered(state, frozen)
        self._run = {name: program.compile() for name, program in lowered.items()}
        self._schedule = jax.tree.map(
            lambda x, like: meshlib.place(x, like.sharding),
            *(self._schedule, self._schedule_shapes()),
        )

    def _bases(self, frozen: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(
            base if policy.mode == "lora" else None
            for policy, base in zip(self._team, frozen, strict=True)
        )

    def _placed(self, batch: TrainBatch, group: int) -> TrainBatch:
        where = self._rows(group)
        return jax.tree.map(lambda x: meshlib.place(x, where), batch)

    def _counts(self, part: Minibatch) -> jax.Array:
        return meshlib.place(np.asarray(part.counts, np.int32), self._whole)

    def _over(
        self, name: str, groups: Sequence[int], packed: Packed, weights: Callable
    ) -> np.ndarray:
        """Scores of all actions, [A, N, C]; 0 where there is no token.

        `weights` gives a group's, as its program takes them.
        """
        out = np.zeros_like(packed.actions.behaviour)
        for step in packed.minibatches:
            for g in groups:
                batch, counts = self._placed(step[g].batch, g), self._counts(step[g])
                program = self._run[f"{name}/{g}"]
                found = meshlib.start(program, *weights(g), batch, counts)
                step[g].gather(np.asarray(found), out)
        return out

    def logprobs(
        self, state: TeamState, frozen: Sequence[Any], packed: Packed
    ) -> np.ndarray:
        """log pi of every action token of the agents that are trained, [A, N, C]; 0 for
        the others. For `objective.old_logprobs="recompute"`."""
        bases = self._bases(frozen)
        return self._over(
            *("logprobs", self._trains, packed),
            lambda g: (state.groups[g].trainable, bases[g]),
        )

    def assign_credit(
        self, state: TeamState, frozen: Sequence[Any], packed: Packed
    ) -> Packed:
        """Fills in reference and old log-probabilities and the advantages.

        The reference forward is skipped where the KL has no weight; the reported KL
        is then 0. Credit is worked out whole on every device: its statistics are of
        all rows, and its arrays are small.
        """
        config, actions = self._config, packed.actions
        old = actions.behaviour
        importance = np.ones_like(old)
        if config.objective.old_logprobs == "recompute":
            old = self.logprobs(state, frozen, packed)
            drift = np.exp(actions.mask * (old - actions.behaviour))
            importance = np.minimum(drift, config.objective.is_truncation)
        reference = old.copy()
        members = [m for g in self._refers for m in self._team[g].members]
        if members:
            found = self._over(
                "reference", self._refers, packed, lambda g: (frozen[g],)
            )
            reference[members] = found[members]
        kl = actions.mask * (old - reference)
        inputs = (actions.reward, kl, actions.mask, actions.group, actions.kind)
        inputs = jax.tree.map(lambda x: meshlib.place(x, self._whole), inputs)
        advantage = meshlib.start(self._run["credit"], state.beta, *inputs)
        advantage = np.asarray(advantage)

        def filled(part: Minibatch | None) -> Minibatch | None:
            if part is None:
                return None
            batch = part.batch.replace(
                reference=part.scatter(reference),
                old=part.scatter(old),
                importance=part.scatter(importance),
                advantage=part.scatter(advantage),
            )
            return dataclasses.replace(part, batch=batch)

        steps = tuple(tuple(map(filled, step)) for step in packed.minibatches)
        return dataclasses.replace(packed, minibatches=steps)

    def steps(self, packed: Packed) -> int:
        """Optimiser steps of an update on this batch."""
        return len(packed.minibatches) * self._config.optimizer.epochs

    def update(
        self,
        state: TeamState,
        frozen: Sequence[Any],
        packed: Packed,
        on_step: Callable[[], None] = lambda: None,
    ) -> tuple[TeamState, dict[str, np.ndarray]]:
        """`optimizer.epochs` passes over the batch, an optimiser step per mini-batch.

        `state` is donated. `on_step` is called when a step has been handed to the
        devices, which may be ahead of their doing it: nothing is waited for.

        Returns:
          The new state, and per-agent metrics [A], means over tokens or over updates.
        """
        bases = self._bases(frozen)
        sums = []
        for step in packed.minibatches * self._config.optimizer.epochs:
            rows = tuple(p and self._placed(p.batch, g) for g, p in enumerate(step))
            counts = tuple(p and self._counts(p) for p in step)
            update = functools.partial(meshlib.start, self._run["update"])
            state, metrics = update(state, bases, rows, counts, self._schedule)
            sums.append(metrics)
            on_step()
        metrics = _summary(jax.device_get(sums), len(self._config.agents))
        metrics["beta"] = np.asarray(state.beta)
        if self._config.kl.target:
            beta = next_beta(metrics, self._config.kl)
            state = state.replace(beta=meshlib.place(beta, self._whole))
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


@jax.named_scope("credit")
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


@jax.named_scope("logprobs")
def group_logprobs(policy: Policy, trainable, base, batch: TrainBatch, counts):
    """Log-probabilities under a group's policies being trained: [W, M, R, C]."""

    def lane(count, blocks, own, scales, rows):
        def one(part, m):
            params, adapters = policy.for_training(own, base, scales, part.agent)
            return objective.action_logprobs(policy, params, adapters, part, blocks[m])

        return _map_some(one, rows, count)

    own = policy.in_lanes(trainable)
    return _by_lane(policy, lane, batch, counts, own, _lane_scales(policy))


@jax.named_scope("reference")
def reference_logprobs(policy: Policy, frozen, batch: TrainBatch, counts) -> jax.Array:
    """Log-probabilities under a group's reference policy: [W, M, R, C]."""
    stacked = policy.stacked_reference

    def lane(count, blocks, own, rows):
        def one(part, m):
            params = own if stacked else frozen
            return objective.action_logprobs(policy, params, None, part, blocks[m])

        return _map_some(one, rows, count)

    own = frozen if stacked else None
    return _by_lane(policy, lane, batch, counts, own)


def _by_lane(
    policy: Policy, lane: Callable, batch: TrainBatch, counts, *own: Any
) -> Any:
    """`lane(count, blocks, *own, rows)` of every lane: `own` and rows are the lane's,
    blocks as `objective.head_blocks` counts them."""
    blocks = objective.head_blocks(policy, batch.mask)
    return policy.over_lanes(lane)(counts, blocks, *own, batch)


def _lane_scales(policy: Policy) -> jax.Array | None:
    """The adapters' scales by lane, [W, agents of a lane]."""
    if policy.mode != "lora":
        return None
    return jnp.asarray(policy.scales()).reshape(policy.lanes, -1)


def _map_some(function: Callable, batch: TrainBatch, count) -> jax.Array:
    """`function` of each of the first `count` micro-batches and its number; zeros for
    the rest."""

    def body(m, out):
        return out.at[m].set(function(_take(batch, m), m))

    return jax.lax.fori_loop(0, count, body, jnp.zeros_like(batch.mask))


def _take(batch: TrainBatch, m) -> TrainBatch:
    return jax.tree.map(lambda x: x[m], batch)


SUMS = ("loss", "kl", "clip_fraction", "mismatch", "entropy", "tokens")


def team_update(
    team: Team, config: Config, state: TeamState, bases, batch, counts, schedule
) -> tuple[TeamState, dict[str, jax.Array]]:
    """One optimiser step of every agent.

    Args:
      team, config: static.
      state: of the team.
      bases: by group: the frozen base weights (mode "lora") or None.
      batch: by group: a mini-batch, [W, M, R, ...], or None.
      counts: by group, [W] int32: only the first so many micro-batches of a lane hold
        anything. The number of turns of the accumulation loop, so empty ones cost
        nothing (but see `Policy.over_lanes`).
      schedule: by group.

    Returns:
      The new state and sums per agent, [A].
    """
    groups, found = [], {}
    for g, policy in enumerate(team):
        if not policy.trainable:
            groups.append(None)
            continue
        beta = state.beta[np.asarray(policy.members)]
        new, sums = group_update(
            policy,
            config,
            *(state.groups[g], beta, bases[g], batch[g], counts[g], schedule[g]),
        )
        groups.append(new)
        for name, values in sums.items():
            whole = found.get(name, jnp.zeros(state.beta.shape, values.dtype))
            found[name] = whole.at[np.asarray(policy.members)].set(values)
    return state.replace(groups=tuple(groups)), found


def group_update(
    policy: Policy,
    config: Config,
    state: GroupState,
    beta,
    base,
    batch: TrainBatch,
    counts,
    schedule: Schedule,
) -> tuple[GroupState, dict[str, jax.Array]]:
    """`team_update` of one group; the sums are per member."""
    grads, sums = group_gradient(policy, config, state, beta, base, batch, counts)
    step = functools.partial(agent_step, config.optimizer)
    shared = policy.mode == "shared"
    tokens = sums["tokens"].sum(keepdims=True) if shared else sums["tokens"]
    over = policy.layout.over_agents(step)
    state, extra = over(state, grads, tokens, schedule)
    extra = {k: jnp.broadcast_to(v, (policy.agents,)) for k, v in extra.items()}
    return state, sums | extra


@jax.named_scope("gradient")
def group_gradient(
    policy: Policy, config: Config, state: GroupState, beta, base, batch, counts
) -> tuple[Any, dict[str, jax.Array]]:
    """A group's gradients [S, ...], and sums per member."""

    def lane(count, blocks, own, scales, rows):
        return lane_gradient(
            policy, config, own, scales, beta, base, rows, count, blocks
        )

    own = policy.in_lanes(state.trainable)
    scales = _lane_scales(policy)
    grads, sums = _by_lane(policy, lane, batch, counts, own, scales)
    # Sums are per lane and agent; an agent's own lane holds all that it has.
    return policy.out_of_lanes(grads), {k: v.sum(0) for k, v in sums.items()}


def lane_gradient(
    policy: Policy, config: Config, trainable, scales, beta, base, batch, count, blocks
) -> tuple[Any, dict[str, jax.Array]]:
    """Gradient and metric sums of one lane, accumulated over its micro-batches.

    `blocks` are [M] int32, of the head (`objective.head_blocks`).

    Returns:
      A tree like `trainable`, float32, and a dict of sums by member of the group.
    """

    def loss_fn(own, rows, blocks):
        params, adapters = policy.for_training(own, base, scales, rows.agent)
        logp = objective.action_logprobs(policy, params, adapters, rows, blocks)
        loss, clipped = objective.token_losses(logp, rows, config.objective)
        if config.kl.place == "loss":
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
        grad, new = jax.grad(loss_fn, has_aux=True)(
            trainable, _take(batch, m), blocks[m]
        )
        return (
            jax.tree.map(lambda a, g: a + g.astype(a.dtype), grads, grad),
            jax.tree.map(jnp.add, sums, new),
        )

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trainable)
    start = (zeros, {name: jnp.zeros((policy.agents,)) for name in SUMS})
    return jax.lax.fori_loop(0, count, body, start)


@jax.named_scope("optimizer")
def agent_step(
    config: OptimizerConfig, state: GroupState, grads, tokens, schedule: Schedule
) -> tuple[GroupState, dict[str, jax.Array]]:
    """Clips and applies one agent's gradient; arrays have no agent axis.

    Without tokens, or with a gradient that is not finite, nothing changes.
    """
    norm = optax.global_norm(grads)
    finite = jnp.isfinite(norm)
    used = finite & (tokens > 0)
    rate, *course = schedule
    rate = rate * schedule_share(state.updates, *course)
    tx = optimizers.optimizer(config)
    step, opt_state = tx.update(grads, state.opt_state, state.trainable)
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


def schedule_share(taken, total, warmup_fraction, final_fraction) -> jax.Array:
    """Share of the peak learning rate after `taken` of `total` updates.

    Linear warm-up over the first `warmup_fraction`, then a cosine down to
    `final_fraction`, then constant. Counts from 1, so that the first update is not
    lost to a rate of zero.
    """
    taken = jnp.asarray(taken, jnp.float32) + 1
    total = jnp.maximum(jnp.asarray(total, jnp.float32), 1)
    warmup = jnp.round(warmup_fraction * total)
    rising = taken / jnp.maximum(warmup, 1)
    done = jnp.clip((taken - warmup) / jnp.maximum(total - warmup, 1), 0, 1)
    final = final_fraction
    falling = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * done))
    return jnp.where(taken <= warmup, rising, falling)
