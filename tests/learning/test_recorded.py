"""The credit record: each action's numbers at the action's own place."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from mappa_jax.config import ObjectiveConfig, PackingConfig, RewardConfig
from mappa_jax.learning import batch as batches
from mappa_jax.learning.recorded import credit_rows

GROUP = batches.GroupShape(
    members=(0, 1), trained=frozenset({0}), lanes=2, microbatches=4
)
SHAPE = batches.Shape(
    actions=8,
    action_tokens=6,
    packing=PackingConfig(row_tokens=16, row_action_tokens=8, rows=2),
    groups=(GROUP,),
)


@pytest.fixture
def trajectories(make_action, make_trajectory):
    """Of "a": two that count, one unjudged, one cut, one faulty; of "b" one."""
    long = make_action("a", 0, prompt=5, new=3, seed=1)
    short = make_action("a", 1, prompt=4, new=2, seed=2)
    cut = make_action("a", 0, new=4, seed=3, finish="length")
    faulty = make_action("a", 1, new=2, seed=4, fault="sandbox dead")
    unjudged = make_action("a", 0, new=2, seed=5)
    return [
        make_trajectory([(long, 4.0), (make_action("b"), 9.0), (short, 6.0)], "x"),
        make_trajectory([(cut, 1.0), (faulty, 2.0)], "y", sample=1),
        make_trajectory([(unjudged, None)], "z"),
    ]


def packed_with(trajectories, fill):
    """Packed, the arrays of each part filled as `fill` says."""
    packed = batches.pack(
        trajectories,
        ("a", "b"),
        SHAPE,
        reward=RewardConfig(),
        objective=ObjectiveConfig(mask_truncated=True),
        actions_per_update=1,  # so that the actions lie in several mini-batches
        rng=np.random.default_rng(0),
    )
    steps = tuple(
        tuple(
            dataclasses.replace(part, batch=part.batch.replace(**fill(part)))
            for part in step
        )
        for step in packed.minibatches
    )
    return dataclasses.replace(packed, minibatches=steps)


def of_token_ids(part):
    """Numbers that follow from the token, so that a wrong place would be seen."""
    target = part.batch.target.astype(np.float32)
    return {
        "advantage": target / 10,
        "old": target,
        "reference": 2 * target,
        "behaviour": target - 0.25,
    }


EVERYONE = SimpleNamespace(referred=frozenset({0, 1}), rescored=frozenset({0, 1}))
NOBODY = SimpleNamespace(referred=frozenset(), rescored=frozenset())


def test_each_action_has_the_numbers_of_its_own_tokens(trajectories):
    rows = list(
        credit_rows(trajectories, packed_with(trajectories, of_token_ids), EVERYONE)
    )
    assert [(r["task"], r["sample"]) for r in rows] == [("x", 0), ("y", 1), ("z", 0)]
    for place, score in ((0, 4.0), (2, 6.0)):
        action, row = trajectories[0].actions[place], rows[0]["actions"][place]
        ids = action.token_ids.astype(float)
        assert (row["agent"], row["turn"]) == (action.agent, action.turn)
        assert row["tokens"] == len(ids)
        assert row["reward"] == pytest.approx(RewardConfig().reward_scale * score)
        assert row["advantage"] == pytest.approx(ids.mean() / 10)
        assert row["policy_reference"] == pytest.approx(-ids)
        assert row["trainer_behaviour"] == pytest.approx(np.full(len(ids), 0.25))


def test_what_is_not_trained_on_says_why(trajectories):
    rows = list(
        credit_rows(trajectories, packed_with(trajectories, of_token_ids), EVERYONE)
    )
    why = [[a.get("masked") for a in row["actions"]] for row in rows]
    assert why == [
        [None, "its agent is not trained", None],
        ["cut at its token limit", "a fault of the infrastructure"],
        ["no verdict"],
    ]
    assert "reward" not in rows[2]["actions"][0]


def test_a_ratio_that_was_not_worked_out_is_no_number(trajectories):
    rows = list(
        credit_rows(trajectories, packed_with(trajectories, of_token_ids), NOBODY)
    )
    action = rows[0]["actions"][0]
    assert action["policy_reference"] is None and action["trainer_behaviour"] is None


def test_a_number_that_is_not_finite_can_be_written(trajectories):
    def broken(part):
        return {"advantage": np.full_like(part.batch.mask, np.nan)}

    rows = list(credit_rows(trajectories, packed_with(trajectories, broken), EVERYONE))
    assert json.loads(json.dumps(rows, allow_nan=False))
    assert rows[0]["actions"][0]["advantage"] == "nan"


def test_a_later_turn_without_a_verdict_masks_the_earlier(make_action, make_trajectory):
    pair = [(make_action(turn=0, seed=1), 5.0), (make_action(turn=1, seed=2), None)]
    made = [make_trajectory(pair)]
    packed = batches.pack(
        made,
        ("a", "b"),
        SHAPE,
        reward=RewardConfig(turn_discount=0.5),
        objective=ObjectiveConfig(),
        actions_per_update=8,
        rng=np.random.default_rng(0),
    )
    (row,) = credit_rows(made, packed, EVERYONE)
    assert [a["masked"] for a in row["actions"]] == [
        "no verdict of a later turn",
        "no verdict",
    ]
