"""Rewards to advantages, against numbers worked out by hand."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mappa_jax.learning import credit


def array(rows):
    return np.asarray(rows, np.float32)


@functools.partial(jax.jit, static_argnames=("estimator", "weight", "beta"))
def advantages(
    reward,
    kl,
    mask,
    group,
    kind,
    *,
    estimator="reinforce_pp",
    weight="token",
    beta=0.0,
):
    return credit.advantages(
        reward, kl, mask, group, kind, estimator=estimator, weight=weight, beta=beta
    )


def of_rewards(reward, group=None, kind=None, mask=None, **options):
    """Advantages of actions of one token each, without KL."""
    n = len(reward)
    zeros = np.zeros((n,), np.int32)
    out = advantages(
        array(reward),
        np.zeros((n, 1), np.float32),
        np.ones((n, 1), np.float32) if mask is None else array(mask)[:, None],
        zeros if group is None else np.asarray(group, np.int32),
        zeros if kind is None else np.asarray(kind, np.int32),
        **options,
    )
    return np.asarray(out)[:, 0]


def test_the_action_reward_falls_on_its_last_token():
    rho = credit.token_rewards(
        reward_N=array([0.5, 0.9, 0.7]),
        kl_NxC=array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        mask_NxC=array([[1, 1, 0], [1, 1, 1], [0, 0, 0]]),
        beta=0.1,
    )
    want = [[-0.1, -0.2 + 0.5, 0], [-0.4, -0.5, -0.6 + 0.9], [0, 0, 0]]
    np.testing.assert_allclose(rho, want, rtol=1e-6)


def test_returns_sum_what_follows_within_the_action():
    got = credit.returns(array([[-0.1, 0.3, 0.0], [1.0, 2.0, 4.0]]))
    np.testing.assert_allclose(got, [[0.2, 0.3, 0.0], [7.0, 6.0, 4.0]], rtol=1e-6)


def test_whitening_uses_the_weighted_population_variance():
    got = credit.whiten(array([1, 2, 3, 100]), array([1, 1, 1, 0]))
    spread = np.sqrt(2 / 3)
    np.testing.assert_allclose(got, [-1 / spread, 0, 1 / spread, 0], rtol=1e-6)
    got = credit.whiten(array([0, 1]), array([3, 1]))  # mean 1/4, variance 3/16
    want = [-0.25 / np.sqrt(3 / 16), 0.75 / np.sqrt(3 / 16)]
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3, 7.1])
def test_whitening_equal_values_gives_zeros(value):
    x = np.full((7,), value, np.float32)
    np.testing.assert_array_equal(credit.whiten(x, np.ones_like(x)), np.zeros(7))


def test_whitening_nothing_gives_zeros():
    zeros = np.zeros((3,), np.float32)
    np.testing.assert_array_equal(credit.whiten(zeros + 5, zeros), zeros)


def test_a_long_action_counts_by_its_tokens_or_once():
    """Rewards 1 with three tokens and 0 with one: mean 3/4, or 1/2."""
    mask = array([[1, 1, 1], [1, 0, 0]])
    ids = np.arange(2, dtype=np.int32)
    args = (array([1, 0]), np.zeros_like(mask), mask, ids, ids)
    by_token = advantages(*args, weight="token")
    spread = np.sqrt(3 / 16)
    want = array([[0.25] * 3, [-0.75, 0, 0]]) / spread
    np.testing.assert_allclose(by_token, want, rtol=1e-6)
    by_action = advantages(*args, weight="action")
    np.testing.assert_allclose(by_action, [[1, 1, 1], [-1, 0, 0]], rtol=1e-6)


def test_the_kl_of_later_tokens_reaches_earlier_ones():
    mask = array([[1, 1], [1, 0]])
    ids = np.arange(2, dtype=np.int32)
    kl = array([[1, 2], [3, 99]])
    got = advantages(
        array([0.8, 0.1]), kl, mask, ids, ids, estimator="reinforce", beta=0.1
    )
    want = [[0.8 - 0.3, 0.8 - 0.2], [0.1 - 0.3, 0]]
    np.testing.assert_allclose(got, want, rtol=1e-5)


# Rewards 1, 0, 0.5 in one group and 0.2 alone; the batch mean is 0.425.
REWARDS, GROUPS, KINDS = (1.0, 0.0, 0.5, 0.2), (0, 0, 0, 1), (0, 1, 0, 1)
BY_HAND = {
    "reinforce": REWARDS,
    # (x - 0.425) / sqrt(0.3225 - 0.425^2)
    "reinforce_pp": np.subtract(REWARDS, 0.425) / np.sqrt(0.141875),
    # The mean of the others: 0.25, 0.75, 0.5; the batch mean for the one alone.
    "rloo": (0.75, -0.75, 0.0, -0.225),
    # The same, whitened: mean -0.05625, variance 0.29390625 - 0.05625^2.
    "reinforce_baseline": np.add((0.75, -0.75, 0.0, -0.225), 0.05625)
    / np.sqrt(0.2907421875),
    "grpo_no_std": (0.5, -0.5, 0.0, -0.225),
    # The group's deviation is sqrt(0.5 / 3); alone, the batch's, sqrt(0.13765625).
    "grpo": (
        0.5 / np.sqrt(0.5 / 3),
        -0.5 / np.sqrt(0.5 / 3),
        0.0,
        -0.225 / np.sqrt(0.13765625),
    ),
    "agent_baseline": (0.575, -0.425, 0.075, -0.225),
    # Kind means 0.75 and 0.1.
    "task_type_baseline": (0.25, -0.1, -0.25, 0.1),
}


@pytest.mark.parametrize("estimator", credit.ESTIMATORS)
def test_every_estimator_by_hand(estimator):
    got = of_rewards(REWARDS, GROUPS, KINDS, estimator=estimator)
    np.testing.assert_allclose(got, BY_HAND[estimator], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("estimator", credit.ESTIMATORS)
def test_masked_actions_are_in_no_statistic(estimator):
    """The same four actions among two masked ones, in both of their groups."""
    got = of_rewards(
        (9.0, *REWARDS, -9.0),
        (0, *GROUPS, 1),
        (0, *KINDS, 1),
        mask=(0, 1, 1, 1, 1, 0),
        estimator=estimator,
    )
    np.testing.assert_allclose(got[1:5], BY_HAND[estimator], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(got[[0, 5]], 0.0)


@pytest.mark.parametrize("estimator", sorted(set(credit.ESTIMATORS) - {"reinforce"}))
@pytest.mark.parametrize("mask", [(0, 0, 0), (0, 1, 0)])
def test_with_nothing_to_compare_advantages_are_zero(estimator, mask):
    got = of_rewards((0.4, 0.7, 0.1), (0, 1, 2), mask=mask, estimator=estimator)
    np.testing.assert_array_equal(got, 0.0)


@pytest.mark.parametrize("estimator", sorted(set(credit.ESTIMATORS) - {"reinforce"}))
def test_equal_rewards_give_zeros(estimator):
    got = of_rewards((0.7,) * 5, (0, 0, 1, 2, 2), estimator=estimator)
    np.testing.assert_allclose(got, 0.0, atol=1e-3)
    assert np.isfinite(got).all()


def test_one_action_alone_is_not_compared_with_its_own_kl():
    kl = array([[1, 5, 2], [0, 0, 0]])
    mask = array([[1, 1, 1], [0, 0, 0]])
    ids = np.zeros((2,), np.int32)
    got = advantages(array([0.5, 0]), kl, mask, ids, ids, beta=0.1)
    np.testing.assert_array_equal(got, 0.0)


NUMBERS = st.floats(-1e6, 1e6, width=32)
IDS = st.integers(0, 5)


@settings(max_examples=40, deadline=None)
@given(
    estimator=st.sampled_from(sorted(credit.ESTIMATORS)),
    weight=st.sampled_from(["token", "action"]),
    junk=st.lists(st.tuples(NUMBERS, NUMBERS, IDS, IDS), min_size=2, max_size=2),
)
def test_values_of_masked_actions_change_no_bit(estimator, weight, junk):
    rng = np.random.default_rng(0)
    reward, kl = rng.random(6), rng.random((6, 3))
    group, kind = np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 0, 1, 0, 1])
    mask = array([[1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]])

    def run(rows):
        r, k, g, t = reward.copy(), kl.copy(), group.copy(), kind.copy()
        for i, row in zip((2, 4), rows, strict=True):
            r[i], k[i], g[i], t[i] = row
        return np.asarray(
            advantages(
                array(r),
                array(k),
                mask,
                g.astype(np.int32),
                t.astype(np.int32),
                estimator=estimator,
                weight=weight,
                beta=0.01,
            )
        )

    np.testing.assert_array_equal(run(junk), run([(0, 0, 0, 0)] * 2))
