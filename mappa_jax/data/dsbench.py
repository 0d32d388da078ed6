"""The modelling tasks of DSBench: the source "dsbench:<path of the JSON lines>".

A line has the statement ("prompt") and metadata with the task's id. The tables are the
user's to download; they lie in data.folder as in DSBench's archive:

    <folder>/data_resplit/<task id>/train.csv, test.csv, sample_submission.csv
    <folder>/answers/<task id>/test_answer.csv

or where the metadata's `train_file` and `answer_dir` say, relative to the folder. The
metric is read off the statement and the target off the headers; the metadata's
`data_type` is wrong for some tasks and never looked at.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mappa_jax.data.errors import DataError
from mappa_jax.data.json_files import parse_lines, prompt_text, read_text
from mappa_jax.tabular.metrics import (
    Kind,
    Metric,
    canonical,
    find_metric,
    flaw_of,
    sorted_classes,
)
from mappa_jax.tabular.submission import SubmissionSpec
from mappa_jax.types import Task

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1  # of the specs that are kept
DOWNLOAD = "https://huggingface.co/datasets/liqiang888/DSBench (data_modeling/data.zip)"
_SAMPLES = ("sample_submission.csv", "sampleSubmission.csv", "gender_submission.csv")

# What statements call the metrics. The first to occur after "Evaluation" counts, and
# of those that begin at the same place the one that stands first here.
_PHRASES: Sequence[tuple[str, str]] = (
    (
        "rmsle",
        r"rmsle|(mean column-?wise )?root[- ]mean[- ]squared?[- ]log(arithmic)?[- ]err",
    ),
    ("mcrmse", r"mcrmse|mean column-?wise root mean squared? error"),
    ("quadratic_weighted_kappa", r"quadratic(ally)? weighted kappa|\bqwk\b"),
    ("map_at_", r"\b(?:map|mpa) ?@ ?(?P<k>\d+)"),
    ("normalized_gini", r"normali[sz]ed gini"),
    ("jaccard", r"jaccard"),
    ("spearman", r"spearman"),
    ("pearson", r"pearson"),
    ("roc_auc", r"area under the (roc|receiver)|\broc auc\b|\bauc\b"),
    ("log_loss", r"log(arithmic)?[- ]?loss"),
    ("medae", r"median absolute error|\bmedae\b"),
    ("smape", r"smape|symmetric mean absolute percentage error"),
    ("mae", r"mean absolute error|\bmae\b"),
    ("r2", r"\br2\b|\br\^2|\br² |coefficient of determination"),
    ("f1_micro", r"micro[- ]averaged? f1|micro[- ]f1"),
    ("f1_macro", r"macro[- ]averaged? f1|macro[- ]f1"),
    ("f1_weighted", r"weighted[- ]averaged? f1|weighted[- ]f1"),
    ("f1", r"\bf_?1\b"),
    ("accuracy", r"accuracy"),
    ("rmse", r"root[- ]mean[- ]squared?[- ]error|\brmse\b"),
)
_COMPILED = [(name, re.compile(text, re.IGNORECASE)) for name, text in _PHRASES]
_HEADING = re.compile(
    r"^\W*evaluation\b|submissions (?:are|will be) (?:evaluated|scored)",
    re.IGNORECASE | re.MULTILINE,
)

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Params:
    """What data.params["dsbench"] may set.

    `skip_missing` leaves out the tasks whose tables are not there, `skip` those with
    these ids; `prompts` is a JSON file of shorter statements by task id
    ({"titanic": {"cleaned_prompt": "..."}}) to show in place of the long ones.
    """

    skip_missing: bool = False
    skip: tuple[str, ...] = ()
    prompts: str = ""


@dataclasses.dataclass(frozen=True)
class Files:
    """The tables of one task."""

    train: pathlib.Path
    test: pathlib.Path
    sample: pathlib.Path
    answers: pathlib.Path

    @property
    def missing(self) -> list[pathlib.Path]:
        return [p for p in dataclasses.astuple(self) if not p.is_file()]


def load_dsbench(
    path: pathlib.Path,
    source: str,
    folder: str,
    cache: pathlib.Path,
    params: Mapping[str, Any],
) -> Sequence[Task]:
    """The tasks of a JSON lines file, in its order.

    Args:
      path: the file.
      source: the `Task.source` of the result.
      folder: data.folder, with the tables.
      cache: where specs are kept, since a baseline costs reading the tables.
      params: the fields of `Params`.

    Raises:
      DataError: a line is malformed, tables are missing or do not fit one another, or
        the statement names no metric; with the task and the remedy.
    """
    settings = _params(params)
    if not folder:
        raise DataError(
            f"dsbench:{path}: set data.folder to the folder with DSBench's tables, "
            f"unpacked from {DOWNLOAD}"
        )
    short = _short_statements(settings.prompts)
    root = pathlib.Path(folder).expanduser()
    rows = [_row(row, where) for where, row in parse_lines(read_text(path), path)]
    places = {
        identity: (statement, find_files(root, identity, metadata))
        for identity, statement, metadata in rows
        if identity not in settings.skip
    }
    if len({identity for identity, *_ in rows}) < len(rows):
        raise DataError(f"{path}: a task_id occurs twice; drop one of its lines")
    places = _present(places, root, settings)
    lacking = [identity for identity in places if short and identity not in short]
    if lacking:
        _logger.warning(
            "%s has no statement of %s: the long ones are shown",
            settings.prompts,
            ", ".join(lacking),
        )
    return [
        _task(identity, statement, short.get(identity, statement), files, source, cache)
        for identity, (statement, files) in places.items()
    ]


def metric_of(statement: str) -> str:
    """The name of the metric that a statement says it is evaluated by.

    Raises:
      DataError: it names none that is known.
    """
    heading = _HEADING.search(statement)
    text = statement[heading.start() :] if heading else statement
    found = [(match.start(), name, match) for name, match in _matches(text)]
    if not found:
        raise DataError(
            "the statement names no known metric after 'Evaluation'; leave the task "
            "out with data.params={'dsbench': {'skip': [...]}}"
        )
    _, name, match = min(found, key=lambda one: one[0])
    return f"{name}{match['k']}" if name == "map_at_" else name


def kind_of(metric: Metric, classes: Sequence[str] | None) -> Kind:
    """The kind of task: the metric's, save that the Gini coefficient is of amounts
    too."""
    if metric.name == "normalized_gini" and classes is None:
        return "regression"
    return metric.kind


def find_files(root: pathlib.Path, identity: str, metadata: Mapping[str, Any]) -> Files:
    """Where the tables of a task are, or by the archive's layout should be."""
    tables = root / "data_resplit" / identity
    if "train_file" in metadata and not tables.is_dir():
        given = (root / str(metadata["train_file"])).parent
        tables = given if given.is_dir() else tables
    answers = root / "answers" / identity
    if "answer_dir" in metadata and not answers.is_dir():
        given = root / str(metadata["answer_dir"])
        answers = given if given.is_dir() else answers
    samples = [tables / name for name in _SAMPLES if (tables / name).is_file()]
    return Files(
        train=tables / "train.csv",
        test=tables / "test.csv",
        sample=samples[0] if samples else tables / _SAMPLES[0],
        answers=answers / "test_answer.csv",
    )


# --- lines and parameters ------------------------------------------------------


def _matches(text: str) -> list[tuple[str, re.Match[str]]]:
    pairs = [(name, pattern.search(text)) for name, pattern in _COMPILED]
    return [(name, match) for name, match in pairs if match]


def _params(given: Mapping[str, Any]) -> Params:
    known = [field.name for field in dataclasses.fields(Params)]
    for key in given:
        if key not in known:
            raise DataError(
                f"data.params.dsbench: no parameter {key!r}; there are "
                f"{', '.join(known)}"
            )
    return Params(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    )


def _row(row: Mapping[str, Any], where: str) -> tuple[str, str, Mapping[str, Any]]:
    metadata = row.get("metadata")
    if isinstance(metadata, str):  # some writers put JSON into JSON
        try:
            metadata = json.loads(metadata)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: 'metadata' is no JSON ({error.msg})") from error
    if not isinstance(metadata, Mapping) or "task_id" not in metadata:
        raise DataError(f"{where}: 'metadata' must be an object with a 'task_id'")
    return str(metadata["task_id"]), prompt_text(row, where), metadata


def _short_statements(path: str) -> Mapping[str, str]:
    if not path:
        return {}
    file = pathlib.Path(path).expanduser()
    try:
        rows = json.loads(read_text(file))
        return {name: row["cleaned_prompt"] for name, row in rows.items()}
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise DataError(
            f"data.params.dsbench.prompts={path!r}: must hold an object "
            '{"<task id>": {"cleaned_prompt": "..."}}'
        ) from error


def _present(
    places: Mapping[str, tuple[str, Files]], root: pathlib.Path, settings: Params
) -> dict[str, tuple[str, Files]]:
    """The tasks whose tables are there; of the others an error or a warning."""
    absent = {name: f.missing for name, (_, f) in places.items() if f.missing}
    lines = [
        f"  {name}: {', '.join(str(p.relative_to(root)) for p in paths)}"
        for name, paths in absent.items()
    ]
    message = f"{len(absent)} of {len(places)} tasks miss tables in {root}:\n"
    message += "\n".join(lines)
    if absent and (not settings.skip_missing or len(absent) == len(places)):
        raise DataError(
            f"{message}\ndownload them from {DOWNLOAD} and unpack them there, or set "
            "data.params={'dsbench': {'skip_missing': True}} to go on with the others"
        )
    if absent:
        _logger.warning("%s\nthese tasks are left out", message)
    return {name: place for name, place in places.items() if name not in absent}


# --- one task ------------------------------------------------------------------


def _task(
    identity: str,
    statement: str,
    shown: str,
    files: Files,
    source: str,
    cache: pathlib.Path,
) -> Task:
    try:
        spec = _kept_spec(identity, statement, files, cache)
    except DataError as error:
        raise DataError(
            f"DSBench task {identity}: {error} (a task is left out with "
            f"data.params={{'dsbench': {{'skip': ['{identity}']}}}})"
        ) from error
    names = {
        "train.csv": files.train,
        "test.csv": files.test,
        "sample_submission.csv": files.sample,
    }
    columns = ", ".join([*spec.ids, *spec.targets])
    return Task(
        id=identity,
        prompt=f"{shown.rstrip()}\n\nThe files are {', '.join(names)}. Write the "
        f"predictions for test.csv to submission.csv, with the columns: {columns}.",
        answer=None,
        grader="submission",
        source=source,
        files={name: str(path.absolute()) for name, path in names.items()},
        metadata={"kind": spec.kind, "submission": spec.to_dict()},
    )


def _kept_spec(
    identity: str, statement: str, files: Files, cache: pathlib.Path
) -> SubmissionSpec:
    """The task's spec, from the cache where the tables have not changed."""
    metric = metric_of(statement)
    stats = [(str(p.absolute()), p.stat()) for p in dataclasses.astuple(files)]
    parts = [VERSION, metric, [(p, s.st_size, s.st_mtime_ns) for p, s in stats]]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.-]+", "_", identity)
    path = cache / f"{name}-{digest}.json"
    if path.is_file():
        return SubmissionSpec.from_dict(json.loads(path.read_text(encoding="utf-8")))
    spec = _spec(find_metric(metric), files)
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(spec.to_dict()), encoding="utf-8")
    os.replace(temporary, path)
    return spec


def _spec(metric: Metric, files: Files) -> SubmissionSpec:
    """What a submission must be, from the headers and the true targets.

    Raises:
      DataError: the tables do not fit one another or the metric.
    """
    from mappa_jax.tabular.reference import constant_predictions

    ids, targets = _columns(files)
    train = _table(files.train, targets)
    if metric.predicts != "text":  # a row without its target teaches nothing
        train = train[(train != "").all(axis=1)]
    answers = _table(files.answers, [*ids, *targets])
    if answers[list(ids)].duplicated().any():
        raise DataError(f"{files.answers}: the ids ({', '.join(ids)}) are not unique")
    classes = _classes(metric, train, answers[list(targets)])
    truth = [
        _truth(metric, table[list(targets)], classes, path)
        for table, path in ((train, files.train), (answers, files.answers))
    ]
    flaw = flaw_of(metric, truth[1])
    if flaw:
        raise DataError(f"{files.answers}: {metric.name} is not defined: {flaw}")
    constant = constant_predictions(metric, truth[0], len(truth[1]))
    kind = kind_of(metric, classes)
    both = np.concatenate(truth).T
    return SubmissionSpec(
        metric=metric.name,
        kind=kind,
        ids=ids,
        targets=targets,
        answers=str(files.answers.absolute()),
        baseline=float(metric.function(truth[1], constant)),
        classes=classes,
        target_range=tuple(map(float, np.ptp(both, axis=1)))
        if kind == "regression"
        else (),
    )


def _columns(files: Files) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The id columns and the target columns.

    The sample submission's columns are ids where test.csv has them too, else targets,
    and a target must be in train.csv.
    """
    train, test, sample, answers = map(_header, dataclasses.astuple(files))
    ids = tuple(name for name in sample if name in test)
    targets = tuple(name for name in sample if name not in test)
    if not ids or not targets:
        raise DataError(
            f"{files.sample}: its columns {_listed(sample)} must be ids, which "
            f"test.csv has too, and targets, which it has not; it has {_listed(test)}"
        )
    for path, header, wanted in (
        (files.train, train, targets),
        (files.answers, answers, [*ids, *targets]),
    ):
        lacking = [name for name in wanted if name not in header]
        if lacking:
            raise DataError(f"{path}: has no column {_listed(lacking)}")
    return ids, targets


def _header(path: pathlib.Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [name.strip() for name in next(csv.reader(file), [])]


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _table(path: pathlib.Path, columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of a CSV file, every cell as text."""
    import pandas as pd

    try:
        table = pd.read_csv(
            path,
            usecols=list(columns),
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
        )
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from error
    return table[list(columns)]


def _classes(
    metric: Metric, train: pd.DataFrame, answers: pd.DataFrame
) -> tuple[str, ...] | None:
    """The class names of a target that has any; None for numbers and texts."""
    if metric.predicts in ("number", "text"):
        return None
    if metric.predicts == "probability" and len(answers.columns) > 1:
        return None  # a column of 0 and 1 for each class
    columns = [c for table in (train, answers) for _, c in table.items()]
    names = {canonical(value) for column in columns for value in column.unique()}
    if metric.name == "normalized_gini" and not names <= {"0", "1"}:
        return None
    if "" in names:
        raise DataError("a target is empty")
    if metric.predicts == "probability" and len(names) != 2:
        raise DataError(
            f"{metric.name} needs a target of two classes, or a column for each class; "
            f"there are {len(names)}: {_listed(sorted(names))}"
        )
    return sorted_classes(names)


def _truth(
    metric: Metric,
    table: pd.DataFrame,
    classes: tuple[str, ...] | None,
    path: pathlib.Path,
) -> np.ndarray:
    """[rows, targets] as the metric takes the truth."""
    import pandas as pd

    if metric.predicts in ("text", "ranking"):
        return table.to_numpy(object)
    if classes is not None:
        codes = {name: code for code, name in enumerate(classes)}
        return table.map(lambda cell: codes[canonical(cell)]).to_numpy(int)
    numbers = table.apply(pd.to_numeric, errors="coerce").to_numpy(float)
    if not np.isfinite(numbers).all():
        row, column = np.argwhere(~np.isfinite(numbers))[0]
        raise DataError(
            f"{path}: row {table.index[row] + 1}: {table.iloc[row, column]!r} in the "
            f"column {table.columns[column]!r} is no number, which {metric.name} needs"
        )
    return numbers
