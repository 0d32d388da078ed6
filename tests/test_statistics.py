"""Averages, pass@k and intervals against numbers worked out by hand."""

import itertools

import numpy as np
import pytest

from mappa_jax import statistics
from mappa_jax.types import Outcome, Task, Trajectory


def test_pass_at_k_equals_the_share_of_subsets_with_a_right_sample():
    n, k = 6, 3
    for c in range(n + 1):
        samples = [True] * c + [False] * (n - c)
        subsets = list(itertools.combinations(samples, k))
        share = sum(map(any, subsets)) / len(subsets)
        assert statistics.pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_by_hand():
    # 1 - C(3, 2) / C(4, 2) = 1 - 3 / 6
    np.testing.assert_allclose(statistics.pass_at_k(4, [0, 1, 3], 2), [0, 0.5, 1])
    # k = 1 is the plain share; large n must not overflow
    assert statistics.pass_at_k(2000, 500, 1) == pytest.approx(0.25)


@pytest.mark.parametrize("n, c, k", [(4, 1, 5), (4, 5, 1), (4, -1, 1), (4, 1, 0)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError):
        statistics.pass_at_k(n, c, k)


def test_the_interval_has_the_width_of_theory():
    values = np.array([0.0, 1.0] * 200)
    low, high = statistics.bootstrap_interval(values, 4000, seed=0)
    half = 1.96 * 0.5 / np.sqrt(400)
    assert low == pytest.approx(0.5 - half, abs=0.005)
    assert high == pytest.approx(0.5 + half, abs=0.005)
    narrow = statistics.bootstrap_interval(values, 4000, seed=0, level=0.5)
    assert low < narrow[0] < 0.5 < narrow[1] < high


def test_the_interval_is_a_function_of_its_seed():
    values = np.linspace(0, 1, 17)
    one, again, other = (
        statistics.bootstrap_interval(values, 50, seed=s) for s in (1, 1, 2)
    )
    assert one == again != other


def test_the_interval_of_equal_values_is_a_point():
    assert statistics.bootstrap_interval([0.25] * 8, 100, seed=0) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[], [np.inf, 1.0]])
def test_the_interval_refuses_nothing_and_infinity(values):
    with pytest.raises(ValueError):
        statistics.bootstrap_interval(values, 10, seed=0)


def _trajectory(source, identity, score):
    outcome = None if score is None else Outcome(score)
    return Trajectory(Task(identity, "?", source=source), -1, 0, (), outcome=outcome)


def test_summary_by_source_leaves_ungraded_samples_out():
    trajectories = [
        _trajectory("aime", "1", 1.0),
        _trajectory("aime", "2", 0.0),
        _trajectory("amc", "1", 0.5),
        _trajectory("aime", "1", 0.0),
        _trajectory("aime", "2", None),
        _trajectory("amc", "1", 0.5),
    ]
    scores = statistics.scores_by_source(trajectories)
    assert scores == {"aime": [[1.0, 0.0], [0.0]], "amc": [[0.5, 0.5]]}
    summary = statistics.summarise(scores, k=2, resamples=200, seed=0)
    aime = summary["aime"]
    assert (aime["value"], aime["problems"], aime["samples"]) == (0.25, 2, 3)
    assert (aime["low"], aime["high"]) == (0.0, 0.5)
    # Problem 2 has one sample only; partial credit is no pass.
    assert aime["pass"] == {"value": 1.0, "low": 1.0, "high": 1.0, "problems": 1}
    assert summary["amc"]["value"] == 0.5
    assert summary["amc"]["pass"]["value"] == 0.0


def test_summary_without_enough_samples_has_no_pass_rate():
    summary = statistics.summarise({"aime": [[1.0]]}, k=2, resamples=10, seed=0)
    assert "pass" not in summary["aime"]


def test_summary_refuses_a_source_without_scores():
    with pytest.raises(ValueError):
        statistics.summarise({"aime": []}, k=1, resamples=10, seed=0)


def quality_of(kind, identity, score=1.0, **quality):
    task = Task(identity, "p", source="s", metadata={"kind": kind})
    outcome = None if score is None else Outcome(score, quality=quality)
    return Trajectory(task=task, step=-1, sample=0, actions=(), outcome=outcome)


def test_quality_is_summed_up_by_kind_of_task():
    runs = [
        quality_of("classification", "a", accuracy=0.8, gap=0.5),
        quality_of("classification", "a", accuracy=0.6, gap=0.1),
        quality_of("classification", "b", 0.0, gap=0.0),
        quality_of("regression", "c", rmse=3.0),
        quality_of("regression", "d", None),
    ]
    found = statistics.quality_by_kind(runs, 200, 0)
    assert [*found] == ["classification", "regression"]
    told = found["classification"]
    assert told["problems"] == 2
    assert told["success"]["value"] == pytest.approx(0.5)  # (1 + 0) / 2 problems
    assert told["accuracy"]["value"] == pytest.approx(0.7)  # a alone has it
    assert told["gap"]["value"] == pytest.approx(0.15)  # (0.3 + 0) / 2
    assert told["gap"]["low"] == 0.0 and told["gap"]["high"] == pytest.approx(0.3)
    assert found["regression"] == {
        "problems": 1,
        "success": {"value": 1.0, "low": 1.0, "high": 1.0},
        "rmse": {"value": 3.0, "low": 3.0, "high": 3.0},
    }


def test_where_nothing_tells_of_quality_there_are_no_kinds():
    assert statistics.quality_by_kind([quality_of("k", "a")], 200, 0) == {}


def answered(problem, *answers, source="s"):
    """Trajectories of a problem whose right answer is "4"."""
    return [
        Trajectory(
            task=Task(id=problem, prompt="", source=source),
            step=-1,
            sample=i,
            actions=(),
            verdicts=(),
            outcome=Outcome(float(answer == "4"), answer),
        )
        for i, answer in enumerate(answers)
    ]


def test_the_answer_that_most_gave_counts():
    tried = [
        *answered("right", "4", "5", " 4"[1:], None),
        *answered("wrong", "5", "5", "4"),
        *answered("tie", "4", "5"),
        *answered("silent", None, None),
        *answered("elsewhere", None, source="files"),
    ]
    assert statistics.majority_by_source(tried) == {"s": [1.0, 0.0, 0.5, 0.0]}
