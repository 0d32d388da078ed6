"""The arrays of one rollout batch, and how trajectories become them.

This is the seam: on one side trajectories with text, on the other arrays. There
are two layouts. Credit sees one action per row (`Actions`). The model sees rows of
a fixed length into which several actions of one agent are packed (`TrainBatch`,
learning/packing.py), one such batch per optimiser step. `Slot`s say where an action
of the first layout lies in the second.

Axes: A agents, N actions, C action tokens; W lanes, M micro-batches, R rows, T
tokens of a row. With one stack of weights per agent a lane is an agent; with
adapters over one base a lane is a slice of the mesh, and with one policy for all roles
there is one lane: a row names its agent. Agents of unlike architecture stand in groups,
each with lanes of its own.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import numpy as np

from mappa_jax.config import ObjectiveConfig, PackingConfig, RewardConfig
from mappa_jax.learning.packing import Item, Row, pack_rows
from mappa_jax.types import Action, Missing, Trajectory, Verdict


@chex.dataclass(frozen=True)
class TrainBatch:
    """What the model sees in one optimiser step.

    Attributes:
      tokens: [W, M, R, T] int32: each action's prompt and its sampled tokens but for
        the last, which nothing follows.
      positions: [W, M, R, T] int32, within the action.
      ends: [W, M, R, T] int32: tokens before this place may attend to this one; 0
        for padding.
      agent: [W, M, R] int32, the row's agent, counted within its group.
      index: [W, M, R, C] int32: the place whose logits predict this action token.
      target: [W, M, R, C] int32, the action token.
      action: [W, M, R, C] int32: the token's action, counted within the row.
      mask: [W, M, R, C] float32, 1 for an action token that is trained on.
      temperature: [W, M, R, C] float32, what the logits are divided by.
      behaviour: [W, M, R, C] float32, log-probabilities when sampled.
      reference: [W, M, R, C] float32, under the reference policy.
      old: [W, M, R, C] float32, the denominator of the ratio.
      importance: [W, M, R, C] float32, a constant weight of the surrogate.
      advantage: [W, M, R, C] float32.
      weight: [W, M, R, C] float32: an agent's loss is the sum of weight * token loss.
    """

    tokens: Any
    positions: Any
    ends: Any
    agent: Any
    index: Any
    target: Any
    action: Any
    mask: Any
    temperature: Any
    behaviour: Any
    reference: Any
    old: Any
    importance: Any
    advantage: Any
    weight: Any


@chex.dataclass(frozen=True)
class Actions:
    """What credit sees: one action per row, [A, N] or [A, N, C].

    Attributes:
      reward: [A, N] float32, 0 where masked.
      group: [A, N] int32, equal for the samples of one task and turn.
      kind: [A, N] int32, equal for tasks of one kind.
      mask: [A, N, C] float32, 0 throughout for an action that is not trained on.
      behaviour: [A, N, C] float32.
    """

    reward: Any
    group: Any
    kind: Any
    mask: Any
    behaviour: Any


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where an action lies: `agent` (counted within the team) and `number` in Actions;
    the rest in the TrainBatch of the agent's group.

    `row` is (lane, micro-batch, row) and `at` the offset of its first action token.
    """

    agent: int
    number: int
    row: tuple[int, int, int]
    at: int
    action: Action


@dataclasses.dataclass(frozen=True, eq=False)
class Minibatch:
    """One group's part of an optimiser step: its arrays, its actions, and how many
    micro-batches of each lane hold anything."""

    batch: TrainBatch
    slots: tuple[Slot, ...]
    counts: tuple[int, ...]

    def gather(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copies a [W, M, R, C] array of rows into an [A, N, C] one of actions."""
        for s in self.slots:
            n = len(s.action.token_ids)
            out[s.agent, s.number, :n] = rows[s.row][s.at : s.at + n]

    def scatter(self, actions: np.ndarray) -> np.ndarray:
        """The inverse: an [A, N, C] array laid out like the rows."""
        out = np.zeros(self.batch.mask.shape, np.float32)
        for s in self.slots:
            n = len(s.action.token_ids)
            out[s.row][s.at : s.at + n] = actions[s.agent, s.number, :n]
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """A rollout batch in both layouts, and counts per agent.

    `minibatches` holds the optimiser steps, each with a part for every group; None for
    a group that is not trained. `masked` are the actions that are left out, and why.
    """

    actions: Actions
    minibatches: tuple[tuple[Minibatch | None, ...], ...]
    counts: dict[str, dict[str, float]]
    masked: tuple[tuple[Action, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class GroupShape:
    """W and M of a group's TrainBatch, and its agents, counted within the team.

    Agents are divided over the lanes in order. `trained` are those that learn.
    """

    members: tuple[int, ...]
    trained: frozenset[int]
    lanes: int
    microbatches: int


@dataclasses.dataclass(frozen=True)
class Shape:
    """The fixed shapes: N, C of Actions, and (R, T, C) of every TrainBatch."""

    actions: int
    action_tokens: int
    packing: PackingConfig
    groups: tuple[GroupShape, ...]


class Judged(NamedTuple):
    """An action, its verdict, and its score with those of the agent's later turns
    (None where a part of it is missing)."""

    trajectory: Trajectory
    action: Action
    verdict: Verdict | Missing
    score: float | None


def pack(
    trajectories: Sequence[Trajectory],
    agents: Sequence[str],
    shape: Shape,
    *,
    reward: RewardConfig,
    objective: ObjectiveConfig,
    actions_per_update: int,
    rng: np.random.Generator,
    debias: bool = False,
) -> Packed:
    """Trajectories -> arrays, each agent's actions shuffled and cut in mini-batches.

    An action carries no gradient, takes no room in a row and is left out of every
    statistic if its agent is not trained, if a part of its reward is missing (the
    verdict, a later turn's with `reward.turn_discount`, or the outcome where that has a
    weight), if an infrastructure fault touched it, or, with
    `objective.mask_truncated`, if it ran into its token limit.

    Raises:
      ConfigError: an action does not fit into a row.
    """
    discount = reward.turn_discount
    judged = {name: _judged(trajectories, name, discount) for name in agents}
    counts = {name: _counts(rows) for name, rows in judged.items()}

    def keeps(row: Judged) -> bool:
        return _why_masked(row, reward, objective.mask_truncated) is None

    if debias:
        judged = {name: _debiased(rows, keeps) for name, rows in judged.items()}
    if reward.shuffle:
        judged = {n: _shuffle_scores(rows, rng) for n, rows in judged.items()}
    kept = [[row for row in judged[name] if keeps(row)] for name in agents]
    kept = [[rows[i] for i in rng.permutation(len(rows))] for rows in kept]
    trained = frozenset().union(*(group.trained for group in shape.groups))
    masked = [
        (row.action, _why_masked(row, reward, objective.mask_truncated) or FROZEN)
        for i, name in enumerate(agents)
        for row in judged[name]
        if i not in trained or not keeps(row)
    ]
    kept = [rows if i in trained else [] for i, rows in enumerate(kept)]
    acts = [[row.action for row in rows] for rows in kept]
    minibatches = _minibatches(acts, shape, objective, actions_per_update)
    return Packed(_actions(kept, shape, reward), minibatches, counts, tuple(masked))


def imitated(
    actions: Sequence[Sequence[Action]],
    agents: Sequence[str],
    shape: Shape,
    *,
    objective: ObjectiveConfig,
    actions_per_update: int,
) -> Packed:
    """Actions that are to be learned as they are, by agent, in mini-batches.

    They are taken in order and have no reward: `Actions` is empty.

    Raises:
      ConfigError: an action does not fit into a row.
    """
    minibatches = _minibatches(actions, shape, objective, actions_per_update)
    counts = {
        name: {
            "actions": len(own),
            "tokens": sum(len(action.token_ids) for action in own),
        }
        for name, own in zip(agents, actions, strict=True)
    }
    none: list[list[Judged]] = [[] for _ in agents]
    return Packed(_actions(none, shape, RewardConfig()), minibatches, counts)


def _minibatches(
    actions: Sequence[Sequence[Action]],
    shape: Shape,
    objective: ObjectiveConfig,
    size: int,
) -> tuple[tuple[Minibatch | None, ...], ...]:
    """Each agent's actions, so many of them to an optimiser step."""
    cut = [slice(at, at + size) for at in range(0, max(map(len, actions)), size)]
    return tuple(
        tuple(
            _minibatch(actions, part, shape, group, objective) for group in shape.groups
        )
        for part in cut
    )


def _judged(
    trajectories: Sequence[Trajectory], name: str, discount: float
) -> list[Judged]:
    """One agent's actions; METHOD step 3's discount across its turns."""
    out: list[Judged] = []
    for trajectory in trajectories:
        pairs = zip(trajectory.actions, trajectory.verdicts, strict=True)
        turns: list[Judged] = []
        later: float | None = 0.0
        for action, verdict in reversed(
            [pair for pair in pairs if pair[0].agent == name]
        ):
            score = verdict.score if isinstance(verdict, Verdict) else None
            if discount and score is not None:
                score = None if later is None else score + discount * later
            later = score
            turns.append(Judged(trajectory, action, verdict, score))
        out += reversed(turns)
    return out


def _debiased(rows: list[Judged], keeps: Callable[[Judged], bool]) -> list[Judged]:
    """Scores less the offset of their kind of task from the mean over kinds.

    A judge that scores one kind higher than another pays for drifting there and not
    for better work (arXiv 2601.23228 saw half a point to two). Offsets are of this
    agent and this batch, over what is trained on.
    """
    kinds = collections.defaultdict(list)
    for row in rows:
        if row.score is not None and keeps(row):
            kinds[row.trajectory.task.kind].append(row.score)
    means = {kind: float(np.mean(scores)) for kind, scores in kinds.items()}
    centre = float(np.mean([*means.values()])) if means else 0.0

    def one(row: Judged) -> Judged:
        if row.score is None:
            return row
        offset = means.get(row.trajectory.task.kind, centre) - centre
        return row._replace(score=row.score - offset)

    return [one(row) for row in rows]


def _shuffle_scores(rows: list[Judged], rng: np.random.Generator) -> list[Judged]:
    """A control: scores permuted between an agent's actions."""
    order = rng.permutation(len(rows))
    return [
        row._replace(verdict=rows[j].verdict, score=rows[j].score)
        for row, j in zip(rows, order, strict=True)
    ]


FROZEN = "its agent is not trained"


def _why_masked(row: Judged, reward: RewardConfig, mask_truncated: bool) -> str | None:
    """Why an action is not trained on, in words; None where it is."""
    process, outcome, _ = _parts(reward)
    if row.action.fault is not None:
        return "a fault of the infrastructure"
    if process and row.score is None:
        mine = isinstance(row.verdict, Missing)
        return "no verdict" if mine else "no verdict of a later turn"
    if outcome and row.trajectory.outcome is None:
        return "no outcome"
    if mask_truncated and row.action.finish == "length":
        return "cut at its token limit"
    return None


def _actions(kept: list[list[Judged]], shape: Shape, reward: RewardConfig) -> Actions:
    a, n, c = len(kept), shape.actions, shape.action_tokens
    out = Actions(
        reward=np.zeros((a, n), np.float32),
        group=np.zeros((a, n), np.int32),
        kind=np.zeros((a, n), np.int32),
        mask=np.zeros((a, n, c), np.float32),
        behaviour=np.zeros((a, n, c), np.float32),
    )
    for i, rows in enumerate(kept):
        groups: dict[Any, int] = {}
        kinds: dict[str, int] = {}
        for j, row in enumerate(rows):
            task, action = row.trajectory.task, row.action
            key = (task.source, task.id, action.turn)
            out.group[i, j] = groups.setdefault(key, len(groups))
            out.kind[i, j] = kinds.setdefault(task.kind, len(kinds))
            out.reward[i, j] = _reward(row, reward)
            out.mask[i, j, : len(action.token_ids)] = 1.0
            out.behaviour[i, j, : len(action.token_ids)] = action.logprobs
    return out


def _parts(config: RewardConfig) -> tuple[float, float, str]:
    """The weights of process and outcome, and which actions the outcome reaches."""
    if config.outcome_only:
        return 0.0, 1.0, "all"
    return config.process_weight, config.outcome_weight, config.outcome_to


def _reward(row: Judged, config: RewardConfig) -> float:
    """METHOD steps 1 and 6: the score scaled, and the outcome where it is asked for."""
    process, outcome, to = _parts(config)
    trajectory, reward = row.trajectory, 0.0
    if process and row.score is not None:
        reward += process * config.reward_scale * row.score
    if outcome and trajectory.outcome is not None:
        if to == "all" or row.action is trajectory.actions[-1]:
            reward += outcome * trajectory.outcome.score
    return reward


def _minibatch(
    actions: Sequence[Sequence[Action]],
    part: slice,
    shape: Shape,
    group: GroupShape,
    objective: ObjectiveConfig,
) -> Minibatch | None:
    """One optimiser step's actions of a group, packed."""
    if not group.trained:
        return None
    batch = blank(shape.packing, group)
    slots: list[Slot] = []
    used = [0] * group.lanes  # rows in each lane
    per_lane = len(group.members) // group.lanes
    for place, agent in enumerate(group.members):
        mine = dict(list(enumerate(actions[agent]))[part])
        lane = place // per_lane
        first = len(slots)
        for row in pack_rows([_item(*na) for na in mine.items()], shape.packing):
            where = (lane, *divmod(used[lane], shape.packing.rows))
            used[lane] += 1
            batch.agent[where] = place
            slots += _write_row(batch, where, agent, row, mine)
        _weigh(batch, slots[first:], objective)
    counts = tuple(-(-rows // shape.packing.rows) for rows in used)
    return Minibatch(batch, tuple(slots), counts)


def _item(number: int, action: Action) -> Item:
    tokens = np.concatenate([action.prompt_ids, action.token_ids[:-1]])
    return Item(number, tokens, len(action.token_ids))


def blank(packing: PackingConfig, group: GroupShape) -> TrainBatch:
    """An empty mini-batch of NumPy arrays."""
    lead = (group.lanes, group.microbatches, packing.rows)
    wide = (*lead, packing.row_tokens)
    narrow = (*lead, packing.row_action_tokens)

    def floats(value: float = 0.0) -> np.ndarray:
        return np.full(narrow, value, np.float32)

    return TrainBatch(
        tokens=np.zeros(wide, np.int32),
        positions=np.zeros(wide, np.int32),
        ends=np.zeros(wide, np.int32),
        agent=np.zeros(lead, np.int32),
        index=np.zeros(narrow, np.int32),
        target=np.zeros(narrow, np.int32),
        action=np.zeros(narrow, np.int32),
        mask=floats(),
        temperature=floats(1.0),
        behaviour=floats(),
        reference=floats(),
        old=floats(),
        importance=floats(1.0),
        advantage=floats(),
        weight=floats(),
    )


def _write_row(
    batch: TrainBatch,
    where: tuple[int, int, int],
    agent: int,
    row: Row,
    actions: dict[int, Action],
) -> list[Slot]:
    """Writes a packed row; returns where its actions lie."""
    n = len(row.tokens)
    batch.tokens[where][:n] = row.tokens
    batch.positions[where][:n] = row.positions
    batch.ends[where][:n] = row.ends
    slots, at = [], 0
    for place, (number, path) in enumerate(row.placed):
        action = actions[number]
        prompt, new = len(action.prompt_ids), len(action.token_ids)
        narrow = slice(at, at + new)
        batch.index[where][narrow] = path[prompt - 1 :]
        batch.target[where][narrow] = action.token_ids
        batch.action[where][narrow] = place
        batch.mask[where][narrow] = 1.0
        batch.temperature[where][narrow] = action.temperature or 1.0
        batch.behaviour[where][narrow] = action.logprobs
        batch.old[where][narrow] = action.logprobs
        slots.append(Slot(agent, number, where, at, action))
        at += new
    return slots


def _weigh(batch: TrainBatch, slots: list[Slot], config: ObjectiveConfig) -> None:
    """Writes the loss weights of one agent's actions in one mini-batch."""
    lengths = np.asarray([len(s.action.token_ids) for s in slots], np.float32)
    weights = AGGREGATIONS[config.aggregation](lengths, config.fixed_length)
    for slot, length, weight in zip(slots, lengths, weights, strict=True):
        batch.weight[slot.row][slot.at : slot.at + int(length)] = weight


# How a token counts in its agent's loss: lengths [n] of the actions -> weights [n].
AGGREGATIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "token": lambda lengths, _: np.full_like(lengths, 1 / max(lengths.sum(), 1)),
    "action": lambda lengths, _: 1 / (lengths * max(len(lengths), 1)),
    # Dr. GRPO (arXiv 2503.20783): no length in the denominator.
    "fixed": lambda lengths, fixed: np.full_like(
        lengths, 1 / (fixed * max(len(lengths), 1))
    ),
}


def _counts(rows: list[Judged]) -> dict[str, float]:
    verdicts = [row.verdict for row in rows]
    actions = [row.action for row in rows]
    scores = [v.score for v in verdicts if isinstance(v, Verdict)]
    return {
        "actions": len(rows),
        "missing": sum(isinstance(v, Missing) for v in verdicts),
        "faults": sum(a.fault is not None for a in actions),
        "truncated": sum(a.finish == "length" for a in actions),
        "tokens": sum(len(a.token_ids) for a in actions),
        "programs": sum(a.code is not None for a in actions),
        "program_errors": sum(
            a.observation is not None and not a.observation.ok for a in actions
        ),
        "score": float(np.mean(scores)) if scores else float("nan"),
    }
