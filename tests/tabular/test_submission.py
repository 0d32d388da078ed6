"""What is left as a submission: read with suspicion, scored with care."""

import asyncio
import dataclasses
import json
import math
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mappa_jax.answer_process import GradingError
from mappa_jax.tabular import submission
from mappa_jax.tabular.submission import (
    Invalid,
    SubmissionGrader,
    SubmissionSpec,
    grade,
    load_answers,
    relative_gap,
    validate,
)
from mappa_jax.types import Task


def _answers(folder, text, name="answers.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("answers")


@pytest.fixture(scope="module")
def numbers(folder):
    """Three rows of a number; RMSLE, so that negative predictions are refused."""
    return SubmissionSpec(
        metric="rmsle",
        kind="regression",
        ids=("id",),
        targets=("y",),
        answers=_answers(folder, "id,y\n1,0\n2,10\n3,20\n", "numbers.csv"),
        baseline=1.0,
        target_range=(40.0,),
        reference=0.2,
    )


@pytest.fixture(scope="module")
def classes(folder):
    return SubmissionSpec(
        metric="accuracy",
        kind="classification",
        ids=("id",),
        targets=("y",),
        answers=_answers(folder, "id,y\n1,0\n2,1\n3,1\n", "classes.csv"),
        baseline=0.5,
        classes=("0", "1", "2"),
        reference=0.75,
    )


@pytest.fixture(scope="module")
def shares(folder):
    """One column for each of three classes."""
    text = "id,a,b,c\n1,1,0,0\n2,0,0,1\n"
    return SubmissionSpec(
        metric="log_loss",
        kind="classification",
        ids=("id",),
        targets=("a", "b", "c"),
        answers=_answers(folder, text, "shares.csv"),
        baseline=math.log(3),
    )


def _reason(text, spec):
    result = validate(text, spec)
    assert isinstance(result, Invalid), result
    return result.reason


# --- what is valid -------------------------------------------------------------


def test_rows_are_joined_by_id_in_any_order(numbers):
    table = validate("id,y\n3,5\n1,1.5\n2,1e1\n", numbers)
    assert table["y"].tolist() == [1.5, 10.0, 5.0]
    assert table.index.tolist() == ["1", "2", "3"]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffid,y\n1,1\n2,2\n3,3\n",
        "id,y\r\n1,1\r\n2,2\r\n3,3\r\n",
        "id,y\r1,1\r2,2\r3,3",
        'id,y\n"1","1"\n2,2\n3,3',
        "id, y\n1, 1\n2 ,2\n 3,3\n\n\n",
        "y,id\n1,1\n2,2\n3,3\n",
        "id,y\n1.0,1.\n2.0,2e0\n3.0,+3\n",
        "id,y\n01,1\n02,2\n03,3\n",
        'id,y\n1,"1"\n2," 2"\n3,3\n',
    ],
)
def test_other_ways_to_write_the_same_file(numbers, text):
    assert validate(text, numbers)["y"].tolist() == [1.0, 2.0, 3.0]


def test_classes_may_be_written_as_floats(classes):
    table = validate("id,y\n1,0.0\n2,1\n3,2.0\n", classes)
    assert table["y"].tolist() == [0, 1, 2]


def test_a_class_that_two_names_could_mean_is_taken_to_the_letter(folder):
    spec = SubmissionSpec(
        "accuracy",
        "classification",
        ("id",),
        ("y",),
        _answers(folder, "id,y\n1,1\n2,1.0\n", "spellings.csv"),
        0.5,
        classes=("1", "1.0"),
    )
    assert validate("id,y\n1,1.0\n2,1\n", spec)["y"].tolist() == [1, 0]
    assert "is no class" in _reason("id,y\n1,1.00\n2,1\n", spec)


def test_ids_that_differ_in_zeros_only_are_kept_apart(numbers, folder):
    path = _answers(folder, "id,y\n7,1\n007,2\n", "zeros.csv")
    spec = dataclasses.replace(numbers, answers=path)
    assert validate("id,y\n007,5\n7,4\n", spec)["y"].tolist() == [4.0, 5.0]
    assert "'07'" in _reason("id,y\n07,5\n7,4\n", spec)


def test_several_id_columns(numbers, folder):
    path = _answers(folder, "day,shop,y\nmon,1,1\nmon,2,2\n", "two_ids.csv")
    spec = dataclasses.replace(numbers, ids=("day", "shop"), answers=path)
    table = validate("shop,day,y\n2,mon,5\n1,mon,4\n", spec)
    assert table["y"].tolist() == [4.0, 5.0]
    assert "'mon,1' occurs more" in _reason("shop,day,y\n1,mon,5\n1,mon,4\n", spec)


def test_texts_with_commas_quotes_and_line_ends(folder):
    spec = SubmissionSpec(
        "jaccard",
        "extraction",
        ("id",),
        ("words",),
        _answers(folder, 'id,words\n1,"so, ""fine"""\n2,x\n', "texts.csv"),
        0.0,
    )
    text = 'id,words\n1,"so, ""fine"""\n2,"a\nb,c"\n'
    assert validate(text, spec)["words"].tolist() == ['so, "fine"', "a\nb,c"]
    assert grade(text, spec).quality == {"jaccard": 0.5}
    assert grade("id,words\n1,\n2,\n", spec).quality == {"jaccard": 0.0}


def test_a_ranking_holds_known_classes(folder):
    spec = SubmissionSpec(
        "map_at_3",
        "classification",
        ("id",),
        ("y",),
        _answers(folder, "id,y\n1,a\n2,b\n", "ranking.csv"),
        0.5,
        classes=("a", "b", "c"),
    )
    graded = grade("id,y\n1,b a\n2,b\n", spec)
    assert graded.quality["map_at_3"] == 0.75
    assert graded.quality["fair_accuracy"] == 0.5
    assert "'z' is no class" in _reason("id,y\n1,b z\n2,b\n", spec)
    assert "missing" in _reason("id,y\n1,\n2,b\n", spec)


# --- what is not ---------------------------------------------------------------


@pytest.mark.parametrize(
    "text, reason",
    [
        (None, "there is no submission file"),
        ("", "the file is empty"),
        ("\n\n \n", "the file is empty"),
        ("\ufeff", "the file is empty"),
        ("id,y\n", "there are 0 rows where test.csv has 3; missing is the id '1'"),
        ("id,y\n1,1\n2,2\n", "there are 2 rows where test.csv has 3; .*'3'"),
        ("id,y\n1,1\n2,2\n3,3\n4,4\n", "more rows than the 3"),
        ("id,y\n1,1\n2,2\n2,3\n", "the id '2' occurs more than once"),
        ("id,y\n1,1\n2,2\n2.0,3\n", "the id '2' occurs more than once"),
        ("id,y\n1,1\n2,2\n9,3\n", "1 ids are not in test.csv, the first is '9'"),
        ("id,y\n1,1\n2,\n3,3\n", "column 'y', id '2': a value is missing"),
        ("id,y\n1,1\n2,NaN\n3,3\n", "a value is missing"),
        ("id,y\n1,1\n2,None\n3,3\n", "a value is missing"),
        ("id,y\n1,1\n2,inf\n3,3\n", "id '2': the value is not finite"),
        ("id,y\n1,1\n2,-Infinity\n3,3\n", "not finite"),
        ("id,y\n1,1\n2,1e999\n3,3\n", "too large"),
        ("id,y\n1,1\n2," + "9" * 100_000 + "\n3,3\n", "too large"),
        ("id,y\n1,1\n2,-0.5\n3,3\n", "-0.5 must be at least 0"),
        ("id,y\n1,1\n2,two\n3,3\n", "'two' is no number"),
        ("id,y\n1,1\n2,1_0\n3,3\n", "'1_0' is no number"),
        ("id,y\n1,1\n2,\u0662\n3,3\n", "'\u0662' is no number"),
        ("id,y\n1,1\n2,0x10\n3,3\n", "is no number"),
        ("id,y\n1,1\n2,True\n3,3\n", "'True' is no number"),
        (",id,y\n0,1,1\n1,2,2\n2,3,3\n", "'' is an index .*index=False"),
        ("Unnamed: 0,id,y\n0,1,1\n", "'Unnamed: 0' is an index"),
        ("index,id,y\n0,1,1\n", "'index' is an index"),
        ("id,y,z\n1,1,1\n", "must be 'id', 'y'; the file has 'id', 'y', 'z'"),
        ("id\n1\n", "must be 'id', 'y'; the file has 'id'$"),
        ("1,1\n2,2\n3,3\n", "must be 'id', 'y'; the file has '1', '1'"),
        ("ID,Y\n1,1\n", "must be 'id', 'y'"),
        ("id;y\n1;1\n", "the file has 'id;y'"),
        ("id\ty\n1\t1\n", "must be 'id', 'y'"),
        ("id,y,y\n1,1,1\n", "a column twice"),
        ("id,y\n1,1,1\n2,2\n3,3\n", "line 2 has 3 cells, the header 2"),
        ("id,y\n1\n2,2\n3,3\n", "line 2 has 1 cells"),
        ('id,y\n1,"1\n2,2\n3,3\n', "cannot be read as CSV"),
        ('id,y\n1,"1"x\n2,2\n3,3\n', "line 2 cannot be read as CSV"),
        ("id,y\n1,1\0\n", "NUL bytes"),
        ("id,y\n1," + "x" * 200_000, "cannot be read as CSV .*field larger"),
        (",".join("abcdefgh" * 12_500), "must be 'id', 'y'; .*, \\.\\.\\.$"),
        ("\udcff\udc00\x80PK\x03\x04", "must be 'id', 'y'"),
        ("<html><body>no</body></html>", "must be 'id', 'y'"),
        ("{'id': [1, 2, 3]}", "must be 'id', 'y'"),
    ],
)
def test_what_is_wrong_is_said(numbers, text, reason):
    found = _reason(text, numbers)
    assert len(found) < 400
    assert re.search(reason, found), found


def test_unknown_classes_are_named(classes):
    found = _reason("id,y\n1,0\n2,1\n3,cat\n", classes)
    assert found == "column 'y', id '3': 'cat' is no class; there are '0', '1', '2'"
    assert "0.5" in _reason("id,y\n1,0.5\n2,1\n3,1\n", classes)
    assert "missing" in _reason("id,y\n1,0\n2,1\n3,\n", classes)


def test_a_class_may_be_called_none(folder):
    spec = SubmissionSpec(
        "accuracy",
        "classification",
        ("id",),
        ("y",),
        _answers(folder, "id,y\n1,None\n2,NA\n", "none.csv"),
        0.5,
        classes=("NA", "None"),
    )
    assert grade("id,y\n1,None\n2,NA\n", spec).value == 1.0


def test_probabilities_are_within_bounds(shares):
    assert validate("id,a,b,c\n1,1,0,0\n2,.2,.3,.5\n", shares).shape == (2, 3)
    assert "in 0..1" in _reason("id,a,b,c\n1,1,0,0\n2,.2,.3,1.5\n", shares)
    assert "all 0" in _reason("id,a,b,c\n1,1,0,0\n2,0,0,0\n", shares)


def test_a_file_that_is_too_large_is_not_read(numbers, monkeypatch):
    monkeypatch.setattr(submission, "MAX_BYTES", 100)
    assert "too large" in _reason("id,y\n" + "1,1\n" * 30, numbers)
    # 60 characters, 120 bytes
    assert "too large" in _reason("\u00e9" * 60, numbers)


def test_many_rows_are_not_all_read(numbers):
    start = time.monotonic()
    assert "more rows" in _reason("id,y\n" + "1,1\n" * 5_000_000, numbers)
    assert time.monotonic() - start < 2


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=80)
    | st.text(alphabet='id,y\n\r"123.eE-+ \t\ufeff\udc80', max_size=60).map(
        lambda tail: f"id,y\n{tail}"
    )
    | st.binary(max_size=80).map(lambda b: b.decode("utf-8", "surrogateescape"))
)
def test_no_text_whatever_raises(numbers, classes, text):
    for spec in (numbers, classes):
        graded = grade(text, spec)
        json.dumps([graded.report, dict(graded.quality)], allow_nan=False)
        assert graded.valid == (graded.reason is None)


# --- what it is worth ----------------------------------------------------------


def test_a_classification_has_accuracy_and_macro_f1(classes):
    graded = grade("id,y\n1,1\n2,1\n3,1\n", classes)
    assert graded.valid and graded.value == pytest.approx(2 / 3)
    # class 0: 0; class 1: 2 * 2 / (2 * 2 + 1); the gap: (2/3 - 1/2) / (3/4 - 1/2)
    assert graded.quality == pytest.approx(
        {"accuracy": 2 / 3, "fair_accuracy": 2 / 3, "fair_f1": 0.4, "gap": 2 / 3}
    )
    assert graded.report == (
        "The submission is valid.\n"
        "accuracy 0.6667 (larger is better); a trivial baseline has 0.5, a strong "
        "reference model 0.75; relative performance gap 0.67\n"
        "accuracy 0.667, macro F1 0.4"
    )


def test_probabilities_of_classes_are_turned_into_classes(shares):
    graded = grade("id,a,b,c\n1,.6,.2,.2\n2,.5,.1,.4\n", shares)
    # right and wrong: classes 0, 2 named 0, 0: F1 2/3 and 0
    assert graded.quality["fair_accuracy"] == 0.5
    assert graded.quality["fair_f1"] == pytest.approx(1 / 3)
    assert graded.value == pytest.approx(-(math.log(0.6) + math.log(0.4)) / 2)
    assert "gap" not in graded.quality  # there is no reference
    assert "reference" not in graded.report


def test_a_probability_of_one_class_is_cut_at_a_half(classes):
    spec = dataclasses.replace(
        classes, metric="roc_auc", classes=("0", "1"), reference=None
    )
    graded = grade("id,y\n1,0.4\n2,0.5\n3,0.3\n", spec)
    # pairs: 0.5 over 0.4, 0.3 not; classes 0, 1, 0 for 0, 1, 1
    assert graded.value == 0.5
    assert graded.quality["fair_accuracy"] == pytest.approx(2 / 3)


def test_a_regression_has_its_error_in_percent_of_the_range(numbers):
    graded = grade("id,y\n1,0\n2,10\n3,40\n", numbers)
    # sqrt(400 / 3) of a range of 40
    percent = 100 * math.sqrt(400 / 3) / 40
    assert graded.quality["fair_rmse_percent"] == pytest.approx(percent)
    error = (math.log(41) - math.log(21)) / math.sqrt(3)
    assert graded.value == pytest.approx(error)
    assert graded.quality["gap"] == pytest.approx((1 - error) / 0.8)
    assert graded.report.endswith("RMSE 28.9% of the target's range")


def test_a_failed_run_counts_as_the_paper_says(numbers, classes, shares):
    assert grade("no", numbers).quality == {"fair_rmse_percent": 50.0, "gap": 0.0}
    assert grade("no", classes).quality == {
        "fair_accuracy": 0.5,
        "fair_f1": 0.0,
        "gap": 0.0,
    }
    graded = grade(None, shares)
    assert "gap" not in graded.quality and graded.value is None
    assert graded.report == ("The submission is not valid: there is no submission file")


def test_the_gap_is_cut_below_and_not_above(classes, numbers):
    assert relative_gap(classes, 0.4) == 0.0
    assert relative_gap(classes, 0.625) == pytest.approx(0.5)
    assert relative_gap(classes, 1.0) == pytest.approx(2.0)
    assert relative_gap(numbers, 0.6) == pytest.approx(0.5)  # smaller is better
    assert relative_gap(numbers, 3.0) == 0.0


def test_a_reference_must_be_better_than_the_baseline(classes):
    with pytest.raises(ValueError, match="no better than the baseline"):
        dataclasses.replace(classes, reference=0.5)


def test_a_regression_needs_its_ranges(numbers):
    for ranges in ((), (0.0,), (1.0, 2.0)):
        with pytest.raises(ValueError, match="target_range"):
            dataclasses.replace(numbers, target_range=ranges)


def test_a_spec_survives_json(numbers, classes, shares):
    for spec in (numbers, classes, shares):
        row = json.loads(json.dumps(spec.to_dict()))
        assert SubmissionSpec.from_dict(row) == spec


# --- the grader ----------------------------------------------------------------


def _task(spec):
    return Task("t", "?", grader="submission", metadata={"submission": spec.to_dict()})


async def test_the_grader_says_whether_and_how_well(classes):
    grader = SubmissionGrader()
    good, bad = await asyncio.gather(
        grader.grade(_task(classes), "id,y\n1,0\n2,1\n3,1\n"),
        grader.grade(_task(classes), None),
    )
    assert (good.score, good.quality["accuracy"]) == (1.0, 1.0)
    assert good.report.startswith("The submission is valid.\naccuracy 1 ")
    assert (bad.score, bad.answer) == (0.0, None)
    assert "no submission file" in bad.report


async def test_the_answers_are_read_once(classes, monkeypatch):
    reads = []

    def load(spec):
        reads.append(spec)
        return load_answers(spec)

    monkeypatch.setattr(submission, "load_answers", load)
    grader = SubmissionGrader()
    for _ in range(3):
        await grader.grade(_task(classes), "id,y\n1,0\n2,1\n3,1\n")
    assert reads == [classes]


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "cannot be read"),
        ("id\n1\n", "cannot be read"),
        ("id,y\n1,0\n1,1\n", "ids are not unique"),
        ("id,y\n1,0\n2,9\n", "'9' is no class"),
    ],
)
async def test_broken_answers_are_never_the_agents_doing(
    classes, tmp_path, text, message
):
    path = tmp_path / "answers.csv"
    if text is not None:
        path.write_text(text)
    spec = dataclasses.replace(classes, answers=str(path))
    with pytest.raises(GradingError, match=message):
        await SubmissionGrader().grade(_task(spec), "id,y\n1,0\n")


async def test_answers_that_the_metric_cannot_use(classes, tmp_path):
    path = _answers(tmp_path, "id,y\n1,1\n2,1\n")
    spec = dataclasses.replace(
        classes, answers=path, metric="roc_auc", classes=("0", "1")
    )
    with pytest.raises(GradingError, match="roc_auc is not defined: .*one value"):
        await SubmissionGrader().grade(_task(spec), "id,y\n1,0\n2,1\n")


async def test_a_task_without_a_spec_is_ours_to_mend():
    with pytest.raises(GradingError, match="without metadata 'submission'"):
        await SubmissionGrader().grade(Task("t", "?"), "")


def test_predictions_are_typed(numbers, classes):
    assert validate("id,y\n1,1\n2,2\n3,3\n", numbers)["y"].dtype == np.float64
    assert validate("id,y\n1,1\n2,2\n3,0\n", classes)["y"].dtype.kind == "i"
