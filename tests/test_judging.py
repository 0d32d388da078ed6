"""What a run does with its judge: forecast, drift, cost."""

import asyncio
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mappa_jax.config import (
    Config,
    JudgeConfig,
    ObjectiveConfig,
    PackingConfig,
    RewardConfig,
)
from mappa_jax.drift import anchor_rounds
from mappa_jax.forecast import extrapolate
from mappa_jax.judges import health
from mappa_jax.judges.base import Meter
from mappa_jax.learning import batch, credit
from mappa_jax.testing import ScriptedJudge, make_action
from mappa_jax.train import _spending, judging
from mappa_jax.types import (
    JudgeCall,
    JudgeRequest,
    Missing,
    MissingReason,
    Role,
    Task,
    Trajectory,
    Verdict,
)


def call(**fields):
    return JudgeCall("x", tokens_in=100, tokens_out=20, cost=0.01, **fields)


def trajectory(*verdicts):
    return Trajectory(Task("t", ""), 1, 0, (), tuple(verdicts))


def test_a_forecast_scales_what_was_tried():
    one = Verdict(5.0, "r", call())
    spent = Meter(calls=3, tokens=360, usd=0.03)
    got = extrapolate([trajectory(one, one), trajectory(one)], spent, 200)
    assert (got.calls, got.tokens) == (300, 300 * 120)
    assert got.usd == pytest.approx(3.0)
    assert "300 calls" in str(got) and "$3.00" in str(got)


def test_what_is_on_record_costs_nothing_more():
    tried = [trajectory(Verdict(5.0, "r", call(cached=True)))]
    assert extrapolate(tried, Meter(), 10) is None


def test_a_batch_of_verdicts_in_numbers():
    verdicts = [
        Verdict(5.0, "r", call(latency_s=1.0)),
        Verdict(5.0, "r", call(latency_s=3.0, attempts=3), disagreement=2.0),
        Verdict(5.0, "r", call(cached=True)),
        Missing(MissingReason.TIMEOUT, "", call(latency_s=2.0)),
    ]
    found = judging(verdicts)
    assert (found["calls"], found["cached"], found["missing"]) == (3, 1, 1)
    assert found["missing_by"] == {"timeout": 1}
    assert found["retries"] == 2
    assert found["cost"] == pytest.approx(0.03)
    assert found["latency_p50"] == pytest.approx(2.0)
    assert found["disagreement"] == 2.0


def test_a_forecast_counts_members_second_opinions_and_anchors():
    """Three members a verdict; 300 actions, a tenth of them twice, and 50 anchors."""
    one = Verdict(5.0, "r", call())
    spent = Meter(calls=9, tokens=900, usd=0.09)
    tried = [trajectory(one, one), trajectory(one)]
    got = extrapolate(tried, spent, 200, duplicates=0.1, anchors=50)
    assert got.calls == pytest.approx(3 * (330 + 50))
    assert got.usd == pytest.approx(0.03 * (330 + 50))
    config = JudgeConfig(anchors=10, anchor_every=5)
    assert [anchor_rounds(config, 0, n) for n in (4, 5, 14)] == [0, 1, 2]
    assert anchor_rounds(config, 5, 14) == 1
    assert anchor_rounds(JudgeConfig(), 0, 100) == 0


def test_an_iteration_costs_what_the_account_says():
    """Duplicates and anchors are in no verdict's call, and are paid for."""
    before = Meter(calls=10, tokens=1000, usd=1.0)
    now = Meter(calls=25, tokens=4000, usd=1.5, most_in_flight=7)
    paid = Config(agents={}, judge=JudgeConfig(provider="gemini"))
    found = _spending(paid, before, now)
    assert (found["calls"], found["tokens"], found["cost"]) == (15, 3000, 0.5)
    assert (found["in_flight"], found["spent"]) == (7, 1.5)
    assert "calls" not in _spending(Config(agents={}), before, now)


TEAM = (Role("a", "agent", "Work."),)
SHAPE = batch.Shape(
    actions=80,
    action_tokens=4,
    packing=PackingConfig(row_tokens=16, row_action_tokens=8, rows=2),
    groups=(batch.GroupShape((0,), frozenset({0}), lanes=1, microbatches=40),),
)


async def judged(judge):
    """Pairs of equal actions, one on a task of either kind, and their verdicts."""
    out = []
    for n in range(40):
        for kind in ("regression", "classification"):
            action = make_action("a", "abcd")
            request = JudgeRequest(TEAM, TEAM[0], f"{kind} {n}", action, 8)
            task = Task(f"{kind}{n}", request.task, metadata={"kind": kind})
            verdict = await judge.score(request)
            out.append(Trajectory(task, 1, 0, (action,), (verdict,)))
    return out


def advantages(trajectories, debias):
    """By trajectory, of its first token."""
    packed = batch.pack(
        trajectories,
        ("a",),
        SHAPE,
        reward=RewardConfig(),
        objective=ObjectiveConfig(),
        actions_per_update=80,
        rng=np.random.default_rng(0),
        debias=debias,
    )
    actions = packed.actions
    found = credit.advantages(
        jnp.asarray(actions.reward[0]),
        jnp.zeros_like(actions.mask[0]),
        jnp.asarray(actions.mask[0]),
        jnp.asarray(actions.group[0]),
        jnp.asarray(actions.kind[0]),
        estimator="reinforce_pp",
        weight="token",
        beta=0.0,
    )
    order = np.random.default_rng(0).permutation(len(trajectories))
    out = np.empty(len(trajectories))
    out[order] = np.asarray(found)[:, 0]
    return out


@pytest.mark.parametrize("bias", [0.5, 1.8])
def test_a_bias_between_kinds_of_task_is_named_and_removed(bias):
    """What arXiv 2601.23228 reports of its judge: regression actions half a point to
    two above equal classification ones, and the agents drifted there."""

    def score(request: JudgeRequest) -> float:
        kind, number = request.task.split()
        return 3.0 + int(number) % 5 * 0.5 + bias * (kind == "regression")

    trajectories = asyncio.run(judged(ScriptedJudge(score)))
    report = health.health(health.scored_actions(trajectories))
    (said,) = health.warnings(report)
    assert "'regression'" in said and "'classification'" in said
    assert f"{bias:.2f} points above" in said and "judge.debias" in said
    figures = health.figures(report)["a"]
    assert figures["offset"]["regression"] == pytest.approx(bias / 2)
    assert figures["offset"]["classification"] == pytest.approx(-bias / 2)

    biased = advantages(trajectories, debias=False)
    assert (biased[::2] - biased[1::2] > 0.3).all()
    fair = advantages(trajectories, debias=True)
    np.testing.assert_allclose(fair[::2], fair[1::2], atol=1e-5)
    assert np.ptp(fair) > 1  # what the judge saw in the actions is still there


def test_figures_that_cannot_be_told_are_left_out():
    one = health.Scored("a", "k", 4, 5.0, None)
    assert health.figures(health.health([one])) == {"a": {"mean": 5.0, "extremes": 0.0}}
    twice = dataclasses.replace(one, again=7.0, outcome=1.0)
    wrong = dataclasses.replace(one, outcome=0.0, score=3.0, length=9)
    third = dataclasses.replace(one, outcome=0.0, score=10.0, length=7)
    found = health.figures(health.health([twice, wrong, third]))["a"]
    assert found["agreement"] == 2.0 and found["auc"] == 0.5
    assert {"mean", "extremes", "slope"} <= set(found)
