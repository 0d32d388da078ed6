"""Is a submission valid, and what is it worth?

A submission is CSV text that an agent has left: anything at all. It is read as text,
cell by cell, and never executed or unpickled; whatever is wrong with it is a reason in
words. The answers are ours: what is wrong with them is a `GradingError`.
"""

from __future__ import annotations

import asyncio
import collections
import csv
import dataclasses
import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mappa_jax.answer_process import GradingError
from mappa_jax.tabular.metrics import (
    Kind,
    Metric,
    accuracy,
    canonical,
    find_metric,
    flaw_of,
    is_one_hot,
    rmse,
)
from mappa_jax.types import Outcome, Task

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 64 * 2**20  # of a submission, as UTF-8
LARGEST = 1e100  # numbers beyond it are refused: their squares would overflow

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)
_NOTHING = {"", "nan", "na", "n/a", "null", "none", "<na>", "nat"}
_INDEX = re.compile(r"|index|unnamed: ?\d+", re.IGNORECASE)  # what pandas calls it
_SHOWN = 6
_KEPT = 32

# What a failed run counts as in the paper's "fair" figures.
FAILED: Mapping[Kind, Mapping[str, float]] = {
    "classification": {"fair_accuracy": 0.5, "fair_f1": 0.0},
    "regression": {"fair_rmse_percent": 50.0},
    "extraction": {},
}


@dataclasses.dataclass(frozen=True)
class SubmissionSpec:
    """What a submission must be and how it is scored; fits into `Task.metadata`.

    Attributes:
      metric: a name that `find_metric` knows.
      kind: "classification", "regression" or "extraction".
      ids: the columns that name a row.
      targets: the columns to predict; the answers have them too.
      answers: path of the CSV file with the true targets.
      baseline: what the metric gives for the best constant prediction.
      classes: the class names in order where the target is one of classes, else None.
      target_range: largest less smallest true value of each target, over training and
        test rows; empty where targets are no numbers.
      reference: what a strong model reaches, or None where that is not known.
    """

    metric: str
    kind: Kind
    ids: tuple[str, ...]
    targets: tuple[str, ...]
    answers: str
    baseline: float
    classes: tuple[str, ...] | None = None
    target_range: tuple[float, ...] = ()
    reference: float | None = None

    def __post_init__(self):
        metric = find_metric(self.metric)
        if self.reference is not None and not metric.better(
            self.reference, self.baseline
        ):
            raise ValueError(
                f"{self.metric}: the reference {self.reference} is no better than the "
                f"baseline {self.baseline}; leave it None"
            )
        if self.kind == "regression" and not (
            len(self.target_range) == len(self.targets) and all(self.target_range)
        ):
            raise ValueError(
                f"target_range={self.target_range} must have a positive number for "
                f"each of {self.targets}"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> SubmissionSpec:
        """What `to_dict` made `row` of."""
        return cls(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        )


@dataclasses.dataclass(frozen=True)
class Invalid:
    """Why a submission is not valid, in words for its author."""

    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """The true targets.

    Attributes:
      ids: of each row, one text per id column.
      truth: [rows, targets], as the metric takes it.
      same_id: brings two spellings of one id together.
    """

    ids: tuple[tuple[str, ...], ...]
    truth: np.ndarray
    same_id: Callable[[str], str]


@dataclasses.dataclass(frozen=True)
class Graded:
    """What a submission is worth.

    Attributes:
      valid: whether it could be scored.
      reason: why not.
      value: of the task's own metric.
      quality: figures by name. `<metric>`: the value, only where valid.
        `fair_accuracy`, `fair_f1` (macro) of a classification task and
        `fair_rmse_percent` (RMSE in % of the target's range) of a regression task:
        the paper's "fair" figures, where a failed run counts as 0.5, 0 and 50.
        `gap`: DSBench's relative performance gap, 0 for a failed run; absent where
        the task has no reference.
      report: the same in a few plain lines, as a judge is shown.
    """

    valid: bool
    reason: str | None
    value: float | None
    quality: Mapping[str, float]
    report: str


def load_answers(spec: SubmissionSpec) -> Answers:
    """The answers of a task, from `spec.answers`.

    Raises:
      GradingError: the file is missing or does not fit the spec.
    """
    import pandas as pd

    wanted = [*spec.ids, *spec.targets]
    try:
        table = pd.read_csv(
            spec.answers, usecols=wanted, dtype=str, keep_default_na=False
        )
    except (OSError, ValueError) as error:
        raise GradingError(
            f"{spec.answers}: the answers cannot be read ({error}); make the task's "
            "files anew (docs/data.md)"
        ) from error
    rows = list(table[list(spec.ids)].itertuples(index=False, name=None))
    same_id: Callable[[str], str] = canonical
    ids = tuple(tuple(map(canonical, row)) for row in rows)
    if len(set(ids)) < len(ids):  # "7" and "007" are two ids here
        same_id, ids = str, tuple(map(tuple, rows))
    if len(set(ids)) < len(ids):
        raise GradingError(f"{spec.answers}: the ids are not unique")
    metric = find_metric(spec.metric)
    columns = [table[name].tolist() for name in spec.targets]
    read = _converted(columns, ids, spec, _truth_reader(spec, metric))
    if isinstance(read, Invalid):
        raise GradingError(f"{spec.answers}: {read.reason}")
    flaw = flaw_of(metric, read)
    if flaw:
        raise GradingError(f"{spec.answers}: {metric.name} is not defined: {flaw}")
    return Answers(ids=ids, truth=read, same_id=same_id)


def validate(
    text: str | None, spec: SubmissionSpec, answers: Answers | None = None
) -> pd.DataFrame | Invalid:
    """The predictions of a submission, or why it has none.

    Checked: it is CSV text of at most MAX_BYTES; its columns are the ids and targets
    and no other (in any order); every id of the test set is there once and no other
    id; no value is missing; numbers are finite and within the metric's bounds;
    classes are known, where "1.0" will do for "1".

    Args:
      text: what the agent left, or None where it left nothing.
      spec: of the task.
      answers: from `load_answers`, which is called where it is not given.

    Returns:
      A row for each row of the answers, in their order, and a column for each target:
      class codes, numbers or texts. Or the first thing that is wrong.

    Raises:
      GradingError: the answers cannot be read.
    """
    import pandas as pd

    answers = load_answers(spec) if answers is None else answers
    table = _read(text, spec, len(answers.ids))
    if isinstance(table, Invalid):
        return table
    header, rows = table
    place = _matched(header, rows, spec, answers)
    if isinstance(place, Invalid):
        return place
    columns = [[rows[i][header.index(name)] for i in place] for name in spec.targets]
    reader = _prediction_reader(spec, find_metric(spec.metric))
    values = _converted(columns, answers.ids, spec, reader)
    if isinstance(values, Invalid):
        return values
    if len(spec.targets) > 1 and spec.metric == "log_loss":
        if is_one_hot(answers.truth) and not np.all(values.sum(axis=1) > 0):
            return Invalid("the probabilities of a row are all 0")
    index = pd.Index([",".join(row) for row in answers.ids], name=",".join(spec.ids))
    return pd.DataFrame(values, columns=list(spec.targets), index=index)


def score(spec: SubmissionSpec, predicted: pd.DataFrame, answers: Answers) -> float:
    """The task's metric of a validated submission."""
    return find_metric(spec.metric).function(answers.truth, predicted.to_numpy())


def relative_gap(spec: SubmissionSpec, value: float) -> float | None:
    """How much of the way from the baseline to the reference was gone.

    max((value - baseline) / (reference - baseline), 0), the summand of DSBench's
    relative performance gap (Jing et al. 2024, arXiv:2409.07703), with the strong
    model in place of the best known submission. As there, 1 is no upper limit and
    what fails counts 0. None where there is no reference.
    """
    if spec.reference is None:
        return None
    return max((value - spec.baseline) / (spec.reference - spec.baseline), 0.0)


def grade(
    text: str | None, spec: SubmissionSpec, answers: Answers | None = None
) -> Graded:
    """Validates and scores a submission; arguments and errors as of `validate`."""
    answers = load_answers(spec) if answers is None else answers
    predicted = validate(text, spec, answers)
    if isinstance(predicted, Invalid):
        nothing = {} if spec.reference is None else {"gap": 0.0}
        return Graded(
            valid=False,
            reason=predicted.reason,
            value=None,
            quality={**FAILED[spec.kind], **nothing},
            report=f"The submission is not valid: {predicted.reason}",
        )
    value = score(spec, predicted, answers)
    gap = relative_gap(spec, value)
    fair = _FAIR[spec.kind](spec, answers.truth, predicted.to_numpy())
    quality = {spec.metric: value, **fair}
    if gap is not None:
        quality["gap"] = gap
    return Graded(True, None, value, quality, _report(spec, value, gap, fair))


class SubmissionGrader:
    """Grades the submissions of tasks whose metadata hold a spec as "submission".

    The answers of the latest tasks are kept.
    """

    def __init__(self):
        self._answers_of = functools.lru_cache(_KEPT)(load_answers)

    async def grade(self, task: Task, text: str | None) -> Outcome:
        """What the ground truth says of a submission; its CSV text, None for none.

        Returns:
          An Outcome whose score is 1 for a valid submission, else 0.

        Raises:
          GradingError: the answers cannot be read, which is not the agent's doing.
        """
        return await asyncio.to_thread(self.grade_now, task, text)

    def grade_now(self, task: Task, text: str | None) -> Outcome:
        """As `grade`, blocking."""
        if "submission" not in task.metadata:
            raise GradingError(
                f"task {task.id}: grader {task.grader!r} without metadata "
                "'submission'; load it from a source of tables (docs/data.md)"
            )
        spec = SubmissionSpec.from_dict(task.metadata["submission"])
        graded = grade(text, spec, self._answers_of(spec))
        return Outcome(
            score=float(graded.valid), report=graded.report, quality=graded.quality
        )


# --- reading -------------------------------------------------------------------


def _read(
    text: str | None, spec: SubmissionSpec, count: int
) -> tuple[list[str], list[list[str]]] | Invalid:
    """Header and rows, where the columns are right and there are `count` rows."""
    if text is None:
        return Invalid("there is no submission file")
    # The encoded text is at least as long; encoding a huge one to see it costs memory.
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "replace")) > MAX_BYTES:
        return Invalid(f"the file is too large (over {MAX_BYTES} bytes)")
    if "\0" in text:
        return Invalid("the file is not CSV text: it holds NUL bytes")
    reader = csv.reader(
        io.StringIO(text.removeprefix("\ufeff"), newline=""),
        strict=True,
        skipinitialspace=True,
    )
    rows: list[list[str]] = []
    header: list[str] | None = None
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells) and len(cells) < 2:
                continue  # an empty line
            if header is None:
                wrong = _wrong_header(cells, spec)
                if wrong:
                    return Invalid(wrong)
                header = cells
            elif len(cells) != len(header):
                return Invalid(
                    f"line {reader.line_num} has {len(cells)} cells, the header "
                    f"{len(header)}"
                )
            elif len(rows) == count:
                return Invalid(f"there are more rows than the {count} of test.csv")
            else:
                rows.append(cells)
    except csv.Error as error:
        return Invalid(f"line {reader.line_num} cannot be read as CSV ({error})")
    if header is None:
        return Invalid("the file is empty")
    return header, rows


def _wrong_header(header: Sequence[str], spec: SubmissionSpec) -> str | None:
    wanted = [*spec.ids, *spec.targets]
    extra = [name for name in header if name not in wanted]
    missing = [name for name in wanted if name not in header]
    asked = f"the columns must be {_listed(wanted)}"
    if extra and not missing and all(_INDEX.fullmatch(name) for name in extra):
        return (
            f"{asked}; {_listed(extra)} is an index that was written too "
            "(use index=False)"
        )
    if extra or missing:
        return f"{asked}; the file has {_listed(header)}"
    if len(header) > len(wanted):
        return f"{asked}; the file has a column twice"
    return None


def _matched(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    spec: SubmissionSpec,
    answers: Answers,
) -> list[int] | Invalid:
    """For each row of the answers, the row of the submission with its id."""
    columns = [header.index(name) for name in spec.ids]
    place: dict[tuple[str, ...], int] = {}
    for number, row in enumerate(rows):
        key = tuple(answers.same_id(row[column]) for column in columns)
        if key in place:
            return Invalid(f"the id {_shown(key)} occurs more than once")
        place[key] = number
    known = set(answers.ids)
    unknown = [key for key in place if key not in known]
    if unknown:
        return Invalid(
            f"{len(unknown)} ids are not in test.csv, the first is {_shown(unknown[0])}"
        )
    absent = [key for key in answers.ids if key not in place]
    if absent:
        return Invalid(
            f"there are {len(rows)} rows where test.csv has {len(answers.ids)}; "
            f"missing is the id {_shown(absent[0])}"
        )
    return [place[key] for key in answers.ids]


# --- cells to values -----------------------------------------------------------

Reader = Callable[[str], "float | int | str | Invalid"]


def _converted(
    columns: Sequence[Sequence[str]],
    ids: Sequence[tuple[str, ...]],
    spec: SubmissionSpec,
    read: Reader,
) -> np.ndarray | Invalid:
    """[rows, targets] of what `read` makes of the cells, or the first bad cell."""
    values = []
    for name, cells in zip(spec.targets, columns, strict=True):
        column = [read(cell) for cell in cells]
        for key, value in zip(ids, column, strict=True):
            if isinstance(value, Invalid):
                return Invalid(f"column {name!r}, id {_shown(key)}: {value.reason}")
        values.append(column)
    # Texts as objects: NumPy's own would all be as long as the longest.
    texts = isinstance(values[0][0], str) if ids else False
    return np.array(values, object if texts else None).T


def _truth_reader(spec: SubmissionSpec, metric: Metric) -> Reader:
    """How the cells of the answers are read."""
    if metric.predicts in ("text", "ranking"):
        return str
    if spec.classes is not None:
        return _code_reader(spec.classes)
    return functools.partial(_number, -math.inf, math.inf)


def _prediction_reader(spec: SubmissionSpec, metric: Metric) -> Reader:
    """How the cells of a submission are read."""
    if metric.predicts == "text":
        return str
    if metric.predicts == "ranking":
        return functools.partial(_ranking, frozenset(spec.classes or ()))
    if metric.predicts == "class":
        return _code_reader(spec.classes or ())
    return functools.partial(_number, metric.low, metric.high)


def _code_reader(classes: Sequence[str]) -> Reader:
    """From a class name, in any spelling that no other class shares, to its code."""
    exact = {name: code for code, name in enumerate(classes)}
    spelled = collections.Counter(map(canonical, classes))
    loose = {canonical(name): code for name, code in exact.items()}

    def read(cell: str) -> int | Invalid:
        if cell in exact:
            return exact[cell]
        spelling = canonical(cell)
        if spelled[spelling] == 1:
            return loose[spelling]
        if cell.lower() in _NOTHING:
            return Invalid("a value is missing")
        return Invalid(f"{cell!r:.60} is no class; there are {_listed(classes)}")

    return read


def _ranking(classes: frozenset[str], cell: str) -> str | Invalid:
    named = cell.split()
    if not named:
        return Invalid("a value is missing")
    unknown = [name for name in named if name not in classes]
    if unknown:
        return Invalid(
            f"{unknown[0]!r:.60} is no class; there are {_listed(sorted(classes))}"
        )
    return " ".join(named)


def _number(low: float, high: float, cell: str) -> float | Invalid:
    if _NUMBER.fullmatch(cell) is None:
        if cell.lower() in _NOTHING:
            return Invalid("a value is missing")
        if _INFINITE.fullmatch(cell):
            return Invalid("the value is not finite")
        return Invalid(f"{cell!r:.60} is no number")
    value = float(cell)
    if not abs(value) <= LARGEST:
        return Invalid(f"the value is too large (over {LARGEST:g})")
    if not low <= value <= high:
        bound = f"at least {low:g}" if high == math.inf else f"in {low:g}..{high:g}"
        return Invalid(f"{value:g} must be {bound} for this metric")
    return value


def _shown(key: Sequence[str]) -> str:
    return f"{','.join(key)!r:.60}"


def _listed(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(f"{name!r:.60}" for name in names[:_SHOWN]) + more


# --- quality -------------------------------------------------------------------


def _fair_classes(
    spec: SubmissionSpec, truth: np.ndarray, predicted: np.ndarray
) -> dict[str, float]:
    """Accuracy and macro F1 of the classes that the predictions amount to.

    Of a ranking that is the first; of one column per class the largest; of other
    scores, 1 from 0.5 on.
    """
    predicts = find_metric(spec.metric).predicts
    if predicts == "ranking":
        predicted = np.vectorize(lambda text: text.split()[0])(predicted)
    elif predicts == "probability" and is_one_hot(truth):
        truth = truth.argmax(axis=1, keepdims=True)
        predicted = predicted.argmax(axis=1, keepdims=True)
    elif predicts == "probability":
        truth, predicted = truth.astype(int), (predicted >= 0.5).astype(int)
    macro = find_metric("f1_macro").function
    return {
        "fair_accuracy": accuracy(truth, predicted),
        "fair_f1": macro(truth, predicted),
    }


def _fair_numbers(
    spec: SubmissionSpec, truth: np.ndarray, predicted: np.ndarray
) -> dict[str, float]:
    """RMSE in % of the target's range, the mean over targets."""
    widths = np.asarray(spec.target_range)
    return {"fair_rmse_percent": 100.0 * rmse(truth / widths, predicted / widths)}


def _no_figures(
    spec: SubmissionSpec, truth: np.ndarray, predicted: np.ndarray
) -> dict[str, float]:
    del spec, truth, predicted
    return {}


_FAIR: Mapping[Kind, Callable[..., dict[str, float]]] = {
    "classification": _fair_classes,
    "regression": _fair_numbers,
    "extraction": _no_figures,
}
_FAIR_WORDS = {
    "fair_accuracy": "accuracy {:.3g}",
    "fair_f1": "macro F1 {:.3g}",
    "fair_rmse_percent": "RMSE {:.3g}% of the target's range",
}


def _report(
    spec: SubmissionSpec, value: float, gap: float | None, fair: Mapping[str, float]
) -> str:
    direction = "larger" if find_metric(spec.metric).larger_is_better else "smaller"
    parts = [
        f"{spec.metric} {value:.4g} ({direction} is better)",
        f"a trivial baseline has {spec.baseline:.4g}",
    ]
    if gap is not None:
        parts[-1] += f", a strong reference model {spec.reference:.4g}"
        parts.append(f"relative performance gap {gap:.2f}")
    figures = ", ".join(_FAIR_WORDS[name].format(v) for name, v in fair.items())
    lines = ["The submission is valid.", "; ".join(parts)]
    return "\n".join([*lines, figures] if figures else lines)
