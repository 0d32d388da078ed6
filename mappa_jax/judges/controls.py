"""Faults put into verdicts on purpose: what would a worse judge teach?

Applied to a whole batch when its verdicts are in, so that shares are exact, and before
it is written down: the records show what was learned from, and say what was judged.
What is drawn depends on the run's seed and the action's place in the run alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from mappa_jax.config import ControlConfig, parse_bias
from mappa_jax.types import Action, Missing, MissingReason, Trajectory, Verdict


def controlled(
    trajectories: Sequence[Trajectory], config: ControlConfig, seed: int
) -> tuple[Trajectory, ...]:
    """The batch with its verdicts changed: a constant in their place, then the bias,
    then noise, cut to 0..10; then some are taken away.

    Args:
      trajectories: of one batch.
      config: which faults.
      seed: of the run.
    """
    if config == ControlConfig():
        return tuple(trajectories)
    lost = _lost(trajectories, config, seed)
    bias = parse_bias(config.bias)

    def one(t: int, trajectory: Trajectory) -> Trajectory:
        verdicts = []
        for a, verdict in enumerate(trajectory.verdicts):
            if isinstance(verdict, Verdict):
                agent, kind = trajectory.actions[a].agent, trajectory.task.kind
                offset = bias.get(agent, 0.0) + bias.get(kind, 0.0)
                draw = _draw(trajectory, a, seed, "noise")
                verdict = _changed(verdict, config, offset, draw)
            if (t, a) in lost:
                detail = "taken away by judge.control"
                verdict = Missing(MissingReason.CONTROL, detail, verdict.call)
            verdicts.append(verdict)
        return dataclasses.replace(trajectory, verdicts=tuple(verdicts))

    return tuple(one(t, trajectory) for t, trajectory in enumerate(trajectories))


def _changed(
    verdict: Verdict, config: ControlConfig, offset: float, draw: np.random.Generator
) -> Verdict:
    score = verdict.score if config.constant == -1 else config.constant
    score = float(np.clip(score + offset + config.noise * draw.normal(), 0.0, 10.0))
    said = f"[judged {verdict.score:g}] {verdict.rationale}"
    return dataclasses.replace(verdict, score=score, rationale=said)


def _lost(
    trajectories: Sequence[Trajectory], config: ControlConfig, seed: int
) -> set[tuple[int, int]]:
    """(trajectory, action) of the verdicts that are taken away: of each agent the
    share, rounded, of all it has."""
    by_agent: dict[str, list[tuple[float, float, tuple[int, int]]]] = {}
    for t, trajectory in enumerate(trajectories):
        for a, verdict in enumerate(trajectory.verdicts):
            if isinstance(verdict, Missing):
                continue
            action: Action = trajectory.actions[a]
            long = config.missing_where == "long"
            rank = -float(len(action.token_ids)) if long else 0.0
            chance = _draw(trajectory, a, seed, "missing").random()
            by_agent.setdefault(action.agent, []).append((rank, chance, (t, a)))
    return {
        place
        for ranked in by_agent.values()
        for _, _, place in sorted(ranked)[: round(config.missing * len(ranked))]
    }


def _draw(trajectory: Trajectory, index: int, seed: int, what: str):
    """Random numbers of an action's own."""
    task = trajectory.task
    place = (seed, trajectory.step, task.source, task.id, trajectory.sample, index)
    digest = hashlib.sha256(repr((*place, what)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))
