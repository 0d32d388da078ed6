"""Tables to predict: made to order, or shipped with scikit-learn.

A recipe is a function of a random generator and a level; a shipped set gives one table
for each metric that suits it. `tabular_tasks` makes tasks of both. Importing this
module imports pandas; scikit-learn is imported inside the functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

_DECIMALS = 4
_MEASURES = (
    "pressure flow depth speed weight length width height angle load torque voltage "
    "current humidity light noise salinity acidity density hardness porosity moisture "
    "drift lag slope strain charge signal phase gain decay spread stock visits clicks"
).split()
_CATEGORIES = {
    "colour": "amber blue green grey red teal violet white".split(),
    "region": "coast delta forest hills lowland north plateau valley".split(),
    "material": "brass clay copper glass oak slate steel wool".split(),
    "shift": "dawn day dusk night".split(),
    "grade_of_road": "gravel lane motorway track".split(),
    "supplier": "arbor bolt cairn dune ember fjord grove haven".split(),
}
_LABELS = (
    ("calm", "gusty", "stormy"),
    ("bronze", "gold", "silver"),
    ("draft", "final", "review"),
    ("maple", "oak", "pine"),
)


@dataclasses.dataclass(frozen=True)
class Level:
    """How hard a made table is.

    `rows` with the test rows, `separation` of the classes (scikit-learn's class_sep),
    `noise` a share: of labels flipped, of the target's spread added, of cells emptied.
    """

    name: str
    rows: int
    separation: float
    noise: float
    distractors: int


LEVELS: Mapping[str, Level] = {
    "easy": Level("easy", 400, 1.6, 0.02, 1),
    "medium": Level("medium", 700, 1.0, 0.10, 3),
    "hard": Level("hard", 1000, 0.7, 0.25, 6),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A table before its rows are split.

    Attributes:
      about: one or two sentences on what it is.
      frame: features and targets, one row per example.
      targets: names of the target columns.
      metric: name of the metric.
      notes: what is to be said of a column, by name; the others are numbers.
      leak: a column that gives the target away in the training rows and holds noise
        in the test rows, or None.
      leak_absent: the leak is not in the test rows at all.
    """

    about: str
    frame: pd.DataFrame
    targets: tuple[str, ...]
    metric: str
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    leak: str | None = None
    leak_absent: bool = False


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How tables of one sort are made, and for which kind of task."""

    kind: str
    make: Callable[[np.random.Generator, Level], Table]


@dataclasses.dataclass(frozen=True)
class Shipped:
    """A set that scikit-learn ships, with the metrics that suit it."""

    kind: str
    about: str
    load: Callable[[], tuple[pd.DataFrame, tuple[str, ...]]]
    metrics: tuple[str, ...]


# --- parts ---------------------------------------------------------------------


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def _frame(rng: np.random.Generator, values: np.ndarray) -> pd.DataFrame:
    """Columns under names of measurements, none of them twice."""
    names = rng.permutation(_MEASURES)[: values.shape[1]]
    return pd.DataFrame(np.round(values, _DECIMALS), columns=list(names))


def _with_noise_columns(
    rng: np.random.Generator, level: Level, values: np.ndarray
) -> np.ndarray:
    extra = rng.normal(size=(len(values), level.distractors))
    return np.hstack([values, extra])


def _classes(
    rng: np.random.Generator, level: Level, count: int, rare: float = 0.5
) -> tuple[pd.DataFrame, np.ndarray]:
    """Clusters of `count` classes; of two, the second has the share `rare`."""
    from sklearn.datasets import make_classification

    values, codes = make_classification(
        n_samples=level.rows,
        n_features=6,
        n_informative=4,
        n_redundant=1,
        n_classes=count,
        n_clusters_per_class=1,
        weights=[1 - rare, rare] if count == 2 else None,
        class_sep=level.separation,
        flip_y=level.noise / 2,
        random_state=_seed(rng),
    )
    return _frame(rng, _with_noise_columns(rng, level, values)), codes


def _friedman(
    rng: np.random.Generator, level: Level
) -> tuple[pd.DataFrame, np.ndarray]:
    from sklearn.datasets import make_friedman1

    values, target = make_friedman1(
        n_samples=level.rows,
        n_features=5 + level.distractors,
        noise=5 * level.noise,  # the target's spread is about 5
        random_state=_seed(rng),
    )
    return _frame(rng, values), target


def _emptied(
    rng: np.random.Generator, frame: pd.DataFrame, share: float
) -> pd.DataFrame:
    """Cells of every second column emptied; one column more often where it is large."""
    frame = frame.copy()
    for place, name in enumerate(frame.columns[::2]):
        chance = np.full(len(frame), share)
        if place == 0:
            chance = np.where(frame[name] > 0, 1.5, 0.5) * share
        frame.loc[rng.random(len(frame)) < chance, name] = np.nan
    return frame


def _text_columns(
    rng: np.random.Generator, rows: int, count: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Columns of words and the effect that they have on each row, of spread 1."""
    names = rng.permutation(list(_CATEGORIES))[:count]
    columns, effect = {}, np.zeros(rows)
    for name in names:
        words = _CATEGORIES[name]
        drawn = rng.integers(len(words), size=rows)
        columns[name] = [words[i] for i in drawn]
        effect += rng.normal(size=len(words))[drawn]
    return pd.DataFrame(columns), effect / (effect.std() or 1.0)


def _table(frame: pd.DataFrame, target: Any, name: str, **more: Any) -> Table:
    return Table(frame=frame.assign(**{name: target}), targets=(name,), **more)


def _texts(frame: pd.DataFrame) -> dict[str, str]:
    return {name: "a category, as text" for name in frame.columns}


# --- recipes of classification tasks -------------------------------------------


def _clean(rng: np.random.Generator, level: Level) -> Table:
    frame, codes = _classes(rng, level, 3)
    labels = np.array(_pick(rng, _LABELS))
    return _table(
        frame,
        labels[codes],
        "state",
        about="Measurements of objects that are in one of three states.",
        metric=_pick(rng, ["accuracy", "f1_macro", "f1_weighted"]),
    )


def _moons(rng: np.random.Generator, level: Level) -> Table:
    from sklearn.datasets import make_moons

    values, codes = make_moons(
        level.rows, noise=0.1 + level.noise, random_state=_seed(rng)
    )
    turn = rng.uniform(0, 2 * np.pi)
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return _table(
        _frame(rng, _with_noise_columns(rng, level, values @ spin)),
        codes,
        "alarm",
        about="Readings of a machine; alarm is 1 where an operator was called.",
        metric=_pick(rng, ["roc_auc", "log_loss"]),
    )


def _holes(rng: np.random.Generator, level: Level) -> Table:
    frame, codes = _classes(rng, level, 2)
    return _table(
        _emptied(rng, frame, 0.05 + level.noise / 2),
        codes,
        "failed",
        about="Tests of parts; failed is 1 where the part broke. Not every reading "
        "was taken: such cells are empty.",
        metric=_pick(rng, ["roc_auc", "accuracy"]),
    )


def _categories(rng: np.random.Generator, level: Level) -> Table:
    words, effect = _text_columns(rng, level.rows, 3)
    numbers = rng.normal(size=(level.rows, 2))
    drive = effect + numbers[:, 0] + rng.normal(size=level.rows) * 2 * level.noise
    frame = pd.concat([words, _frame(rng, numbers)], axis=1)
    return _table(
        frame,
        np.where(drive > np.median(drive), "yes", "no"),
        "renewed",
        about="Contracts, and whether the customer renewed.",
        metric=_pick(rng, ["accuracy", "f1"]),
        notes=_texts(words),
    )


def _rare(rng: np.random.Generator, level: Level) -> Table:
    frame, codes = _classes(rng, level, 2, rare=0.1)
    return _table(
        frame,
        codes,
        "fraud",
        about="Payments; fraud is 1 for the few that were charged back.",
        metric=_pick(rng, ["f1", "roc_auc"]),
    )


def _leaky_classes(rng: np.random.Generator, level: Level) -> Table:
    frame, codes = _classes(rng, level, 2)
    leak = np.round(codes + rng.normal(size=len(codes)) * 0.01, _DECIMALS)
    return _table(
        frame.assign(review_score=leak),
        codes,
        "rejected",
        about="Applications; rejected is 1 where the office said no.",
        metric=_pick(rng, ["roc_auc", "accuracy"]),
        notes={"review_score": "a number that clerks enter after the decision"},
        leak="review_score",
        leak_absent=bool(rng.integers(2)),
    )


def _shares(rng: np.random.Generator, level: Level) -> Table:
    frame, codes = _classes(rng, level, 3)
    labels = np.array(_pick(rng, _LABELS))
    return _table(
        frame,
        labels[codes],
        "outcome",
        about="Measurements of cases that end in one of three ways.",
        metric=_pick(rng, ["log_loss", "roc_auc"]),
    )


def _grades(rng: np.random.Generator, level: Level) -> Table:
    frame, target = _friedman(rng, level)
    edges = np.quantile(target, [0.1, 0.35, 0.65, 0.9])
    return _table(
        frame,
        1 + np.searchsorted(edges, target),
        "quality",
        about="Samples that a panel graded from 1 (worst) to 5 (best).",
        metric="quadratic_weighted_kappa",
    )


# --- recipes of regression tasks -----------------------------------------------


def _bends(rng: np.random.Generator, level: Level) -> Table:
    frame, target = _friedman(rng, level)
    return _table(
        frame,
        np.round(target, _DECIMALS),
        "yield_per_hour",
        about="Settings of a process and its yield, which depends on them in bends.",
        metric=_pick(rng, ["rmse", "r2"]),
    )


def _linear(rng: np.random.Generator, level: Level) -> Table:
    from sklearn.datasets import make_regression

    values, target = make_regression(
        n_samples=level.rows,
        n_features=5 + level.distractors,
        n_informative=5,
        noise=100 * level.noise,  # the target's spread is about 100
        random_state=_seed(rng),
    )
    return _table(
        _frame(rng, values),
        np.round(target, 2),
        "balance",
        about="Figures of accounts and the balance at the end of the year.",
        metric=_pick(rng, ["mae", "rmse"]),
    )


def _calendar(rng: np.random.Generator, level: Level) -> Table:
    day = rng.permutation(3 * 365)[: level.rows]
    dates = pd.Timestamp("2019-01-01") + pd.to_timedelta(day, unit="D")
    values = rng.normal(size=(level.rows, 2))
    season = np.sin(2 * np.pi * (dates.day_of_year.to_numpy() / 365 + rng.random()))
    weekend = dates.day_of_week.to_numpy() >= 5
    mean = 60 + 0.03 * day + 20 * season + 25 * weekend + 8 * values[:, 0]
    noise = rng.normal(size=level.rows) * 40 * level.noise
    frame = pd.concat(
        [
            pd.Series(dates.strftime("%Y-%m-%d"), name="date"),
            _frame(rng, values),
        ],
        axis=1,
    )
    return _table(
        frame,
        np.maximum(np.round(mean + noise), 1).astype(int),
        "sold",
        about="Units that a shop sold on a day.",
        metric=_pick(rng, ["smape", "mae"]),
        notes={"date": "year-month-day, as text"},
    )


def _skewed(rng: np.random.Generator, level: Level) -> Table:
    values = rng.normal(size=(level.rows, 3))
    words, effect = _text_columns(rng, level.rows, 1)
    log = 6 + values @ [0.8, -0.5, 0.0] + 0.6 * effect
    log += rng.normal(size=level.rows) * 2 * level.noise
    frame = _frame(rng, _with_noise_columns(rng, level, values))
    return _table(
        pd.concat([words, frame], axis=1),
        np.round(np.exp(log), 2),
        "revenue",
        about="Products and their revenue: many small ones and a few very large.",
        metric="rmsle",
        notes=_texts(words),
    )


def _holes_and_words(rng: np.random.Generator, level: Level) -> Table:
    values = rng.normal(size=(level.rows, 3))
    words, effect = _text_columns(rng, level.rows, 2)
    target = 50 + 10 * effect + 8 * values[:, 0] - 5 * values[:, 1] ** 2
    target += rng.normal(size=level.rows) * 20 * level.noise
    numbers = _emptied(rng, _frame(rng, values), 0.05 + level.noise / 2)
    return _table(
        pd.concat([words, numbers], axis=1),
        np.round(target, 2),
        "price",
        about="Goods at auction and the price that they fetched. Some cells are empty.",
        metric=_pick(rng, ["mae", "medae"]),
        notes=_texts(words),
    )


def _leaky_amount(rng: np.random.Generator, level: Level) -> Table:
    frame, target = _friedman(rng, level)
    leak = np.round(10 * target + rng.normal(size=len(target)) * 0.1, _DECIMALS)
    return _table(
        frame.assign(invoice_total=leak),
        np.round(target, _DECIMALS),
        "hours",
        about="Repairs and the hours that they took.",
        metric=_pick(rng, ["rmse", "r2"]),
        notes={"invoice_total": "a number that is booked when the repair is over"},
        leak="invoice_total",
        leak_absent=bool(rng.integers(2)),
    )


def _several(rng: np.random.Generator, level: Level) -> Table:
    values = rng.normal(size=(level.rows, 5))
    weights = rng.normal(size=(5, 3))
    targets = values @ weights + np.abs(values[:, :3])
    targets += rng.normal(size=targets.shape) * 4 * level.noise
    names = ("cohesion", "clarity", "style")
    columns = {name: np.round(targets[:, i], 3) for i, name in enumerate(names)}
    frame = _frame(rng, _with_noise_columns(rng, level, values))
    return Table(
        about="Figures of texts and the marks that they got on three scales.",
        frame=frame.assign(**columns),
        targets=names,
        metric="mcrmse",
    )


def _similar(rng: np.random.Generator, level: Level) -> Table:
    frame, target = _friedman(rng, level)
    share = 1 / (1 + np.exp(-(target - target.mean()) / target.std()))
    return _table(
        frame,
        np.round(share, 3),
        "likeness",
        about="Figures of pairs and how alike people found them, from 0 to 1.",
        metric=_pick(rng, ["pearson", "spearman"]),
    )


RECIPES: Mapping[str, Recipe] = {
    "clean": Recipe("classification", _clean),
    "moons": Recipe("classification", _moons),
    "holes": Recipe("classification", _holes),
    "categories": Recipe("classification", _categories),
    "rare": Recipe("classification", _rare),
    "leaky_classes": Recipe("classification", _leaky_classes),
    "shares": Recipe("classification", _shares),
    "grades": Recipe("classification", _grades),
    "bends": Recipe("regression", _bends),
    "linear": Recipe("regression", _linear),
    "calendar": Recipe("regression", _calendar),
    "skewed": Recipe("regression", _skewed),
    "holes_and_words": Recipe("regression", _holes_and_words),
    "leaky_amount": Recipe("regression", _leaky_amount),
    "several": Recipe("regression", _several),
    "similar": Recipe("regression", _similar),
}


# --- shipped sets --------------------------------------------------------------


def _bunch(name: str, target: str) -> Callable[[], tuple[pd.DataFrame, tuple[str]]]:
    """A set of `sklearn.datasets`, classes under their names where they have any."""

    def load() -> tuple[pd.DataFrame, tuple[str]]:
        from sklearn import datasets

        options = {"scaled": False} if name == "diabetes" else {}
        bunch = getattr(datasets, f"load_{name}")(as_frame=True, **options)
        names = getattr(bunch, "target_names", None)
        codes = bunch.target.to_numpy()
        values = codes if names is None else np.asarray(names)[codes]
        frame = bunch.data.rename(columns=_plain)
        return frame.assign(**{target: values}), (target,)

    return load


def _linnerud() -> tuple[pd.DataFrame, tuple[str, ...]]:
    from sklearn.datasets import load_linnerud

    bunch = load_linnerud(as_frame=True)
    targets = bunch.target.rename(columns=str.lower)
    frame = pd.concat([bunch.data.rename(columns=str.lower), targets], axis=1)
    return frame, tuple(targets.columns)


def _plain(name: str) -> str:
    """ "mean radius" -> "mean_radius", "sepal length (cm)" -> "sepal_length_cm"."""
    for old, new in ((" ", "_"), ("(", ""), (")", ""), ("/", "_")):
        name = name.replace(old, new)
    return name


SHIPPED: Mapping[str, Shipped] = {
    "breast_cancer": Shipped(
        "classification",
        "Measurements of cell nuclei in images of breast tissue, and the diagnosis.",
        _bunch("breast_cancer", "diagnosis"),
        ("accuracy", "f1", "roc_auc", "log_loss"),
    ),
    "wine": Shipped(
        "classification",
        "Chemical analyses of wines from three growers.",
        _bunch("wine", "grower"),
        ("accuracy", "f1_macro", "roc_auc", "log_loss"),
    ),
    "iris": Shipped(
        "classification",
        "Measurements of iris flowers of three species.",
        _bunch("iris", "species"),
        ("accuracy", "f1_weighted", "f1_micro", "log_loss"),
    ),
    "digits": Shipped(
        "classification",
        "Images of written digits, 8 by 8 pixels with values from 0 to 16.",
        _bunch("digits", "digit"),
        ("accuracy", "f1_macro", "quadratic_weighted_kappa", "map_at_3"),
    ),
    "diabetes": Shipped(
        "regression",
        "Patients with diabetes, and how far the illness had gone a year later.",
        _bunch("diabetes", "progression"),
        ("rmse", "mae", "r2", "spearman"),
    ),
    "linnerud": Shipped(
        "regression",
        "Exercises of twenty members of a fitness club, and measures of their bodies.",
        _linnerud,
        ("mcrmse", "mae", "smape", "medae"),
    ),
}
