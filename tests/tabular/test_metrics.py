"""Every metric against numbers worked out by hand."""

import math

import numpy as np
import pytest

from mappa_jax.tabular.metrics import (
    METRICS,
    canonical,
    find_metric,
    flaw_of,
    is_one_hot,
    sorted_classes,
)

E1 = math.e - 1


def _columns(values):
    texts = any(isinstance(value, str) for value in values)
    array = np.array(values, object if texts else None)
    return array[:, None] if array.ndim == 1 else array


def _value(name, truth, predicted):
    return find_metric(name).function(_columns(truth), _columns(predicted))


@pytest.mark.parametrize(
    "name, truth, predicted, expected",
    [
        # three of four
        ("accuracy", [0, 1, 2, 1], [0, 2, 2, 1], 0.75),
        # columns 3/4 and 1/4
        ("accuracy", [[0, 0]] * 4, [[0, 1], [0, 1], [0, 1], [1, 0]], 0.5),
        # 2 true positives, 1 false positive, 1 false negative: 4 / 6
        ("f1", [1, 1, 0, 0, 1], [1, 0, 1, 0, 1], 2 / 3),
        # class 0: 2 / 3; class 1: 2 / 4; class 2, never named: 0
        ("f1_macro", [0, 0, 1, 2], [0, 1, 1, 1], (2 / 3 + 1 / 2) / 3),
        # the same by rows: (2 * 2/3 + 1 * 1/2 + 1 * 0) / 4
        ("f1_weighted", [0, 0, 1, 2], [0, 1, 1, 1], (4 / 3 + 1 / 2) / 4),
        # of all counts: 2 right, 2 wrong of both sorts: 4 / 8
        ("f1_micro", [0, 0, 1, 2], [0, 1, 1, 1], 0.5),
        # observed 0 + 1 + 0 + 1; expected with the margins (1, 1, 2) of both:
        # (1 * (1 + 2 * 4) + 1 * (1 + 2 * 1) + 2 * (4 + 1)) / 4 = 22 / 4
        ("quadratic_weighted_kappa", [0, 1, 2, 2], [0, 2, 2, 1], 1 - 2 / 5.5),
        # a grade that occurs nowhere keeps its place: observed 4, expected
        # (1 * (1 * 4) + 1 * (1 * 4)) / 2 = 4
        ("qwk", [0, 2], [2, 2], 0.0),
        # pairs: 0.4 over 0.1 and level with 0.4, 0.8 over both: 3.5 of 4
        ("roc_auc", [0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8], 0.875),
        # columns 1 and 0
        ("roc_auc", [[0, 0], [1, 1]], [[0.1, 0.9], [0.9, 0.1]], 0.5),
        # one versus rest: class 0 has 2 of 2 pairs, 1 has 1 of 2, 2 has 0 of 2
        (
            "roc_auc",
            [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
            [[0.9, 0.1, 0.0], [0.1, 0.3, 0.6], [0.2, 0.7, 0.0]],
            (1.0 + 0.5 + 0.25) / 3,
        ),
        ("log_loss", [1, 0], [0.8, 0.4], -(math.log(0.8) + math.log(0.6)) / 2),
        # the second row is scaled to 1/4, 1/4, 1/2
        (
            "log_loss",
            [[1, 0, 0], [0, 0, 1]],
            [[0.5, 0.25, 0.25], [0.2, 0.2, 0.4]],
            math.log(2),
        ),
        # two questions, not two classes: the mean of the columns
        (
            "log_loss",
            [[1, 1], [0, 0]],
            [[0.8, 0.5], [0.4, 0.5]],
            (-(math.log(0.8) + math.log(0.6)) / 2 + math.log(2)) / 2,
        ),
        # AUC 3 of 4
        ("normalized_gini", [1, 0, 1, 0], [0.8, 0.6, 0.4, 0.2], 0.5),
        # tied rows share: AUC 1/2, whatever the order of the rows
        ("normalized_gini", [1, 0, 1, 0], [1, 1, 1, 1], 0.0),
        # by prediction 2, 1, 3: shares 1/3, 1/2, 1 less 1/3, 2/3, 1, mean -1/18; by
        # itself 3, 2, 1: 1/2, 5/6, 1 less the same, mean 1/9
        ("normalized_gini", [3, 1, 2], [0.1, 0.2, 0.3], -0.5),
        ("rmse", [1, 2, 3], [1, 4, 3], math.sqrt(4 / 3)),
        ("rmse", [[0, 0], [0, 0]], [[3, 1], [3, 1]], 2.0),
        # columns sqrt(2 / 2) and sqrt(18 / 2)
        ("mcrmse", [[0, 0], [0, 0]], [[1, 3], [1, 3]], 2.0),
        # log(1 + .): 1 against 0, 1 against 1
        ("rmsle", [0, E1], [E1, E1], math.sqrt(0.5)),
        ("rmsle", [[0, 0], [0, 0]], [[E1, 0], [E1, 0]], 0.5),
        ("mae", [0, 0, 0], [1, -2, 6], 3.0),
        ("medae", [0, 0, 0], [1, -2, 6], 2.0),
        ("r2", [1, 2, 3], [1, 2, 5], -1.0),
        # 0 / 0 counts 0; 2 * 200 / 400
        ("smape", [0, 100], [0, 300], 50.0),
        ("smape", [0, 1], [5, -1], 200.0),
        ("pearson", [1, 2, 3], [1, 3, 2], 0.5),
        ("pearson", [1, 2, 3], [7, 7, 7], 0.0),
        # ranks 1, 3, 2, 4: 1 - 6 * 2 / (4 * 15)
        ("spearman", [1, 2, 3, 4], [10, 100, 20, 1000], 0.8),
        # ranks 1.5, 1.5, 3: 1.5 / sqrt(2 * 1.5)
        ("spearman", [1, 2, 3], [5, 5, 9], 1.5 / math.sqrt(3)),
        ("spearman", [[1, 1], [2, 2]], [[1, 3], [2, 3]], 0.5),
        # 2 of 3 words; none of 2; both empty
        ("jaccard", ["good day sir", "a", ""], ["Good  day", "b", " "], 5 / 9),
        ("map_at_3", ["a", "b", "c", "d"], ["a b c"] * 4, (1 + 1 / 2 + 1 / 3) / 4),
        # a class named twice takes one place; the fourth is too late
        ("map_at_3", ["b", "d"], ["a a b", "a b c d"], 0.25),
        ("map_at_1", ["a", "b"], ["a b", "a b"], 0.5),
    ],
)
def test_worked_examples(name, truth, predicted, expected):
    assert _value(name, truth, predicted) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_perfect_predictions_have_the_best_value(name):
    metric = METRICS[name]
    truth = {
        "text": ["two words", "one"],
        "ranking": ["a", "b"],
        "number": [1.0, 3.0, 2.0],
        "class": [0, 1, 1],
        "probability": [0, 1, 1],
    }[metric.predicts]
    best = metric.function(_columns(truth), _columns(truth))
    assert best == pytest.approx(metric.best, abs=1e-12)
    assert metric.better(metric.best, metric.best - 1) is metric.larger_is_better


@pytest.mark.parametrize("name", sorted({*METRICS} - {"jaccard", "medae", "smape"}))
def test_the_constant_is_the_best_of_constants(name):
    metric = METRICS[name]
    rng = np.random.default_rng(0)
    column, others = {
        "ranking": (["b", "a", "b", "c", "c", "b", "d"], ["a b c", "c b a", "d c b"]),
        "number": (rng.gamma(2.0, size=31), rng.gamma(2.0, size=40)),
        "class": ([1, 0, 1, 1, 0], [0, 1]),
        "probability": ([1, 0, 1, 1, 0], rng.random(20)),
    }[metric.predicts]
    truth = _columns(list(column))

    def value(constant):
        dtype = object if isinstance(constant, str) else None
        return metric.function(truth, np.array([[constant]] * len(truth), dtype))

    best = value(metric.constant(truth[:, 0]))
    assert math.isfinite(best)
    for other in others:
        assert not metric.better(value(other), best + 1e-9)


def test_a_metric_is_found_by_alias_and_by_its_k():
    assert find_metric("qwk").name == "quadratic_weighted_kappa"
    assert find_metric("map_at_5").name == "map_at_5"
    for unknown in ("map_at_0", "AUC", ""):
        with pytest.raises(ValueError, match="no metric .*; there are accuracy, f1,"):
            find_metric(unknown)


@pytest.mark.parametrize(
    "name, truth, reason",
    [
        ("roc_auc", [1, 1, 1], "one value only"),
        ("roc_auc", [[0, 1], [1, 1]], "target column 2 has one value only"),
        ("roc_auc", [0, 1, 2], "not all 0 or 1"),
        ("log_loss", [0, 2], "not all 0 or 1"),
        ("f1", [0, 1, 2], "not all 0 or 1"),
        ("qwk", [2, 2], "one value only"),
        ("r2", [3.0, 3.0], "one value only"),
        ("spearman", [3.0, 3.0], "one value only"),
        ("rmsle", [-1.0, 3.0], "negative"),
        ("normalized_gini", [-1.0, 3.0], "negative"),
        ("rmse", [], "no rows"),
    ],
)
def test_a_truth_for_which_a_metric_is_not_defined(name, truth, reason):
    assert reason in flaw_of(find_metric(name), _columns(truth))


def test_other_truths_have_no_flaw():
    assert flaw_of(find_metric("log_loss"), _columns([1, 1])) is None
    assert flaw_of(find_metric("accuracy"), _columns([1, 1])) is None
    assert flaw_of(find_metric("rmse"), _columns([3.0, 3.0])) is None


def test_extreme_numbers_stay_finite():
    truth, huge = _columns([1.0, 2.0, 3.0]), _columns([1e100, -1e100, 1e-320])
    for metric in METRICS.values():
        if metric.predicts == "number" and metric.low < 0:
            assert math.isfinite(metric.function(truth, huge)), metric.name
    tiny = _columns([1e-320, 2e-320, 3e-320])
    assert find_metric("pearson").function(truth, tiny) == pytest.approx(1.0)


def test_spellings_of_numbers():
    same = {"1": ["1", "1.0", "01", "+1", "1."], "0": ["-0", "00", "0.0"]}
    for plain, spellings in same.items():
        assert {canonical(text) for text in spellings} == {plain}
    assert canonical("-07") == "-7"
    for other in ("1.5", "1e0", "a1", "", "9" * 30, "\u0661"):
        assert canonical(other) == other


def test_classes_are_sorted_by_value_where_they_have_one():
    assert sorted_classes(["10", "9", "9"]) == ("9", "10")
    assert sorted_classes(["yes", "no", "10"]) == ("10", "no", "yes")


def test_one_hot():
    assert is_one_hot(np.eye(3))
    assert not is_one_hot(np.array([[1, 1], [0, 0]]))
    assert not is_one_hot(np.ones((2, 1)))
