"""What a run does with its judge: forecast, drift, cost."""

import pytest

from mappa_jax.forecast import extrapolate
from mappa_jax.train import judging
from mappa_jax.types import (
    JudgeCall,
    Missing,
    MissingReason,
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
    got = extrapolate([trajectory(one, one), trajectory(one)], 200)
    assert (got.calls, got.tokens) == (300, 300 * 120)
    assert got.usd == pytest.approx(3.0)
    assert "300 calls" in str(got) and "$3.00" in str(got)


def test_what_is_on_record_costs_nothing_more():
    assert extrapolate([trajectory(Verdict(5.0, "r", call(cached=True)))], 10) is None


def test_a_batch_of_verdicts_in_numbers():
    verdicts = [
        Verdict(5.0, "r", call(latency_s=1.0)),
        Verdict(5.0, "r", call(latency_s=3.0, attempts=3), disagreement=2.0),
        Verdict(5.0, "r", call(cached=True)),
        Missing(MissingReason.TIMEOUT, "", call(latency_s=2.0)),
    ]
    found = judging(verdicts)
    assert (found["calls"], found["cached"], found["missing"]) == (4, 1, 1)
    assert found["missing_by"] == {"timeout": 1}
    assert found["retries"] == 2
    assert found["cost"] == pytest.approx(0.03)
    assert found["latency_p50"] == pytest.approx(2.0)
    assert found["disagreement"] == 2.0
