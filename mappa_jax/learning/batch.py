"""The arrays of one rollout batch, and how trajectories become them.

This is the seam: on one side trajectories with text, on the other arrays.

Axes: A agents, N rows (one action each), T tokens of a row, C action tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import chex
import numpy as np

from mappa_jax.config import ConfigError, RewardConfig
from mappa_jax.types import Action, Trajectory, Verdict


@chex.dataclass(frozen=True)
class TrainBatch:
    """What the learner sees; any number of leading axes before rows.

    Attributes:
      tokens: [.., T] int32, prompt then sampled tokens, right-padded.
      positions: [.., T] int32, within the segment.
      segments: [.., T] int32, 0 is padding.
      index: [.., C] int32: the position whose logits predict this action token;
        the token itself stands at index + 1.
      mask: [.., C] float32, 1 for an action token that is trained on.
      temperature: [.., C] float32, what the logits are divided by.
      behaviour: [.., C] float32 log-probabilities when sampled.
      reference: [.., C] float32 under the reference policy.
      old: [.., C] float32, the denominator of the ratio.
      importance: [.., C] float32, a constant weight of the surrogate.
      advantage: [.., C] float32.
    """

    tokens: Any
    positions: Any
    segments: Any
    index: Any
    mask: Any
    temperature: Any
    behaviour: Any
    reference: Any
    old: Any
    importance: Any
    advantage: Any


@chex.dataclass(frozen=True)
class ActionFacts:
    """One number per action, [A, N].

    Attributes:
      reward: the action's reward (0 where masked).
      valid: bool, the action is trained on.
      group: int32, equal for the samples of one task and turn.
      kind: int32, equal for tasks of one source.
    """

    reward: Any
    valid: Any
    group: Any
    kind: Any


def pack(
    trajectories: Sequence[Trajectory],
    agents: Sequence[str],
    *,
    reward: RewardConfig,
    mask_truncated: bool,
    row_buckets: Sequence[int],
    action_tokens: int,
    rows: int,
    rng: np.random.Generator,
) -> tuple[TrainBatch, ActionFacts, dict[str, dict[str, float]]]:
    """Trajectories -> arrays [A, N, ...], shuffled per agent.

    An action carries no gradient, and is left out of every statistic, if its
    verdict is missing, an infrastructure fault touched it, or (`mask_truncated`)
    it ran into its token limit.

    Args:
      trajectories: with verdicts.
      agents: the order of the agent axis.
      reward: how scores and outcomes become rewards.
      mask_truncated: as above.
      row_buckets: the lattice of T; the least that fits all rows is taken.
      action_tokens: C.
      rows: N.
      rng: of the shuffle.

    Returns:
      The batch (old, reference and advantage still zero), one number per action,
      and counts per agent: actions, missing, faults, truncated, tokens.

    Raises:
      ConfigError: a row is longer than the last bucket.
    """
    actions = {name: _actions_of(trajectories, name) for name in agents}
    if reward.shuffle:
        actions = {n: _shuffle_scores(found, rng) for n, found in actions.items()}
    if (most := max(map(len, actions.values()))) > rows:
        raise ValueError(f"{most} actions of one agent, but room for {rows}")
    longest = max(
        (len(a.prompt_ids) + len(a.token_ids) for _, _, a, _ in _all(actions)),
        default=1,
    )
    t = _bucket(longest, row_buckets)
    batch, facts = _zeros(len(agents), rows, t, action_tokens)
    for i, name in enumerate(agents):
        groups: dict[Any, int] = {}
        kinds: dict[str, int] = {}
        order = rng.permutation(len(actions[name]))
        for row, chosen in enumerate(order):
            trajectory, _, action, verdict = actions[name][chosen]
            _write_row(batch, (i, row), action)
            keep = _kept(action, verdict, mask_truncated)
            batch.mask[i, row, : len(action.token_ids)] = keep
            key = (trajectory.task.id, action.turn)
            facts.group[i, row] = groups.setdefault(key, len(groups))
            source = trajectory.task.source
            facts.kind[i, row] = kinds.setdefault(source, len(kinds))
            facts.valid[i, row] = keep
            if keep:
                is_last = action is trajectory.actions[-1]
                facts.reward[i, row] = _reward(trajectory, verdict, is_last, reward)
    return batch, facts, {n: _counts(actions[n]) for n in agents}


def _actions_of(trajectories, name):
    return [
        (trajectory, i, action, verdict)
        for trajectory in trajectories
        for i, (action, verdict) in enumerate(
            zip(trajectory.actions, trajectory.verdicts, strict=True)
        )
        if action.agent == name
    ]


def _all(actions: Mapping[str, list]) -> list:
    return [row for rows in actions.values() for row in rows]


def _shuffle_scores(rows: list, rng: np.random.Generator) -> list:
    """A control: verdicts permuted between an agent's actions."""
    verdicts = [row[3] for row in rows]
    order = rng.permutation(len(rows))
    return [(*row[:3], verdicts[j]) for row, j in zip(rows, order, strict=True)]


def _bucket(longest: int, buckets: Sequence[int]) -> int:
    for bucket in buckets:
        if longest <= bucket:
            return bucket
    raise ConfigError(
        f"train_buckets: an action of {longest} tokens (prompt and answer) does not "
        f"fit; the last bucket is {buckets[-1]}"
    )


def _zeros(a: int, n: int, t: int, c: int) -> tuple[TrainBatch, ActionFacts]:
    def ints(width):
        return np.zeros((a, n, width), np.int32)

    def floats():
        return np.zeros((a, n, c), np.float32)

    batch = TrainBatch(
        tokens=ints(t),
        positions=ints(t),
        segments=ints(t),
        index=ints(c),
        mask=floats(),
        temperature=np.ones((a, n, c), np.float32),
        behaviour=floats(),
        reference=floats(),
        old=floats(),
        importance=np.ones((a, n, c), np.float32),
        advantage=floats(),
    )
    facts = ActionFacts(
        reward=np.zeros((a, n), np.float32),
        valid=np.zeros((a, n), bool),
        group=np.zeros((a, n), np.int32),
        kind=np.zeros((a, n), np.int32),
    )
    return batch, facts


def _write_row(batch: TrainBatch, row: tuple[int, int], action: Action) -> None:
    prompt, new = len(action.prompt_ids), len(action.token_ids)
    batch.tokens[row][:prompt] = action.prompt_ids
    batch.tokens[row][prompt : prompt + new] = action.token_ids
    batch.positions[row][:] = np.arange(batch.positions.shape[-1])
    batch.segments[row][: prompt + new] = 1
    batch.index[row][:new] = np.arange(prompt - 1, prompt + new - 1)
    batch.temperature[row][:] = action.temperature or 1.0
    batch.behaviour[row][:new] = action.logprobs


def _kept(action: Action, verdict: Any, mask_truncated: bool) -> bool:
    truncated = mask_truncated and action.finish == "length"
    return isinstance(verdict, Verdict) and action.fault is None and not truncated


def _reward(
    trajectory: Trajectory, verdict: Verdict, is_last: bool, config: RewardConfig
) -> float:
    """METHOD steps 1 and 6: the score scaled, and the outcome where it is asked for."""
    reward = config.process_weight * config.reward_scale * verdict.score
    if config.outcome_weight and trajectory.outcome is not None:
        if is_last or config.outcome_to == "all":
            reward += config.outcome_weight * trajectory.outcome.score
    return reward


def _counts(rows: list) -> dict[str, float]:
    scores = [v.score for _, _, _, v in rows if isinstance(v, Verdict)]
    return {
        "actions": len(rows),
        "missing": sum(not isinstance(v, Verdict) for _, _, _, v in rows),
        "faults": sum(a.fault is not None for _, _, a, _ in rows),
        "truncated": sum(a.finish == "length" for _, _, a, _ in rows),
        "tokens": sum(len(a.token_ids) for _, _, a, _ in rows),
        "score": float(np.mean(scores)) if scores else float("nan"),
    }
