"""The numbers of a judge's health, on judges whose faults are known."""

import dataclasses

import numpy as np
import pytest

from mappa_jax.judges import health
from mappa_jax.judges.health import Scored


def rows(count=400, agent="a", seed=0, **changes):
    """Scores 5 with noise; `changes` are functions of (kind, length, outcome)."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        kind = ("regression", "classification")[int(rng.integers(2))]
        length, outcome = int(rng.integers(20, 220)), float(rng.integers(2))
        score = 5 + rng.normal(0, 0.5)
        for change in changes.values():
            score += change(kind, length, outcome)
        out.append(Scored(agent, kind, length, float(np.clip(score, 0, 10)), outcome))
    return out


def test_a_fair_judge_gives_no_cause_for_words():
    report = health.health(rows(outcome=lambda k, n, o: o))
    assert health.warnings(report) == []
    assert report["a"]["actions"] == 400
    assert report["a"]["outcome"]["auc"] > 0.8


def test_an_offset_between_kinds_is_measured_and_named():
    """The bias of arXiv 2601.23228: regression half a point to two above."""
    biased = rows(bias=lambda kind, n, o: 1.2 * (kind == "regression"))
    report = health.health(biased)
    offsets = {g["name"]: g["offset"] for g in report["a"]["kinds"]}
    assert offsets["regression"] == pytest.approx(0.6, abs=0.1)
    assert offsets["classification"] == pytest.approx(-0.6, abs=0.1)
    said = health.warnings(report)
    assert any("'regression'" in s and "above" in s and "debias" in s for s in said)


def test_a_liking_for_length_is_measured_and_named():
    report = health.health(rows(long=lambda k, length, o: length / 100))
    assert report["a"]["slope"] == pytest.approx(1.0, abs=0.1)
    assert 0 < report["a"]["slope_error"] < 0.1
    bins = report["a"]["lengths"]
    assert len(bins) == 4 and sum(b["actions"] for b in bins) == 400
    assert any("length" in line for line in health.warnings(report))


def test_a_slope_counts_over_the_lengths_that_occur():
    """A tenth of a point per 100 tokens is nothing over 200, and 3.5 over 3500."""
    rng = np.random.default_rng(0)

    def scored(longest):
        lengths = rng.integers(1, longest, 1000)
        noise = rng.normal(0, 0.3, 1000)
        return [
            Scored("a", "k", int(n), 4 + n / 1000 + e, None)
            for n, e in zip(lengths, noise, strict=True)
        ]

    assert health.warnings(health.health(scored(200))) == []
    (said,) = health.warnings(health.health(scored(3500)))
    assert "length pays" in said and "+3." in said


@pytest.mark.parametrize(("gap", "named"), [(0.1, 0), (0.5, 1), (1.8, 1)])
def test_kinds_are_compared_with_each_other(gap, named):
    biased = rows(bias=lambda kind, n, o: gap * (kind == "regression"))
    assert len(about_kinds(biased)) == named


def about_kinds(scored):
    said = health.warnings(health.health(scored))
    return [line for line in said if "of kind" in line]


def test_one_kind_among_many_is_named_once():
    """Against the lowest; two kinds of few actions are not told apart."""
    few = [Scored("a", kind, 50, score, None) for kind, score in [("x", 9), ("y", 1)]]
    biased = rows(bias=lambda kind, n, o: 1.0 * (kind == "regression"))
    (said,) = about_kinds(biased + few)
    assert "'regression'" in said and "'classification'" in said


def test_scores_against_the_outcome_are_named():
    report = health.health(rows(against=lambda k, n, outcome: -outcome))
    assert report["a"]["outcome"]["auc"] < 0.2
    assert report["a"]["outcome"]["correlation"] < -0.5
    assert any("AUC" in line for line in health.warnings(report))


def test_agents_are_told_apart():
    low = rows(agent="b", low=lambda k, n, o: -3)
    report = health.health(rows() + low)
    assert list(report) == ["a", "b"]
    assert report["a"]["mean"] - report["b"]["mean"] == pytest.approx(3, abs=0.2)


def test_scores_at_the_extremes_are_named():
    report = health.health(rows(far=lambda k, n, o: 100.0))
    assert report["a"]["extremes"] == 1.0
    assert any("little to learn" in line for line in health.warnings(report))


def test_two_opinions_are_compared():
    twice = [
        dataclasses.replace(row, again=row.score + 0.5 * (-1) ** i)
        for i, row in enumerate(rows(50))
    ]
    found = health.health(twice + rows(10))["a"]["agreement"]
    assert found["pairs"] == 50
    assert found["gap"] == pytest.approx(0.5)
    assert 0.5 < found["correlation"] < 1


@pytest.mark.parametrize(
    ("scores", "right", "want"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0.0),
        ([2, 2, 2, 2], [0, 1, 0, 1], 0.5),
        ([1, 3, 2, 4], [0, 0, 1, 1], 0.75),
    ],
)
def test_auc_by_hand(scores, right, want):
    got = health.auc(np.asarray(scores, float), np.asarray(right, bool))
    assert got == pytest.approx(want)


def test_an_auc_a_little_below_half_is_chance():
    """The error by hand: sqrt((4 + 6 + 1) / (12 * 4 * 6))."""
    assert health.auc_error(4, 6) == pytest.approx((11 / 288) ** 0.5)
    assert np.isnan(health.auc_error(0, 6))


def test_auc_needs_both():
    assert np.isnan(health.auc(np.ones(3), np.ones(3, bool)))


def test_one_action_is_no_statistic():
    found = health.health(rows(1))["a"]
    assert np.isnan(found["slope"])
    assert found["kinds"][0]["error"] == float("inf")
    assert health.warnings(health.health(rows(1))) == []
