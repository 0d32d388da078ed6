"""Trajectories to rows of arrays, token by token."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mappa_jax.config import ConfigError, ObjectiveConfig, PackingConfig, RewardConfig
from mappa_jax.learning import batch as batches
from mappa_jax.types import Outcome

GROUP = batches.GroupShape(
    members=(0, 1), trained=frozenset({0, 1}), lanes=2, microbatches=4
)
SHAPE = batches.Shape(
    actions=8,
    action_tokens=6,
    packing=PackingConfig(row_tokens=16, row_action_tokens=8, rows=2),
    groups=(GROUP,),
)
APART = dataclasses.replace(
    SHAPE, packing=dataclasses.replace(SHAPE.packing, share_prefixes=False)
)
KEEP_ALL = ObjectiveConfig(mask_truncated=False)


def of_lanes(shape, lanes, **changes):
    group = dataclasses.replace(GROUP, lanes=lanes, **changes)
    return dataclasses.replace(shape, groups=(group,))


def pack(
    trajectories,
    shape=SHAPE,
    *,
    seed=0,
    size=8,
    reward=None,
    objective=KEEP_ALL,
    debias=False,
):
    return batches.pack(
        trajectories,
        ("a", "b"),
        shape,
        reward=reward or RewardConfig(),
        objective=objective,
        actions_per_update=size,
        rng=np.random.default_rng(seed),
        debias=debias,
    )


def rewards(packed, agent=0):
    kept = packed.actions.mask[agent].any(1)
    return sorted(packed.actions.reward[agent][kept].tolist())


@pytest.fixture
def three(make_action, make_trajectory):
    """Two actions of "a", one of "b"."""
    return [
        make_trajectory(
            [
                (make_action("a", 0, prompt=5, new=3, seed=1, temperature=0.7), 4.0),
                (make_action("b", 0, prompt=2, new=2, seed=2), 9.0),
                (make_action("a", 1, prompt=4, new=2, seed=3), 6.0),
            ]
        )
    ]


def test_a_row_holds_its_actions_one_after_the_other(three):
    """Without prefixes, the longest first: 5 + 3 tokens, then 4 + 2, less the last."""
    part = pack(three, APART).minibatches[0][0]
    first, _, second = three[0].actions
    row, b = (0, 0, 0), part.batch
    want = [
        *(*first.prompt_ids, *first.token_ids[:-1]),
        *(*second.prompt_ids, *second.token_ids[:-1]),
    ]
    np.testing.assert_array_equal(b.tokens[row], [*want, 0, 0, 0, 0])
    np.testing.assert_array_equal(b.positions[row], [*range(7), *range(5), *[0] * 4])
    np.testing.assert_array_equal(b.ends[row], [7] * 7 + [12] * 5 + [0] * 4)
    # Token 5 of the first is predicted at 4; the second starts at 7.
    np.testing.assert_array_equal(b.index[row], [4, 5, 6, 10, 11, 0, 0, 0])
    np.testing.assert_array_equal(b.mask[row], [1, 1, 1, 1, 1, 0, 0, 0])
    np.testing.assert_allclose(b.temperature[row], [0.7] * 3 + [1] * 5)
    logprobs = [*first.logprobs, *second.logprobs, 0, 0, 0]
    np.testing.assert_allclose(b.behaviour[row], logprobs)
    np.testing.assert_allclose(b.old[row], logprobs)
    np.testing.assert_array_equal(
        b.target[row], [*first.token_ids, *second.token_ids, 0, 0, 0]
    )


def test_with_lanes_an_agent_has_its_own(three):
    b = pack(three).minibatches[0][0].batch
    np.testing.assert_array_equal(b.mask.sum((1, 2, 3)), [5, 2])
    assert b.agent[1, 0, 0] == 1


def test_with_one_lane_rows_name_their_agent(three):
    shape = of_lanes(SHAPE, 1)
    part = pack(three, shape).minibatches[0][0]
    np.testing.assert_array_equal(part.batch.agent[0, 0], [0, 1])
    np.testing.assert_array_equal(part.batch.mask[0, 0].sum(1), [5, 2])
    assert part.counts == (1,)


@pytest.mark.parametrize(
    ("aggregation", "long", "short"),
    [
        ("token", 1 / 5, 1 / 5),  # of the five tokens
        ("action", 1 / (3 * 2), 1 / (2 * 2)),  # of each action's, then of two
        ("fixed", 1 / (100 * 2), 1 / (100 * 2)),
    ],
)
def test_aggregations_weigh_tokens(three, aggregation, long, short):
    objective = dataclasses.replace(KEEP_ALL, aggregation=aggregation, fixed_length=100)
    weight = pack(three, APART, objective=objective).minibatches[0][0].batch.weight
    np.testing.assert_allclose(
        weight[0, 0, 0], [long] * 3 + [short] * 2 + [0] * 3, rtol=1e-6
    )
    assert weight[1].sum() == pytest.approx(2 / 100 if aggregation == "fixed" else 1)


def test_weights_are_of_the_mini_batch(three):
    """Of each step's own tokens, not of the whole rollout batch's."""
    packed = pack(three, size=1)
    assert len(packed.minibatches) == 2
    for (part,) in packed.minibatches:
        assert part.batch.weight[0].sum() == pytest.approx(1.0)
    assert packed.minibatches[1][0].batch.weight[1].sum() == 0


def test_what_is_not_trained_on_is_left_out_and_counted(make_action, make_trajectory):
    pairs = [
        (make_action("a", 0, seed=0), 5.0),
        (make_action("a", 1, seed=1), None),
        (make_action("a", 2, seed=2, fault="sandbox died"), 7.0),
        (make_action("a", 3, seed=3, finish="length"), 9.0),
    ]
    trajectories = [make_trajectory(pairs)]
    strict = pack(trajectories, objective=ObjectiveConfig(mask_truncated=True))
    assert rewards(strict) == pytest.approx([0.5])
    assert strict.minibatches[0][0].batch.mask.sum() == 2
    assert rewards(pack(trajectories)) == pytest.approx([0.5, 0.9])
    counts = strict.counts["a"]
    assert {k: counts[k] for k in ("actions", "missing", "faults", "truncated")} == {
        "actions": 4,
        "missing": 1,
        "faults": 1,
        "truncated": 1,
    }
    assert counts["tokens"] == 8
    assert counts["score"] == pytest.approx(7.0)
    assert strict.counts["b"]["actions"] == 0
    assert np.isnan(strict.counts["b"]["score"])


def test_nothing_to_train_on_is_no_mini_batch(make_action, make_trajectory):
    packed = pack([make_trajectory([(make_action(), None)])])
    assert packed.minibatches == ()
    assert packed.actions.mask.sum() == 0


def test_groups_are_of_task_and_turn_and_kinds_of_source(make_action, make_trajectory):
    def two(task, source, sample):
        pairs = [(make_action("a", k, seed=sample), float(k)) for k in (0, 1)]
        return make_trajectory(pairs, task=task, source=source, sample=sample)

    trajectories = [two("x", "s", 0), two("x", "s", 1), two("y", "t", 0)]
    actions = pack(trajectories).actions
    kept = actions.mask[0].any(1)
    _, sizes = np.unique(actions.group[0][kept], return_counts=True)
    assert sorted(sizes) == [1, 1, 2, 2]
    _, sizes = np.unique(actions.kind[0][kept], return_counts=True)
    assert sorted(sizes) == [2, 4]
    for group in np.unique(actions.group[0][kept]):  # turn k was scored k
        assert np.ptp(actions.reward[0][kept & (actions.group[0] == group)]) == 0


@pytest.mark.parametrize(
    ("config", "a", "b"),
    [
        (RewardConfig(), [0.4, 0.6], [0.9]),
        (RewardConfig(reward_scale=1.0), [4, 6], [9]),
        (RewardConfig(outcome_weight=0.5), [0.9, 1.1], [1.4]),
        (RewardConfig(outcome_weight=0.5, outcome_to="last"), [0.4, 1.1], [0.9]),
        (RewardConfig(process_weight=0, outcome_weight=1), [1, 1], [1]),
        (RewardConfig(outcome_only=True), [1, 1], [1]),
        (RewardConfig(outcome_only=True, outcome_to="last"), [1, 1], [1]),
    ],
)
def test_outcomes_join_the_reward(three, config, a, b):
    right = [dataclasses.replace(three[0], outcome=Outcome(1.0))]
    packed = pack(right, reward=config)
    assert rewards(packed, 0) == pytest.approx(a)
    assert rewards(packed, 1) == pytest.approx(b)


def test_without_an_outcome_that_has_a_weight_an_action_is_masked(three):
    assert rewards(pack(three, reward=RewardConfig(outcome_weight=0.5))) == []


def test_turns_can_share_their_reward_with_the_turn_before(three):
    config = RewardConfig(turn_discount=0.5)
    assert rewards(pack(three, reward=config), 0) == pytest.approx([0.6, 0.4 + 0.3])
    assert rewards(pack(three, reward=config), 1) == pytest.approx([0.9])


def test_a_discounted_turn_needs_the_verdicts_after_it(make_action, make_trajectory):
    scores = (3.0, None, 5.0)
    pairs = [(make_action("a", k, seed=k), s) for k, s in enumerate(scores)]
    trajectories = [make_trajectory(pairs)]
    assert rewards(pack(trajectories)) == pytest.approx([0.3, 0.5])
    discounted = pack(trajectories, reward=RewardConfig(turn_discount=0.5))
    assert rewards(discounted) == pytest.approx([0.5])


def test_outcome_only_needs_no_verdict(make_action, make_trajectory):
    unscored = [(make_action("a", 0), None)]
    trajectories = [make_trajectory(unscored, outcome=1.0)]
    packed = pack(trajectories, reward=RewardConfig(outcome_only=True))
    assert rewards(packed, 0) == pytest.approx([1])
    assert rewards(pack(trajectories), 0) == []


def test_debias_takes_off_what_a_kind_of_task_is_given(make_action, make_trajectory):
    """A judge that gives regression 2 points more; a missing verdict stays missing."""
    trajectories = []
    for k, (kind, score) in enumerate(
        [("regression", 7.0), ("regression", 9.0), ("classification", 5.0),
         ("classification", 7.0), ("classification", None)]
    ):  # fmt: skip
        one = make_trajectory([(make_action("a", 0, seed=k), score)], task=f"t{k}")
        task = dataclasses.replace(one.task, metadata={"kind": kind})
        trajectories.append(dataclasses.replace(one, task=task))
    assert rewards(pack(trajectories)) == pytest.approx([0.5, 0.7, 0.7, 0.9])
    debiased = pack(trajectories, debias=True)
    assert rewards(debiased) == pytest.approx([0.6, 0.6, 0.8, 0.8])
    assert debiased.counts["a"]["score"] == pytest.approx(7.0)  # as the judge gave it


def test_debias_looks_at_what_is_trained_on_only(make_action, make_trajectory):
    """An action that was cut off earns 0 and is masked; it moves nobody's offset."""
    trajectories = []
    for k, (kind, score, finish) in enumerate(
        [("regression", 8.0, "stop"), ("classification", 6.0, "stop"),
         ("regression", 0.0, "length")]
    ):  # fmt: skip
        action = make_action("a", 0, seed=k, finish=finish)
        one = make_trajectory([(action, score)], task=f"t{k}")
        task = dataclasses.replace(one.task, metadata={"kind": kind})
        trajectories.append(dataclasses.replace(one, task=task))
    mask = ObjectiveConfig(mask_truncated=True)
    for some in (trajectories, trajectories[:2]):
        found = rewards(pack(some, objective=mask, debias=True))
        assert found == pytest.approx([0.7, 0.7])


def test_tasks_of_two_sources_with_one_id_are_two_groups(make_action, make_trajectory):
    trajectories = [
        make_trajectory([(make_action("a", 0), 5.0)], task="train-1", source=source)
        for source in ("x", "y")
    ]
    actions = pack(trajectories).actions
    kept = actions.mask[0].any(1)
    assert len(np.unique(actions.group[0][kept])) == 2


def test_shuffled_scores_stay_with_their_agent(make_action, make_trajectory):
    def pairs(agent, first):
        return [(make_action(agent, k, new=1 + k, seed=k), first + k) for k in range(4)]

    trajectories = [make_trajectory(pairs("a", 0.0) + pairs("b", 6.0))]
    plain, shuffled = (
        pack(trajectories),
        pack(trajectories, reward=RewardConfig(shuffle=True)),
    )
    for agent in (0, 1):
        assert rewards(plain, agent) == pytest.approx(rewards(shuffled, agent))

    def by_length(packed):  # an action is known by its length
        lengths = packed.actions.mask[0].sum(1)
        order = np.argsort(lengths)[-4:]
        return packed.actions.reward[0][order].tolist()

    assert by_length(plain) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert by_length(shuffled) != pytest.approx([0, 0.1, 0.2, 0.3])


def test_an_action_that_fits_no_row_is_refused(make_action, make_trajectory):
    for prompt, new in ((12, 6), (2, 9)):
        long = make_trajectory([(make_action("a", 0, prompt=prompt, new=new), 1.0)])
        shape = dataclasses.replace(SHAPE, action_tokens=9)
        with pytest.raises(ConfigError, match="packing.row_tokens=16"):
            pack([long], shape)


LENGTHS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(1, 10), st.integers(1, 6)),
    min_size=1,
    max_size=8,
)


def arrays(packed):
    for (part,) in packed.minibatches:
        yield from part.batch.values()
    yield from packed.actions.values()


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    lanes=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
    share=st.booleans(),
)
def test_packing_loses_and_overfills_nothing(
    make_action, make_trajectory, lengths, lanes, seed, share
):
    pairs = [
        (make_action(agent, k, prompt=p, new=n, seed=k), 1.0)
        for k, (agent, p, n) in enumerate(lengths)
    ]
    trajectories = [make_trajectory(pairs)]
    shape = of_lanes(SHAPE if share else APART, lanes, microbatches=8)
    packed = pack(trajectories, shape, seed=seed, size=3)
    seen = []
    for (part,) in packed.minibatches:
        used = {}
        for s in part.slots:
            assert s.at == used.get(s.row, 0)  # side by side
            used[s.row] = s.at + len(s.action.token_ids)
            own = slice(s.at, used[s.row])
            np.testing.assert_array_equal(
                part.batch.target[s.row][own], s.action.token_ids
            )
            assert part.batch.agent[s.row] == s.agent
            seen.append(s.action.turn)
        assert max(used.values()) <= shape.packing.row_action_tokens
        filled = [{m for w, m, _ in used if w == lane} for lane in range(lanes)]
        assert [set(range(count)) for count in part.counts] == filled
    assert sorted(seen) == list(range(len(lengths)))

    values = np.random.default_rng(seed).random(packed.actions.mask.shape)
    back = np.zeros_like(values)
    for (part,) in packed.minibatches:
        part.gather(part.scatter(values), back)
    np.testing.assert_allclose(back, values * packed.actions.mask, rtol=1e-6)

    again = pack(trajectories, shape, seed=seed, size=3)
    for x, y in zip(arrays(packed), arrays(again), strict=True):
        np.testing.assert_array_equal(x, y)


def test_another_seed_orders_the_actions_otherwise(make_action, make_trajectory):
    pairs = [(make_action("a", k, new=1 + k % 6, seed=k), 1.0) for k in range(8)]
    orders = {
        tuple(pack([make_trajectory(pairs)], seed=s).actions.mask[0].sum(1))
        for s in range(4)
    }
    assert len(orders) > 1
