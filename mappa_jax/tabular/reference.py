"""The two ends of a task's scale: the best constant, and strong models.

Importing this module imports pandas; scikit-learn is imported on need.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from mappa_jax.tabular.metrics import Metric, is_one_hot

_TREES = 60
_CATEGORIES = 20  # a text column with more of them is left out
_MARGIN = 0.02  # of the way from the baseline to perfection


def constant_predictions(
    metric: Metric, train_NxM: np.ndarray, rows: int
) -> np.ndarray:
    """[rows, M] of the metric's best constant for each column of the training truth."""
    row = [metric.constant(column) for column in train_NxM.T]
    dtype = object if metric.predicts in ("text", "ranking") else None
    return np.array([row] * rows, dtype)


def reference_value(
    metric: Metric,
    features: tuple[pd.DataFrame, pd.DataFrame],
    truth: tuple[np.ndarray, np.ndarray],
    baseline: float,
    seed: int,
) -> float | None:
    """The best that a linear model, a forest and boosted trees reach on the test rows.

    The best is chosen on the test rows themselves, as the best entry of a leaderboard
    is: it stands for what can be had, not for an estimate of one model.

    Args:
      metric: one that predicts classes, probabilities, numbers or rankings.
      features: of the training rows and of the test rows.
      truth: [rows, targets] of both.
      baseline: the value of the best constant.
      seed: of the models.

    Returns:
      None where no model gets 2% of the way from the baseline to a perfect value: the
      data then hold nothing to learn, and a gap relative to it would be noise.
    """
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    train, test = _numeric(*features)
    # Small tables: threads would wait for one another, and sum in another order.
    with threadpool_limits(1):
        values = [
            metric.function(truth[1], predicted)
            for predicted in _predictions(metric, train, truth[0], test, seed)
        ]
    best = (max if metric.larger_is_better else min)(values)
    gone = (best - baseline) / (metric.best - baseline)
    return best if gone > _MARGIN else None


def _numeric(train: pd.DataFrame, test: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Both tables as numbers: dates as days, month and weekday, text as indicators,
    holes as the training median beside an indicator."""
    columns = [c for c in train.columns if c in test.columns]
    both = pd.concat([train[columns], test[columns]], ignore_index=True)
    parts = [_encoded(both[name], name) for name in columns]
    table = pd.concat([part for part in parts if part is not None], axis=1)
    holes = table.isna()
    table = table.fillna(table.iloc[: len(train)].median())
    some = holes.loc[:, holes.any()]
    values = np.hstack([table.to_numpy(float), some.to_numpy(float)])
    return values[: len(train)], values[len(train) :]


def _encoded(column: pd.Series, name: str) -> pd.DataFrame | None:
    if pd.api.types.is_numeric_dtype(column):
        return column.astype(float).to_frame(name)
    dates = pd.to_datetime(column, format="%Y-%m-%d", errors="coerce")
    if dates.notna().any():
        days = (dates - dates.min()).dt.days
        return pd.DataFrame(
            {
                f"{name}/day": days,
                f"{name}/month": dates.dt.month,
                f"{name}/weekday": dates.dt.day_of_week,
            }
        )
    if column.nunique() > _CATEGORIES:
        return None
    return pd.get_dummies(column, prefix=name, dtype=float)


def _predictions(
    metric: Metric, train: np.ndarray, truth: np.ndarray, test: np.ndarray, seed: int
) -> Iterator[np.ndarray]:
    """The test predictions of each model, as the metric takes them."""
    if metric.predicts == "number":
        for model in _regressors(seed):
            yield _numbers(model, metric, train, truth, test)
        return
    one_hot = metric.predicts == "probability" and is_one_hot(truth)
    targets = truth.argmax(axis=1)[:, None] if one_hot else truth
    if metric.predicts == "ranking":
        names, targets = np.unique(truth[:, 0], return_inverse=True)
        targets = targets[:, None]
    for model in _classifiers(seed):
        fitted = [model.fit(train, column) for column in targets.T]
        if metric.predicts == "class":
            columns = [one.predict(test) for one in fitted]
            yield np.stack(columns, axis=1)
        elif metric.predicts == "ranking":
            order = np.argsort(-fitted[0].predict_proba(test), axis=1, kind="stable")
            rows = [[" ".join(names[row])] for row in order]
            yield np.array(rows, object)
        elif one_hot:
            yield fitted[0].predict_proba(test)
        else:
            columns = [one.predict_proba(test)[:, 1] for one in fitted]
            yield np.stack(columns, axis=1)


def _numbers(
    model: Any, metric: Metric, train: np.ndarray, truth: np.ndarray, test: np.ndarray
) -> np.ndarray:
    logs = metric.name == "rmsle"  # its errors are of logarithms: learn those
    columns = []
    for column in truth.T:
        model.fit(train, np.log1p(column) if logs else column)
        raw = model.predict(test)
        columns.append(np.expm1(np.maximum(raw, 0.0)) if logs else raw)
    return np.stack(columns, axis=1)


def _regressors(seed: int) -> list[Any]:
    from sklearn.ensemble import (
        HistGradientBoostingRegressor,
        RandomForestRegressor,
    )
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return [
        make_pipeline(StandardScaler(), Ridge(1.0)),
        RandomForestRegressor(_TREES, random_state=seed),
        HistGradientBoostingRegressor(max_iter=_TREES, random_state=seed),
    ]


def _classifiers(seed: int) -> list[Any]:
    from sklearn.ensemble import (
        HistGradientBoostingClassifier,
        RandomForestClassifier,
    )
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return [
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        RandomForestClassifier(
            _TREES, class_weight="balanced", random_state=seed, min_samples_leaf=2
        ),
        HistGradientBoostingClassifier(max_iter=_TREES, random_state=seed),
    ]
