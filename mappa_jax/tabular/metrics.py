"""The metrics of modelling competitions, by name.

Every metric is a function of two arrays with one row per row of the test set and one
column per target: `truth_NxM` and `predicted_NxM`. What the numbers in them are is
`Metric.predicts`:

  "class"        class codes 0..C-1, in the order of `sorted_classes`
  "probability"  truth 0 or 1, predictions the probability (or any score) of a 1; one
                 column per class where there are more than two
  "number"       numbers
  "ranking"      truth a class name, predictions class names separated by spaces
  "text"         texts

Where a metric is of one column, several are averaged. scikit-learn is imported inside
the functions, because that takes a second.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np

Kind = Literal["classification", "regression", "extraction"]
Predicts = Literal["class", "probability", "number", "ranking", "text"]
Function = Callable[[np.ndarray, np.ndarray], float]

_INTEGER = re.compile(r"([+-]?)0*([0-9]{1,18})(?:\.0*)?")
_MAP = re.compile(r"map_at_([1-9][0-9]?)")


def _no_flaw(truth: np.ndarray) -> None:
    del truth


@dataclasses.dataclass(frozen=True)
class Metric:
    """One way to compare predictions with the truth.

    Attributes:
      name: as in task files ("roc_auc").
      words: as in a statement ("area under the ROC curve").
      larger_is_better: the direction.
      kind: of the tasks that it is for.
      predicts: what a submission holds; see the module's docstring.
      best: the value of perfect predictions.
      function: (truth_NxM, predicted_NxM) -> value.
      constant: from one column of the training truth to one prediction for every
        row: the best such, or nearly (the median for `medae` and `smape`).
      low: predictions below it are invalid.
      high: predictions above it are invalid.
      flaw: says of a truth for which the metric is not defined why, or None.
    """

    name: str
    words: str
    larger_is_better: bool
    kind: Kind
    predicts: Predicts
    best: float
    function: Function
    constant: Callable[[np.ndarray], Any]
    low: float = -math.inf
    high: float = math.inf
    flaw: Callable[[np.ndarray], str | None] = _no_flaw

    def better(self, one: float, other: float) -> bool:
        """Whether `one` is strictly better than `other`."""
        return one > other if self.larger_is_better else one < other


def find_metric(name: str) -> Metric:
    """The metric of a name: a key of METRICS, an alias, or "map_at_<k>".

    Raises:
      ValueError: there is none.
    """
    name = ALIASES.get(name, name)
    if name in METRICS:
        return METRICS[name]
    ranking = _MAP.fullmatch(name)
    if ranking:
        return _map_at(int(ranking[1]))
    raise ValueError(f"no metric {name!r}; there are {', '.join(METRICS)}")


def flaw_of(metric: Metric, truth_NxM: np.ndarray) -> str | None:
    """Why no submission could be scored against this truth, or None.

    To be asked when a task is made: ROC AUC needs both classes, R2 a target that
    varies.
    """
    if not truth_NxM.size:
        return "it has no rows"
    return metric.flaw(truth_NxM)


def canonical(text: str) -> str:
    """Whole numbers in one spelling: "1.0", "01" and "+1" -> "1"; the rest as it is."""
    whole = _INTEGER.fullmatch(text)
    if whole is None:
        return text
    minus = "-" if whole[1] == "-" and whole[2] != "0" else ""
    return minus + whole[2]


def sorted_classes(values: Iterable[str]) -> tuple[str, ...]:
    """Distinct class names: by value where all are numbers, else by text.

    The last of two is the positive class: "1" of 0 and 1, "yes" of no and yes.
    """
    names = sorted(set(values))
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(names)


def is_one_hot(truth_NxM: np.ndarray) -> bool:
    """Whether the columns are the classes of one target: a single 1 in each row."""
    return truth_NxM.shape[1] > 1 and bool(np.all(truth_NxM.sum(axis=1) == 1))


# --- the functions -------------------------------------------------------------


def _by_column(function: Function) -> Function:
    """The mean over columns of a function of one column."""

    @functools.wraps(function)
    def mean(truth_NxM: np.ndarray, predicted_NxM: np.ndarray) -> float:
        pairs = zip(truth_NxM.T, predicted_NxM.T, strict=True)
        return float(np.mean([function(one, other) for one, other in pairs]))

    return mean


@_by_column
def accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The share of rows that are right."""
    from sklearn.metrics import accuracy_score

    return accuracy_score(truth, predicted)


def _f1(average: str) -> Function:
    """F1 = 2 TP / (2 TP + FP + FN); a class that is never right has 0.

    `average` is scikit-learn's: "binary" is of the class with code 1, "macro" the mean
    over classes, "weighted" likewise by their rows, "micro" of all counts together.
    """

    def f1(truth: np.ndarray, predicted: np.ndarray) -> float:
        from sklearn.metrics import f1_score

        return f1_score(truth, predicted, average=average, zero_division=0.0)

    return _by_column(f1)


@_by_column
def quadratic_weighted_kappa(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Agreement beyond chance, disagreement weighted by its squared distance.

    1 - sum(w O) / sum(w E) with w_ij = (i - j)^2, O the counts of (true, predicted)
    and E their expectation from the margins (Cohen, 1968). Distances are of class
    codes, so that neighbouring grades are 1 apart.
    """
    from sklearn.metrics import cohen_kappa_score

    labels = np.arange(max(truth.max(), predicted.max()) + 1)
    return cohen_kappa_score(truth, predicted, labels=labels, weights="quadratic")


@_by_column
def roc_auc(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The chance that a 1 is scored above a 0, ties counting half.

    With one column per class the mean is the one-versus-rest figure.
    """
    from sklearn.metrics import roc_auc_score

    return roc_auc_score(truth, predicted)


def log_loss(truth_NxM: np.ndarray, predicted_NxM: np.ndarray) -> float:
    """-mean log of the probability given to what was true, in nats.

    One column: of 0 and 1. One column per class of one target: rows are first scaled
    to sum to 1, as Kaggle does. Several independent columns: their mean. scikit-learn
    keeps probabilities away from 0 and 1 by the machine's epsilon.
    """
    from sklearn.metrics import log_loss as of_classes

    if is_one_hot(truth_NxM):
        shares_NxM = predicted_NxM / predicted_NxM.sum(axis=1, keepdims=True)
        codes = truth_NxM.argmax(axis=1)
        return float(
            of_classes(codes, shares_NxM, labels=np.arange(truth_NxM.shape[1]))
        )
    return _by_column(lambda t, p: of_classes(t, p, labels=[0, 1]))(
        truth_NxM, predicted_NxM
    )


@_by_column
def normalized_gini(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The Gini coefficient of the truth in the order of the predictions, over its own.

    Rows are sorted by prediction, largest first; the coefficient is the mean over
    rows of (share of the truth so far - share of the rows so far). For a truth of 0
    and 1 the quotient is 2 AUC - 1. Kaggle breaks ties by the order of the rows; here
    tied rows share their truth evenly, so that no order of rows matters.
    """
    return _gini(truth, predicted) / _gini(truth, truth)


def _gini(truth: np.ndarray, predicted: np.ndarray) -> float:
    _, group, sizes = np.unique(-predicted, return_inverse=True, return_counts=True)
    even = np.bincount(group, weights=truth) / sizes
    gained = np.cumsum(even[np.sort(group)]) / truth.sum()
    rows = np.arange(1, len(truth) + 1) / len(truth)
    return float(np.mean(gained - rows))


@_by_column
def rmse(truth: np.ndarray, predicted: np.ndarray) -> float:
    """sqrt(mean (p - t)^2)."""
    from sklearn.metrics import root_mean_squared_error

    return root_mean_squared_error(truth, predicted)


@_by_column
def rmsle(truth: np.ndarray, predicted: np.ndarray) -> float:
    """sqrt(mean (log(1 + p) - log(1 + t))^2); predictions must not be negative."""
    from sklearn.metrics import root_mean_squared_log_error

    return root_mean_squared_log_error(truth, predicted)


@_by_column
def mae(truth: np.ndarray, predicted: np.ndarray) -> float:
    """mean |p - t|."""
    from sklearn.metrics import mean_absolute_error

    return mean_absolute_error(truth, predicted)


@_by_column
def medae(truth: np.ndarray, predicted: np.ndarray) -> float:
    """median |p - t|."""
    from sklearn.metrics import median_absolute_error

    return median_absolute_error(truth, predicted)


@_by_column
def r2(truth: np.ndarray, predicted: np.ndarray) -> float:
    """1 - sum (p - t)^2 / sum (t - mean t)^2."""
    from sklearn.metrics import r2_score

    return r2_score(truth, predicted)


@_by_column
def smape(truth: np.ndarray, predicted: np.ndarray) -> float:
    """100 mean 2|p - t| / (|p| + |t|), in 0..200; 0 where both are 0, as on Kaggle."""
    size = np.abs(truth) + np.abs(predicted) + 0.0
    apart = 2.0 * np.abs(predicted - truth)
    return 100.0 * np.mean(np.divide(apart, size, np.zeros_like(size), where=size > 0))


@_by_column
def pearson(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The correlation of two columns; 0 where the predictions are all the same."""
    return _correlation(truth, predicted)


@_by_column
def spearman(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The correlation of ranks, ties sharing their mean rank; 0 as for `pearson`."""
    from scipy.stats import rankdata

    return _correlation(rankdata(truth), rankdata(predicted))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    parts = []
    for values in (one, other):
        centred = values - values.mean()
        centred = centred / np.abs(centred).max()  # else squares may underflow
        parts.append(centred / np.linalg.norm(centred))
    return float(np.clip(parts[0] @ parts[1], -1.0, 1.0))


@_by_column
def jaccard(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over rows of |A & B| / |A | B|, A and B the words of the two texts.

    Words are split at white space, without case; two texts without words agree.
    """
    scores = []
    for one, other in zip(truth, predicted, strict=True):
        words, found = set(one.lower().split()), set(other.lower().split())
        either = words | found
        scores.append(len(words & found) / len(either) if either else 1.0)
    return float(np.mean(scores))


def _map_at(k: int) -> Metric:
    """Mean over rows of 1 / rank of the right class among the first k named, else 0.

    That is the mean average precision at k where one class is right; a class named
    again takes no second place.
    """

    @_by_column
    def function(truth: np.ndarray, predicted: np.ndarray) -> float:
        gains = []
        for right, text in zip(truth, predicted, strict=True):
            named = list(dict.fromkeys(text.split()))[:k]
            gains.append(1.0 / (named.index(right) + 1) if right in named else 0.0)
        return float(np.mean(gains))

    def most_frequent(column: np.ndarray) -> str:
        names, counts = np.unique(column, return_counts=True)
        return " ".join(names[np.argsort(-counts, kind="stable")][:k])

    return Metric(
        name=f"map_at_{k}",
        words=f"mean average precision of the first {k} classes named (MAP@{k})",
        larger_is_better=True,
        kind="classification",
        predicts="ranking",
        best=1.0,
        function=function,
        constant=most_frequent,
    )


# --- what a truth must be ------------------------------------------------------


def _varies(truth: np.ndarray) -> str | None:
    columns = [c for c in range(truth.shape[1]) if np.ptp(truth[:, c]) == 0]
    return f"target column {columns[0] + 1} has one value only" if columns else None


def _two_classes(truth: np.ndarray) -> str | None:
    if set(np.unique(truth)) <= {0, 1}:
        return _varies(truth)
    return "its targets are not all 0 or 1 (name one column per class)"


def _zeros_and_ones(truth: np.ndarray) -> str | None:
    return _two_classes(truth) if set(np.unique(truth)) - {0, 1} else None


def _not_negative(truth: np.ndarray) -> str | None:
    return "it has negative targets" if truth.min() < 0 else None


def _not_negative_and_varies(truth: np.ndarray) -> str | None:
    return _not_negative(truth) or _varies(truth)


# --- predictions that are the same for every row -------------------------------


def _most_frequent(column: np.ndarray) -> Any:
    values, counts = np.unique(column, return_counts=True)
    return values[counts.argmax()]


def _mean_log(column: np.ndarray) -> float:
    return float(np.expm1(np.log1p(column).mean()))


def _zero(column: np.ndarray) -> float:
    del column
    return 0.0


def _positive(column: np.ndarray) -> int:
    del column
    return 1


def _no_text(column: np.ndarray) -> str:
    del column
    return ""


# --- the table -----------------------------------------------------------------

_CLASS: dict[str, Any] = dict(
    kind="classification", predicts="class", larger_is_better=True, best=1.0
)
_SCORE = _CLASS | dict(predicts="probability")
_ERROR: dict[str, Any] = dict(
    kind="regression", predicts="number", larger_is_better=False, best=0.0
)
_FIT = _ERROR | dict(larger_is_better=True, best=1.0)

_ALL = (
    Metric(
        "accuracy",
        "classification accuracy, the share of rows that are right",
        function=accuracy,
        constant=_most_frequent,
        **_CLASS,
    ),
    Metric(
        "f1",
        "F1 of the positive class",
        function=_f1("binary"),
        constant=_positive,
        flaw=_two_classes,
        **_CLASS,
    ),
    Metric(
        "f1_macro",
        "macro-averaged F1, the mean of the F1 of every class",
        function=_f1("macro"),
        constant=_most_frequent,
        **_CLASS,
    ),
    Metric(
        "f1_micro",
        "micro-averaged F1",
        function=_f1("micro"),
        constant=_most_frequent,
        **_CLASS,
    ),
    Metric(
        "f1_weighted",
        "weighted F1, the mean of the F1 of every class by its number of rows",
        function=_f1("weighted"),
        constant=_most_frequent,
        **_CLASS,
    ),
    Metric(
        "quadratic_weighted_kappa",
        "quadratic weighted kappa",
        function=quadratic_weighted_kappa,
        constant=_most_frequent,
        flaw=_varies,
        **_CLASS,
    ),
    Metric(
        "roc_auc",
        "area under the ROC curve (AUC)",
        function=roc_auc,
        constant=np.mean,
        flaw=_two_classes,
        **_SCORE,
    ),
    Metric(
        "log_loss",
        "log loss of the predicted probabilities",
        function=log_loss,
        constant=np.mean,
        low=0.0,
        high=1.0,
        flaw=_zeros_and_ones,
        **_SCORE | dict(larger_is_better=False, best=0.0),
    ),
    Metric(
        "normalized_gini",
        "normalized Gini coefficient",
        function=normalized_gini,
        constant=np.mean,
        flaw=_not_negative_and_varies,
        **_SCORE,
    ),
    Metric(
        "rmse",
        "root mean squared error (RMSE)",
        function=rmse,
        constant=np.mean,
        **_ERROR,
    ),
    Metric(
        "mcrmse",
        "mean over the target columns of the root mean squared error (MCRMSE)",
        function=rmse,
        constant=np.mean,
        **_ERROR,
    ),
    Metric(
        "rmsle",
        "root mean squared logarithmic error (RMSLE)",
        function=rmsle,
        constant=_mean_log,
        low=0.0,
        flaw=_not_negative,
        **_ERROR,
    ),
    Metric(
        "mae",
        "mean absolute error (MAE)",
        function=mae,
        constant=np.median,
        **_ERROR,
    ),
    Metric(
        "medae",
        "median absolute error (MedAE)",
        function=medae,
        constant=np.median,
        **_ERROR,
    ),
    Metric(
        "smape",
        "symmetric mean absolute percentage error (SMAPE)",
        function=smape,
        constant=np.median,
        **_ERROR,
    ),
    Metric(
        "r2",
        "coefficient of determination (R2)",
        function=r2,
        constant=np.mean,
        flaw=_varies,
        **_FIT,
    ),
    Metric(
        "pearson",
        "Pearson correlation coefficient",
        function=pearson,
        constant=_zero,
        flaw=_varies,
        **_FIT,
    ),
    Metric(
        "spearman",
        "Spearman rank correlation coefficient",
        function=spearman,
        constant=_zero,
        flaw=_varies,
        **_FIT,
    ),
    Metric(
        "jaccard",
        "word-level Jaccard score",
        larger_is_better=True,
        kind="extraction",
        predicts="text",
        best=1.0,
        function=jaccard,
        constant=_no_text,
    ),
    _map_at(3),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
ALIASES: Mapping[str, str] = {"qwk": "quadratic_weighted_kappa"}
