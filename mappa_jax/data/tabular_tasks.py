"""Modelling tasks that need no download: the source "tabular:<name>".

Each task is a folder as a competition has it, written once:

    <folder>/<fingerprint>/<task id>/public/train.csv
                                     public/test.csv               without the target
                                     public/sample_submission.csv  a constant
                                     private/answers.csv
                                     private/task.json             the statement, ...

The agents get the public files. A task is a function of the seed, its name and the
versions of the libraries that draw its numbers, which the fingerprint covers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mappa_jax.data.errors import DataError
from mappa_jax.tabular.metrics import Metric, find_metric, flaw_of, sorted_classes
from mappa_jax.tabular.submission import SubmissionSpec
from mappa_jax.types import Task

if TYPE_CHECKING:
    import pandas as pd

    from mappa_jax.data.tabular_recipes import Table

VERSION = 1  # of what is written; raise it when that changes
PUBLIC = ("train.csv", "test.csv", "sample_submission.csv")
GROUPS = ("generated", "sklearn", "all")
_KINDS = ("classification", "regression")
_TEST_SHARE = 0.3
_EXAMPLES = 3
_LISTED = 12  # more columns than this of plain numbers are named by first and last

_logger = logging.getLogger(__name__)

Split = Literal["train", "test"]


@dataclasses.dataclass(frozen=True)
class Params:
    """What data.params["tabular"] may set: the size and difficulty of the tables.

    `rows` is the most that a table has (training and test rows together).
    """

    rows: int = 1500
    levels: tuple[str, ...] = ("easy", "medium", "hard")


@dataclasses.dataclass(frozen=True)
class _Draft:
    """A task before its files are there: its id, its kind, how its table is made."""

    id: str
    kind: str
    recipe: str
    level: str
    make: Callable[[np.random.Generator], Table]


def load_tabular(
    name: str,
    split: Split,
    source: str,
    folder: pathlib.Path,
    *,
    seed: int,
    train_size: int,
    eval_size: int,
    params: Mapping[str, Any],
) -> Sequence[Task]:
    """The tasks of one split, their files written where they are not yet there.

    Args:
      name: "generated", "sklearn", "all", a recipe or a shipped set
        (`tabular_recipes`).
      split: the made tasks of the two come from two streams of seeds. The shipped
        sets are dealt out between them by the seed, so that no set is in both; a set
        that is asked for by its own name is given for either.
      source: the `Task.source` of the result.
      folder: where the files go.
      seed: of everything.
      train_size: how many tasks are made for training.
      eval_size: likewise for evaluation, independently of it.
      params: the fields of `Params`.

    Raises:
      DataError: an unknown name, a bad parameter, or a folder that cannot be written.
    """
    from mappa_jax.data.tabular_recipes import RECIPES, SHIPPED

    settings = _params(params)
    size = train_size if split == "train" else eval_size
    made = {"generated": list(RECIPES), "all": list(RECIPES)}
    made |= {recipe: [recipe] for recipe in RECIPES}
    shipped = dict.fromkeys(("sklearn", "all"), _dealt(split, seed))
    shipped |= {one: [one] for one in SHIPPED}
    if name not in made and name not in shipped:
        known = ", ".join(dict.fromkeys([*GROUPS, *SHIPPED, *RECIPES]))
        raise DataError(f"tabular has no tasks {name!r}; there are {known}")
    drafts: list[_Draft] = []
    if name in made:
        drafts += itertools.islice(_made(made[name], split, settings), size)
    drafts += _shipped(shipped.get(name, []))
    place = folder / _fingerprint(seed, settings)
    return [_task(draft, place, source, seed, settings) for draft in drafts]


def _params(given: Mapping[str, Any]) -> Params:
    from mappa_jax.data.tabular_recipes import LEVELS

    known = [field.name for field in dataclasses.fields(Params)]
    for key in given:
        if key not in known:
            raise DataError(
                f"data.params.tabular: no parameter {key!r}; there are "
                f"{', '.join(known)}"
            )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    params = Params(**values)
    if not isinstance(params.rows, int) or params.rows < 60:
        raise DataError(f"data.params.tabular.rows={params.rows!r} must be at least 60")
    unknown = [name for name in params.levels if name not in LEVELS]
    if unknown or not params.levels or isinstance(params.levels, str):
        raise DataError(
            f"data.params.tabular.levels={params.levels!r} must be some of "
            f"{', '.join(LEVELS)}"
        )
    return params


def _fingerprint(seed: int, params: Params) -> str:
    libraries = {n: importlib.metadata.version(n) for n in _LIBRARIES}
    parts = [VERSION, seed, dataclasses.asdict(params), libraries]
    text = json.dumps(parts, sort_keys=True)
    return f"seed{seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


_LIBRARIES = ("numpy", "pandas", "scikit-learn")


# --- which tasks ---------------------------------------------------------------


def _made(names: Sequence[str], split: Split, params: Params) -> Iterator[_Draft]:
    """Made tasks without end: the kinds in turn, within a kind the recipes in turn."""
    from mappa_jax.data.tabular_recipes import LEVELS, RECIPES

    turns = [[n for n in names if RECIPES[n].kind == kind] for kind in _KINDS]
    turns = [turn for turn in turns if turn]
    for number in itertools.count():
        turn = turns[number % len(turns)]
        again, place = divmod(number // len(turns), len(turn))
        recipe = RECIPES[turn[place]]
        level = LEVELS[params.levels[(again + place) % len(params.levels)]]
        level = dataclasses.replace(level, rows=min(level.rows, params.rows))
        yield _Draft(
            id=f"{turn[place]}-{split}-{again}",
            kind=recipe.kind,
            recipe=turn[place],
            level=level.name,
            make=lambda rng, recipe=recipe, level=level: recipe.make(rng, level),
        )


def _dealt(split: Split, seed: int) -> list[str]:
    """The shipped sets of one split: of each kind a third, and at least one, is held
    out."""
    from mappa_jax.data.tabular_recipes import SHIPPED

    chosen: list[str] = []
    for kind in _KINDS:
        names = [name for name, entry in SHIPPED.items() if entry.kind == kind]
        order = np.random.default_rng(_stream(kind, seed)).permutation(names).tolist()
        held_out = max(1, len(names) // 3)
        chosen += order[:held_out] if split == "test" else order[held_out:]
    return chosen


def _shipped(names: Sequence[str]) -> list[_Draft]:
    """One task for each metric of each set, the sets in turn."""
    from mappa_jax.data.tabular_recipes import SHIPPED, Table

    def draft(name: str, metric: str) -> _Draft:
        def make(rng: np.random.Generator) -> Table:
            del rng
            frame, targets = SHIPPED[name].load()
            return Table(SHIPPED[name].about, frame, targets, metric)

        return _Draft(f"{name}-{metric}", SHIPPED[name].kind, name, "shipped", make)

    longest = max((len(SHIPPED[name].metrics) for name in names), default=0)
    return [
        draft(name, SHIPPED[name].metrics[turn])
        for turn in range(longest)
        for name in names
        if turn < len(SHIPPED[name].metrics)
    ]


# --- files ---------------------------------------------------------------------


def _task(
    draft: _Draft, place: pathlib.Path, source: str, seed: int, params: Params
) -> Task:
    folder = place / draft.id
    if not folder.is_dir():
        try:
            _write(draft, folder, seed, params)
        except OSError as error:
            raise DataError(
                f"{folder}: the task cannot be written ({error.strerror}); set "
                "data.cache_dir to a folder with room"
            ) from error
    private = folder / "private"
    try:
        kept = json.loads((private / "task.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{private / 'task.json'}: cannot be read ({error}); delete {folder}, and "
            "it is written anew"
        ) from error
    kept["submission"]["answers"] = str((private / "answers.csv").absolute())
    return Task(
        id=draft.id,
        prompt=kept["prompt"],
        answer=None,
        grader="submission",
        source=source,
        files={n: str((folder / "public" / n).absolute()) for n in PUBLIC},
        metadata={
            "kind": draft.kind,
            "recipe": draft.recipe,
            "level": draft.level,
            "submission": kept["submission"],
        },
    )


def _write(draft: _Draft, folder: pathlib.Path, seed: int, params: Params) -> None:
    """The folder of a task, whole or not at all."""
    _logger.info("writing the task %s", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        _fill(draft, temporary, seed, params)
        temporary.chmod(0o755)
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():  # else another process has written the same
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(draft: _Draft, folder: pathlib.Path, seed: int, params: Params) -> None:
    rng = np.random.default_rng(_stream(draft.id, seed))
    table = draft.make(rng)
    frame = _numbered(rng, table.frame, params.rows)
    train, test = _split(rng, frame, table)
    metric = find_metric(table.metric)
    answers, classes = _targets(test, frame, table, metric)
    given, _ = _targets(train, frame, table, metric)
    names = tuple(answers.columns)
    spec = _spec(draft, table, (train, test), (given, answers), classes)
    sample = answers.assign(**dict.fromkeys(names, _dull(metric, classes, names)))
    hidden = [*table.targets, *([table.leak] if table.leak_absent else [])]
    statement = _statement(table, metric, train, test.drop(columns=hidden), spec)

    public, private = folder / "public", folder / "private"
    public.mkdir()
    private.mkdir()
    _csv(train, public / "train.csv")
    _csv(test.drop(columns=hidden), public / "test.csv")
    _csv(sample, public / "sample_submission.csv")
    _csv(answers, private / "answers.csv")
    kept = {"prompt": statement, "submission": spec.to_dict()}
    (private / "task.json").write_text(
        json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def _csv(table: pd.DataFrame, path: pathlib.Path) -> None:
    table.to_csv(path, lineterminator="\n", index_label="id")


def _stream(identity: str, seed: int) -> int:
    digest = hashlib.sha256(f"{VERSION}/{seed}/{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _numbered(rng: np.random.Generator, frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most `most` rows, shuffled, under ids that tell nothing."""
    order = rng.permutation(len(frame))[:most]
    frame = frame.iloc[order].reset_index(drop=True)
    frame.index = frame.index + int(rng.integers(1000, 90000))
    return frame


def _split(
    rng: np.random.Generator, frame: pd.DataFrame, table: Table
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test rows; of a class both have their share."""
    is_test = np.zeros(len(frame), bool)
    groups = np.zeros(len(frame), int)
    if find_metric(table.metric).kind == "classification":
        groups = np.unique(frame[table.targets[0]], return_inverse=True)[1]
    for group in np.unique(groups):
        rows = rng.permutation(np.flatnonzero(groups == group))
        is_test[rows[: max(1, round(_TEST_SHARE * len(rows)))]] = True
    train, test = frame[~is_test], frame[is_test]
    if table.leak is not None and not table.leak_absent:
        drawn = rng.choice(train[table.leak].to_numpy(), len(test))
        test = test.assign(**{table.leak: drawn})
    return train, test


def _targets(
    rows: pd.DataFrame, frame: pd.DataFrame, table: Table, metric: Metric
) -> tuple[pd.DataFrame, tuple[str, ...] | None]:
    """The targets of some rows as submissions have them, and the class names.

    Probabilities of more than two classes are asked for in one column each.
    """
    targets = rows[list(table.targets)]
    if metric.kind == "regression":
        return targets, None
    name = table.targets[0]
    classes = sorted_classes(frame[name].astype(str))
    if metric.predicts != "probability" or len(classes) == 2:
        return targets, classes
    texts = rows[name].astype(str)
    columns = {f"{name}_{one}": (texts == one).astype(int) for one in classes}
    return targets.assign(**columns).drop(columns=name), None


def _dull(metric: Metric, classes: Sequence[str] | None, names: Sequence[str]) -> Any:
    """What the sample submission holds in every cell."""
    if metric.predicts in ("class", "ranking"):
        return (classes or ("",))[0]
    if metric.predicts == "probability":
        return 0.5 if classes else round(1 / len(names), 4)
    return 0


def _spec(
    draft: _Draft,
    table: Table,
    rows: tuple[pd.DataFrame, pd.DataFrame],
    targets: tuple[pd.DataFrame, pd.DataFrame],
    classes: tuple[str, ...] | None,
) -> SubmissionSpec:
    from mappa_jax.tabular import reference

    metric = find_metric(table.metric)
    truth = [_values(part, classes, metric) for part in targets]
    flaw = flaw_of(metric, truth[1])
    if flaw:
        raise DataError(f"task {draft.id}: {metric.name} is not defined: {flaw}")
    constant = reference.constant_predictions(metric, truth[0], len(truth[1]))
    baseline = metric.function(truth[1], constant)
    hidden = [*table.targets, *([table.leak] if table.leak else [])]
    features = tuple(part.drop(columns=hidden) for part in rows)
    strong = reference.reference_value(
        metric, features, (truth[0], truth[1]), baseline, _stream(draft.id, 0) % 2**31
    )
    widths: tuple[float, ...] = ()
    if metric.kind == "regression":
        widths = tuple(float(np.ptp(c)) for c in np.concatenate(truth).T)
    return SubmissionSpec(
        metric=metric.name,
        kind=metric.kind,
        ids=("id",),
        targets=tuple(targets[1].columns),
        answers="answers.csv",
        baseline=float(baseline),
        classes=classes,
        target_range=widths,
        # The last digits may differ between processors.
        reference=None if strong is None else round(float(strong), 6),
    )


def _values(
    targets: pd.DataFrame, classes: tuple[str, ...] | None, metric: Metric
) -> np.ndarray:
    """[rows, targets] as the metric takes the truth."""
    if metric.predicts == "ranking":
        return targets.astype(str).to_numpy(object)
    if classes is None:
        return targets.to_numpy(float)
    codes = {name: code for code, name in enumerate(classes)}
    return targets.map(lambda value: codes[str(value)]).to_numpy(int)


# --- the statement -------------------------------------------------------------


def _statement(
    table: Table,
    metric: Metric,
    train: pd.DataFrame,
    test: pd.DataFrame,
    spec: SubmissionSpec,
) -> str:
    features = [name for name in train.columns if name not in table.targets]
    targets = _names(table.targets)
    direction = "larger" if metric.larger_is_better else "smaller"
    without = targets
    if table.leak_absent:
        without += f" and without `{table.leak}`"
    lines = [
        table.about,
        "",
        f"Predict {targets} for every row of test.csv.",
        "",
        "Files:",
        f"- train.csv: {len(train)} rows with {targets}",
        f"- test.csv: {len(test)} rows without {without}",
        "- sample_submission.csv: the form of a submission, with a constant in it",
        "",
        "Columns:",
        "- `id`: names the row",
        *_columns(features, table.notes),
        *(
            f"- `{n}`: to be predicted, {_sort(train[n], metric)}"
            for n in table.targets
        ),
        "",
        f"Evaluation: submissions are scored by {metric.words} (`{metric.name}`); "
        f"{direction} is better.",
        "",
        f"Submission: a CSV file submission.csv with one line for every row of "
        f"test.csv and the columns id and {_names(spec.targets)}"
        f"{_asked(metric, spec)}. For example:",
        ",".join(["id", *spec.targets]),
    ]
    for place, identity in enumerate(test.index[:_EXAMPLES]):
        cells = [_example(metric, spec, place)] * len(spec.targets)
        lines.append(",".join([str(identity), *cells]))
    return "\n".join(lines)


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _columns(features: Sequence[str], notes: Mapping[str, str]) -> list[str]:
    plain = [name for name in features if name not in notes]
    lines = [f"- `{name}`: {notes[name]}" for name in features if name in notes]
    if len(plain) > _LISTED:
        lines.append(f"- `{plain[0]}` to `{plain[-1]}`: {len(plain)} columns, numbers")
    elif plain:
        lines.append(f"- {_names(plain)}: numbers")
    return lines


def _sort(target: pd.Series, metric: Metric) -> str:
    if metric.kind == "regression":
        return "a number"
    return f"one of {', '.join(sorted_classes(target.astype(str)))}"


def _asked(metric: Metric, spec: SubmissionSpec) -> str:
    if metric.predicts == "probability" and spec.classes is None:
        return ", the probability of each class"
    if metric.predicts == "probability":
        return f", the probability of {spec.classes[-1]}"
    if metric.predicts == "ranking":
        return ", up to three classes separated by spaces, the likeliest first"
    if metric.name == "f1":
        return f" (the positive class is {spec.classes[-1]})"
    return ""


def _example(metric: Metric, spec: SubmissionSpec, place: int) -> str:
    if metric.predicts == "ranking":
        return " ".join(spec.classes[:3])
    if metric.predicts == "class":
        return spec.classes[place % len(spec.classes)]
    if metric.predicts == "probability":
        return f"{1 / max(2, len(spec.targets)):.2g}"
    return "0"
