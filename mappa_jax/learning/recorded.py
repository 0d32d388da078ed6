"""What training made of each action, for people: reward, advantage, ratios.

Nothing is worked out here but means over an action's tokens: the numbers are those that
the update is about to use. One row per trajectory, in the order of the iteration's
trajectories, beside which they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from mappa_jax.learning.batch import Minibatch, Packed, Slot
from mappa_jax.records import plain
from mappa_jax.types import Action, Trajectory

DIGITS = 5  # decimals of a token's log-ratio


class Scores(Protocol):
    """Whose log-probabilities were worked out (`learning.update.Learner`)."""

    @property
    def referred(self) -> frozenset[int]: ...
    @property
    def rescored(self) -> frozenset[int]: ...


def credit_rows(
    trajectories: Sequence[Trajectory], packed: Packed, scores: Scores
) -> Iterator[dict[str, Any]]:
    """The credit of a batch, as JSON values.

    Args:
      trajectories: those that `packed` was made of.
      packed: with credit assigned, before the update.
      scores: says which ratios there are.

    Yields:
      By trajectory: source, task (its id), sample, and actions, each with agent, turn,
      tokens (how many) and either `masked` (why it is not trained on) or `reward`,
      `advantage` (the mean over its tokens), `policy_reference` and
      `trainer_behaviour`: of each token the log of policy over reference policy, and of
      trainer over sampler; None where no such score was worked out.
    """
    found: dict[int, dict[str, Any]] = {}
    for step in packed.minibatches:
        for part in step:
            for slot in part.slots if part is not None else ():
                found[id(slot.action)] = _of_slot(packed, part, slot, scores)
    masked = {id(action): {"masked": why} for action, why in packed.masked}
    for trajectory in trajectories:
        yield {
            "source": trajectory.task.source,
            "task": trajectory.task.id,
            "sample": trajectory.sample,
            "actions": [
                _name(action) | (found.get(id(action)) or masked[id(action)])
                for action in trajectory.actions
            ],
        }


def _name(action: Action) -> dict[str, Any]:
    return {
        "agent": action.agent,
        "turn": action.turn,
        "tokens": len(action.token_ids),
    }


def _of_slot(
    packed: Packed, part: Minibatch, slot: Slot, scores: Scores
) -> dict[str, Any]:
    batch = part.batch
    tokens = slice(slot.at, slot.at + len(slot.action.token_ids))

    def of(rows: Any) -> np.ndarray:
        return np.asarray(rows[slot.row][tokens], np.float64)

    def ratio(over: Any, under: Any, known: frozenset[int]) -> list[Any] | None:
        if slot.agent not in known:
            return None
        return [plain(v) for v in np.round(of(over) - of(under), DIGITS).tolist()]

    return {
        "reward": plain(float(packed.actions.reward[slot.agent, slot.number])),
        "advantage": plain(float(of(batch.advantage).mean())),
        "policy_reference": ratio(batch.old, batch.reference, scores.referred),
        "trainer_behaviour": ratio(batch.old, batch.behaviour, scores.rescored),
    }
