"""DSBench's tasks: metric and target from the statement and the tables."""

import json
import logging
import pathlib

import pytest

from mappa_jax.config import DataConfig
from mappa_jax.data import DataError, dsbench
from mappa_jax.data.dsbench import metric_of
from mappa_jax.data.sources import load_tasks, parse_sources
from mappa_jax.tabular.metrics import find_metric
from mappa_jax.tabular.submission import SubmissionSpec, grade

SHARED = pathlib.Path(__file__).parents[2] / ".." / "shared" / "data"
needs_tasks = pytest.mark.skipif(
    not SHARED.is_dir(), reason="DSBench's task files are not in ../shared/data"
)
RMSE = "Evaluation\nSubmissions are scored on the root mean squared error.\n"
ACCURACY = "Evaluation\nSubmissions are evaluated using the accuracy score.\n"
AUC = "Evaluation\nSubmissions are evaluated on area under the ROC curve.\n"
NUMBERS = {
    "train.csv": "id,x,y\n0,1,0\n1,2,4\n",
    "test.csv": "id,x\n2,3\n3,4\n",
    "sample_submission.csv": "id,y\n2,0\n3,0\n",
    "test_answer.csv": "id,y\n2,1\n3,10\n",
}


def _line(identity, statement, **metadata):
    row = {"task_id": identity, "data_type": "regression", **metadata}
    return {"prompt": statement, "answer": None, "metadata": row}


def _write(folder, lines, tables):
    """The JSON lines, and each task's tables in the archive's layout."""
    path = folder / "tasks.json"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    for identity, files in tables.items():
        for name, text in files.items():
            part = "answers" if name == "test_answer.csv" else "data_resplit"
            place = folder / part / identity / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
    return path


def _load(path, folder=None, **params):
    config = DataConfig(
        folder=str(path.parent if folder is None else folder),
        cache_dir=str(path.parent / "cache"),
        params={"dsbench": params},
    )
    (spec,) = parse_sources(f"dsbench:{path}")
    return load_tasks(spec, "train", config)


def _one(folder, statement, files, **metadata):
    path = _write(folder, [_line("t", statement, **metadata)], {"t": files})
    (task,) = _load(path)
    return task, SubmissionSpec.from_dict(task.metadata["submission"])


# --- the metric ----------------------------------------------------------------


def _real_lines():
    for split in ("train", "eval"):
        text = (SHARED / f"dsbench_modeling_{split}.json").read_text()
        yield from (json.loads(line) for line in text.splitlines() if line.strip())


@needs_tasks
def test_the_metric_of_all_real_tasks():
    cleaned = json.loads((SHARED / "dsbench_modeling_cleaned_prompts.json").read_text())
    lines = {line["metadata"]["task_id"]: line["prompt"] for line in _real_lines()}
    assert len(lines) == 72
    for identity, statement in lines.items():
        metric = find_metric(metric_of(statement))
        if identity == "liverpool-ion-switching":  # not among the short statements
            assert metric.name == "f1_macro"
            continue
        wanted = cleaned[identity]
        assert metric.name == find_metric(wanted["metric"]).name, identity
        assert metric.kind == wanted["task_type"], identity
    for identity, wanted in cleaned.items():
        short = metric_of(wanted["cleaned_prompt"])
        assert short == find_metric(wanted["metric"]).name, identity


@needs_tasks
@pytest.mark.parametrize(
    "identity, target, names",
    [
        ("playground-series-s4e6", "Target", ("Dropout", "Enrolled", "Graduate")),
        ("playground-series-s4e2", "NObeyesdad", ("Insufficient_Weight", "Obesity")),
    ],
)
def test_the_two_mislabelled_tasks_are_classifications(
    tmp_path, identity, target, names
):
    (line,) = (e for e in _real_lines() if e["metadata"]["task_id"] == identity)
    assert line["metadata"]["data_type"] == "regression"
    files = {
        "train.csv": f"id,x,{target}\n"
        + "".join(f"{i},0,{name}\n" for i, name in enumerate(names)),
        "test.csv": "id,x\n7,1\n8,2\n",
        "sample_submission.csv": f"id,{target}\n7,{names[0]}\n8,{names[0]}\n",
        "test_answer.csv": f"id,{target}\n7,{names[1]}\n8,{names[0]}\n",
    }
    (task,) = _load(_write(tmp_path, [line], {identity: files}))
    spec = task.metadata["submission"]
    assert (spec["metric"], spec["targets"]) == ("accuracy", [target])
    assert task.kind == spec["kind"] == "classification"
    assert spec["classes"] == list(names)


@pytest.mark.parametrize(
    "statement, name",
    [
        ("Evaluation\nmean column-wise root mean squared logarithmic error", "rmsle"),
        ("Evaluation\nmean columnwise root mean squared error", "mcrmse"),
        ("Evaluation\nroot mean squared log error (RMSLE)", "rmsle"),
        ("Submissions will be evaluated based on MPA@3.", "map_at_3"),
        ("Evaluation: MAP@5", "map_at_5"),
        ("Accuracy matters to us.\n## Evaluation\nThe MAE is used.", "mae"),
        ("Evaluation\nthe macro F1 score, not accuracy", "f1_macro"),
        ("Evaluation\nweighted F1, then F1", "f1_weighted"),
        ("Evaluation\nclassification accuracy; the AUC is not used", "accuracy"),
        ("**Evaluation**\n\nR^2 score", "r2"),
        ("no heading, but the log loss", "log_loss"),
    ],
)
def test_phrases(statement, name):
    assert metric_of(statement) == name


def test_an_unknown_metric_is_refused_with_the_task(tmp_path):
    path = _write(tmp_path, [_line("odd", "Evaluation\nA jury.")], {"odd": NUMBERS})
    with pytest.raises(DataError, match=r"task odd: .*no known metric .*'skip'"):
        _load(path)


# --- tables --------------------------------------------------------------------


def test_a_regression(tmp_path):
    task, spec = _one(tmp_path, RMSE, NUMBERS, data_type="classification")
    assert (task.id, task.source, task.grader) == ("t", "tasks", "submission")
    assert task.kind == spec.kind == "regression"
    assert (spec.ids, spec.targets) == (("id",), ("y",))
    # the mean of 0 and 4 against 1 and 10
    assert spec.baseline == pytest.approx(((1 + 64) / 2) ** 0.5)
    assert spec.target_range == (10.0,) and spec.reference is None
    assert task.prompt.startswith(RMSE.rstrip())
    assert task.prompt.endswith("to submission.csv, with the columns: id, y.")
    assert pathlib.Path(task.files["train.csv"]).read_text() == NUMBERS["train.csv"]
    graded = grade("id,y\n2,1\n3,10\n", spec)
    assert graded.quality == {"rmse": 0.0, "fair_rmse_percent": 0.0}


def test_columns_that_only_train_has_are_no_targets(tmp_path):
    files = NUMBERS | {"train.csv": "id,x,casual,y\n0,1,5,0\n1,2,6,4\n"}
    assert _one(tmp_path, RMSE, files)[1].targets == ("y",)


def test_several_targets_and_a_byte_order_mark(tmp_path):
    files = {
        "train.csv": "\ufeffid,a,b\n0,0,1\n1,1,0\n",
        "test.csv": "\ufeffid\n2\n3\n",
        "sample_submission.csv": "id,a,b\n2,0.5,0.5\n3,0.5,0.5\n",
        "test_answer.csv": "id,a,b\n2,1,0\n3,0,1\n",
    }
    _, spec = _one(tmp_path, AUC, files)
    assert spec.targets == ("a", "b") and spec.classes is None
    assert spec.baseline == 0.5


def test_truth_values_are_classes(tmp_path):
    files = {
        "train.csv": "id,x,y\n0,1,False\n1,1,True\n4,1,\n",
        "test.csv": "id,x\n2,0\n3,0\n",
        "sampleSubmission.csv": "id,y\n2,0.5\n3,0.5\n",
        "test_answer.csv": "id,x,y\n2,0,True\n3,0,False\n",
    }
    task, spec = _one(tmp_path, AUC, files)
    assert spec.classes == ("False", "True")
    assert grade("id,y\n2,0.9\n3,0.1\n", spec).value == 1.0
    assert task.files["sample_submission.csv"].endswith("sampleSubmission.csv")


def test_classes_that_one_table_writes_as_floats(tmp_path):
    files = NUMBERS | {
        "train.csv": "id,x,y\n0,1,1.0\n1,2,2.0\n",
        "test_answer.csv": "id,y\n2,1\n3,2\n",
    }
    _, spec = _one(tmp_path, ACCURACY, files)
    assert spec.classes == ("1", "2")
    assert grade("id,y\n2,1\n3,2.0\n", spec).value == 1.0


@pytest.mark.parametrize(
    "answers, kind, classes",
    [("1,0", "classification", ("0", "1")), ("1,10", "regression", None)],
)
def test_the_gini_coefficient_is_of_either_kind(tmp_path, answers, kind, classes):
    one, other = answers.split(",")
    files = NUMBERS | {
        "train.csv": f"id,x,y\n0,1,{one}\n1,2,{other}\n",
        "test_answer.csv": f"id,y\n2,{one}\n3,{other}\n",
    }
    task, spec = _one(tmp_path, "Evaluation\nNormalized Gini Coefficient", files)
    assert (task.kind, spec.classes) == (kind, classes)


@pytest.mark.parametrize(
    "statement, changed, message",
    [
        (RMSE, {"train.csv": "id,x\n0,1\n"}, r"train\.csv: has no column y"),
        (RMSE, {"test_answer.csv": "y\n1\n"}, r"test_answer\.csv: has no column id"),
        (RMSE, {"sample_submission.csv": "key,y\n"}, "columns key, y must be ids"),
        (RMSE, {"test_answer.csv": "id,y\n2,1\n2,2\n"}, "ids .* are not unique"),
        (RMSE, {"test_answer.csv": "id,y\n2,1\n3,big\n"}, "row 2: 'big' .*no number"),
        (RMSE, {"test_answer.csv": "id,y\n2,1\n3,\n"}, "row 2: '' .*no number"),
        (ACCURACY, {"test_answer.csv": "id,y\n2,1\n3,\n"}, "a target is empty"),
        (AUC, {}, "two classes, or a column for each"),
        (
            AUC,
            {
                "train.csv": "id,x,y\n0,0,0\n1,0,1\n",
                "test_answer.csv": "id,y\n2,1\n3,1\n",
            },
            "roc_auc is not defined: .*one value",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, statement, changed, message):
    with pytest.raises(DataError, match=rf"DSBench task t: .*{message}.*'skip'"):
        _one(tmp_path, statement, NUMBERS | changed)


def test_the_layout_of_the_metadata_will_do(tmp_path):
    deep = {
        "train_file": "./deep/data_resplit/t/train.csv",
        "answer_dir": "./deep/answers/t",
    }
    (tmp_path / "deep").mkdir()
    _write(tmp_path / "deep", [], {"t": NUMBERS})
    (task,) = _load(_write(tmp_path, [_line("t", RMSE, **deep)], {}))
    assert "/deep/" in task.files["test.csv"]
    assert "/deep/" in task.metadata["submission"]["answers"]


def test_metadata_may_be_json_in_json(tmp_path):
    line = _line("t", RMSE)
    line["metadata"] = json.dumps(line["metadata"])
    (task,) = _load(_write(tmp_path, [line], {"t": NUMBERS}))
    assert task.id == "t"


# --- what is missing -----------------------------------------------------------


def _with_gaps(tmp_path):
    part = {k: NUMBERS[k] for k in ("train.csv", "test_answer.csv")}
    lines = [_line(name, RMSE) for name in ("whole", "partly", "none")]
    return _write(tmp_path, lines, {"whole": NUMBERS, "partly": part})


def test_missing_tables_are_named(tmp_path):
    with pytest.raises(DataError) as caught:
        _load(_with_gaps(tmp_path))
    message = str(caught.value)
    assert "2 of 3 tasks miss tables" in message
    assert "partly: data_resplit/partly/test.csv, data_resplit/partly/sample" in message
    assert "none: data_resplit/none/train.csv" in message
    assert "answers/none/test_answer.csv" in message
    assert "huggingface.co" in message and "skip_missing" in message


def test_missing_tasks_can_be_left_out(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        tasks = _load(_with_gaps(tmp_path), skip_missing=True)
    assert [task.id for task in tasks] == ["whole"]
    assert "none: data_resplit/none/train.csv" in caplog.text
    assert [t.id for t in _load(tmp_path / "tasks.json", skip=["partly", "none"])] == [
        "whole"
    ]


def test_leaving_out_everything_is_refused(tmp_path):
    path = _write(tmp_path, [_line("t", RMSE)], {})
    with pytest.raises(DataError, match="1 of 1 tasks miss"):
        _load(path, skip_missing=True)


def test_without_a_folder_the_error_says_what_to_set(tmp_path):
    path = _write(tmp_path, [_line("t", RMSE)], {})
    with pytest.raises(DataError, match=r"set data\.folder .*huggingface"):
        _load(path, folder="")


@pytest.mark.parametrize(
    "line, message",
    [
        ({"prompt": "p"}, r"tasks\.json:1: 'metadata' must be .*task_id"),
        ({"prompt": "p", "metadata": {}}, r"tasks\.json:1: 'metadata' must be"),
        ({"prompt": "p", "metadata": "{"}, r"tasks\.json:1: 'metadata' is no JSON"),
        ({"metadata": {"task_id": "t"}}, r"tasks\.json:1: .*'prompt' is missing"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        _load(_write(tmp_path, [line], {}))


def test_a_task_that_occurs_twice_is_refused(tmp_path):
    path = _write(tmp_path, [_line("t", RMSE)] * 2, {"t": NUMBERS})
    with pytest.raises(DataError, match="a task_id occurs twice"):
        _load(path)


def test_an_unknown_parameter_is_refused(tmp_path):
    path = _write(tmp_path, [_line("t", RMSE)], {"t": NUMBERS})
    with pytest.raises(DataError, match="no parameter 'skipmissing'"):
        _load(path, skipmissing=True)


# --- short statements and the cache --------------------------------------------


def test_short_statements_are_shown_and_the_long_ones_read(tmp_path, caplog):
    path = _write(
        tmp_path,
        [_line("a", RMSE), _line("b", RMSE)],
        {"a": NUMBERS, "b": NUMBERS},
    )
    short = tmp_path / "short.json"
    short.write_text(json.dumps({"a": {"cleaned_prompt": "Predict y.", "metric": "?"}}))
    with caplog.at_level(logging.WARNING):
        one, other = _load(path, prompts=str(short))
    assert one.prompt.startswith("Predict y.\n\nThe files are train.csv")
    assert other.prompt.startswith(RMSE.rstrip())
    assert "no statement of b" in caplog.text
    assert one.metadata["submission"]["metric"] == "rmse"
    short.write_text('["a"]')
    with pytest.raises(DataError, match="cleaned_prompt"):
        _load(path, prompts=str(short))


def test_specs_are_kept_until_the_tables_change(tmp_path, monkeypatch):
    first, _ = _one(tmp_path, RMSE, NUMBERS)
    kept = dsbench._spec
    monkeypatch.setattr(dsbench, "_spec", None)  # a use would fail
    assert _one(tmp_path, RMSE, {})[0] == first
    monkeypatch.setattr(dsbench, "_spec", kept)
    _, changed = _one(tmp_path, RMSE, {"test_answer.csv": "id,y\n2,1\n3,100\n"})
    assert changed.target_range == (100.0,)
