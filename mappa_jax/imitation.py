"""Supervised fine-tuning of a team on traces: the warm start of launch/sft.py.

The same packing, sharding, optimiser and checkpoints as the policy gradient's; only the
objective is another, -log pi of every token. One step is an epoch: every agent's traces
in an order of their own, in mini-batches of `optimizer.actions_per_update`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from mappa_jax.checkpoints import Checkpoints
from mappa_jax.config import Config, ConfigError
from mappa_jax.learning import batch as batches
from mappa_jax.learning.update import Learner, TeamState
from mappa_jax.metrics import MetricWriter
from mappa_jax.types import Action

Corpus = Sequence[Sequence[Action]]  # by agent


class Progress(Protocol):
    """What is told to a person; as `train.Progress`."""

    def start(self, step: int, phase: str, total: int) -> Callable[[], None]: ...
    def finish(self, step: int, metrics: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Imitation:
    """The parts of a fine-tuning, made by the launch script.

    Attributes:
      config: as `imitating` made it.
      train, held_out: the actions of each agent.
    """

    config: Config
    train: Corpus
    held_out: Corpus
    learner: Learner
    frozen: Any
    checkpoints: Checkpoints
    writer: MetricWriter
    progress: Progress


def imitating(
    config: Config, train: Corpus, *, epochs: int, learning_rate: float
) -> Config:
    """The config of a fine-tuning on `train`.

    Args:
      config: of the run that is to follow.
      train: actions by agent.
      epochs: passes over them.
      learning_rate: peak, of every agent; 0: as in `config`.

    Raises:
      ConfigError: an agent that is to be trained has no trace.
    """
    replace = dataclasses.replace
    for (name, agent), own in zip(config.agents.items(), train, strict=True):
        if agent.trainable and not own:
            raise ConfigError(
                f"config.agents.{name}: there is no trace of it to learn from; set "
                "trainable=False to leave it as it is"
            )
    changes = {"learning_rate": learning_rate} if learning_rate else {}
    agents = {
        name: replace(agent, kl_beta=-1.0, **changes)
        for name, agent in config.agents.items()
    }
    steps = max(-(-len(own) // config.optimizer.actions_per_update) for own in train)
    return replace(
        config,
        agents=agents,
        steps=epochs,
        staleness=0,
        kl=replace(config.kl, beta=0.0, target=0.0),
        objective=replace(
            config.objective, loss="likelihood", old_logprobs="recompute"
        ),
        optimizer=replace(config.optimizer, epochs=1, total_updates=epochs * steps),
    )


def split(
    actions: Sequence[Action], agents: Sequence[str], held_out: float, seed: int
) -> tuple[list[list[Action]], list[list[Action]]]:
    """Each agent's actions, to train on and to hold out: a share of them, rounded."""
    rng = np.random.default_rng(seed)
    train, kept = [], []
    for name in agents:
        own = [action for action in actions if action.agent == name]
        order = rng.permutation(len(own))
        cut = round(held_out * len(own))
        kept.append([own[i] for i in order[:cut]])
        train.append([own[i] for i in np.sort(order[cut:])])
    return train, kept


async def imitate(parts: Imitation, state: TeamState, start: int) -> TeamState:
    """Runs epochs start + 1 to config.steps; the state is saved after each.

    An epoch that is cancelled is run again when the fine-tuning goes on.

    Raises:
      CheckpointError: the state could not be saved; earlier epochs are whole.
    """
    config, names = parts.config, list(parts.config.agents)
    size = config.optimizer.actions_per_update
    if start == 0 and any(parts.held_out):
        parts.progress.start(0, "held out", 1)
        parts.writer.write(0, {"agents": _held_out(parts, state)})
    for epoch in range(start + 1, config.steps + 1):
        rng = np.random.default_rng((config.seed, epoch))
        mixed = [[own[i] for i in rng.permutation(len(own))] for own in parts.train]
        steps = range(0, max(map(len, mixed)), size)
        advance = parts.progress.start(epoch, "update", len(steps))
        sums = []
        for at in steps:
            packed = _packed(parts, [own[at : at + size] for own in mixed])
            state, metrics = await asyncio.to_thread(
                parts.learner.update, state, parts.frozen, packed
            )
            sums.append(metrics)
            advance()
        found = _means(sums, names)
        if any(parts.held_out):
            parts.progress.start(epoch, "held out", 1)
            for name, values in _held_out(parts, state).items():
                found[name] |= values
        metrics = {"agents": found}
        parts.writer.write(epoch, metrics)
        parts.progress.finish(epoch, metrics)
        parts.checkpoints.save(epoch, state, {"seed": config.seed}, {})
    parts.checkpoints.wait()
    return state


def _packed(parts: Imitation, actions: Corpus) -> batches.Packed:
    return batches.imitated(
        actions,
        list(parts.config.agents),
        parts.learner.shape,
        objective=parts.config.objective,
        actions_per_update=parts.config.optimizer.actions_per_update,
    )


def _means(sums: Sequence[dict[str, np.ndarray]], names: Sequence[str]) -> dict:
    """By agent: nats per token, and what its updates were like."""

    def mean(key: str, by: str) -> np.ndarray:
        weight = np.stack([m[by] for m in sums])
        total = (np.stack([m[key] for m in sums]) * weight).sum(0)
        return total / np.maximum(weight.sum(0), 1)

    columns = {
        "nll": mean("loss", "trained_tokens"),
        "grad_norm": mean("grad_norm", "updates"),
        "learning_rate": mean("learning_rate", "updates"),
        "tokens": sum(m["trained_tokens"] for m in sums),
        "updates": sum(m["updates"] for m in sums),
        "nonfinite": sum(m["nonfinite"] for m in sums),
    }
    return {
        name: {key: float(values[i]) for key, values in columns.items()}
        for i, name in enumerate(names)
    }


def _held_out(parts: Imitation, state: TeamState) -> dict[str, dict[str, float]]:
    """By agent: nats per token of what was held out; NaN for an agent of which nothing
    was, or that is not trained."""
    names, room = list(parts.config.agents), parts.learner.shape.actions
    nats, tokens = np.zeros(len(names)), np.zeros(len(names))
    for at in range(0, max(map(len, parts.held_out)), room):
        packed = _packed(parts, [own[at : at + room] for own in parts.held_out])
        found = parts.learner.logprobs(state, parts.frozen, packed)
        nats -= found.sum((1, 2))
        tokens += [packed.counts[name]["tokens"] for name in names]
    trained = [agent.trainable for agent in parts.config.agents.values()]
    with np.errstate(invalid="ignore"):
        mean = np.where(np.asarray(trained), nats, np.nan) / tokens
    return {name: {"nll_held_out": float(mean[i])} for i, name in enumerate(names)}
