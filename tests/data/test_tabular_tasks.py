"""Modelling tasks of scikit-learn's sets and generators, written as folders."""

import collections
import hashlib
import itertools
import json
import pathlib

import pandas as pd
import pytest

from mappa_jax.config import DataConfig
from mappa_jax.data import DataError, load_data, tabular_tasks
from mappa_jax.data.sources import load_tasks, parse_sources
from mappa_jax.data.tabular_recipes import RECIPES, SHIPPED
from mappa_jax.tabular.metrics import find_metric
from mappa_jax.tabular.submission import SubmissionSpec, grade, load_answers

SMALL = {"tabular": {"rows": 120}}


def _load(folder, text="tabular:generated", split="train", **changes):
    settings = {"train_size": 16, "eval_size": 4, "params": SMALL} | changes
    config = DataConfig(cache_dir=str(folder), **settings)
    (spec,) = parse_sources(text)
    return load_tasks(spec, split, config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def train(folder):
    return _load(folder)


@pytest.fixture(scope="module")
def held_out(folder):
    return _load(folder, split="test")


@pytest.fixture(scope="module")
def shipped(folder):
    """The sets, with few rows."""
    return {split: _load(folder, "tabular:sklearn", split) for split in SPLITS}


SPLITS = ("train", "test")


def _spec(task):
    return SubmissionSpec.from_dict(task.metadata["submission"])


def _table(task, name):
    return pd.read_csv(task.files[name], index_col="id")


def _hashes(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
    }


def test_sixteen_tasks_hold_every_recipe_and_both_kinds_alike(train):
    assert {task.metadata["recipe"] for task in train} == set(RECIPES)
    kinds = collections.Counter(task.kind for task in train)
    assert kinds == {"classification": 8, "regression": 8}
    for task in train:
        assert task.kind == RECIPES[task.metadata["recipe"]].kind == _spec(task).kind
        assert (task.grader, task.answer, task.source) == (
            "submission",
            None,
            "generated",
        )


def test_the_kinds_have_the_same_share_in_both_splits(train, held_out):
    assert len(held_out) == 4
    for tasks in (train, held_out):
        half = collections.Counter(task.kind for task in tasks)["regression"]
        assert 2 * half == len(tasks)


def test_all_levels_occur(train):
    assert {task.metadata["level"] for task in train} == {"easy", "medium", "hard"}


def test_the_files_are_those_of_a_competition(train):
    for task in train:
        spec = _spec(task)
        first, test = _table(task, "train.csv"), _table(task, "test.csv")
        sample = _table(task, "sample_submission.csv")
        assert set(task.files) == {"train.csv", "test.csv", "sample_submission.csv"}
        assert len(first) + len(test) <= 120
        assert not set(first.index) & set(test.index)
        assert test.index.equals(sample.index)
        assert tuple(sample.columns) == spec.targets
        assert not set(spec.targets) & set(test.columns)
        assert set(test.columns) < set(first.columns)
        assert (sample.nunique() == 1).all()


def test_the_answers_lie_apart_and_fit(train):
    for task in train:
        spec, answers = _spec(task), load_answers(_spec(task))
        public = {pathlib.Path(path).parent for path in task.files.values()}
        assert len(public) == 1 and public.isdisjoint(
            pathlib.Path(spec.answers).parents
        )
        assert [i for (i,) in answers.ids] == [
            str(i) for i in _table(task, "test.csv").index
        ]


def test_the_sample_is_valid_and_the_truth_is_perfect(train):
    for task in train:
        spec = _spec(task)
        sample = pathlib.Path(task.files["sample_submission.csv"]).read_text()
        assert grade(sample, spec).valid
        truth = pathlib.Path(spec.answers).read_text()
        perfect = grade(truth, spec)
        best = find_metric(spec.metric).best
        assert perfect.value == pytest.approx(best, abs=1e-9)


def test_the_ends_of_the_scale(train):
    for task in train:
        spec = _spec(task)
        metric = find_metric(spec.metric)
        assert spec.reference is not None, task.id
        assert metric.better(spec.reference, spec.baseline), task.id
        assert not metric.better(spec.reference, metric.best)


def test_the_statement_says_what_is_needed(train):
    for task in train:
        spec, text = _spec(task), task.prompt
        metric = find_metric(spec.metric)
        assert metric.words in text and f"`{metric.name}`" in text
        assert ("larger" if metric.larger_is_better else "smaller") in text
        header = ",".join(["id", *spec.targets])
        lines = text.splitlines()
        example = lines[lines.index(header) :]
        ids = _table(task, "test.csv").index[:3]
        assert [line.split(",")[0] for line in example[1:]] == [str(i) for i in ids]
        for name in (*task.files, "submission.csv", *spec.targets):
            assert name in text
        for name in _table(task, "train.csv").columns:
            assert f"`{name}`" in text


def test_the_example_lines_would_be_valid(train):
    for task in train:
        spec = _spec(task)
        line = task.prompt.splitlines()[-1].split(",", 1)[1]
        ids = _table(task, "test.csv").index
        header = ",".join(["id", *spec.targets])
        text = "\n".join([header, *(f"{i},{line}" for i in ids)])
        assert grade(text, spec).valid


def _one(tasks, recipe):
    return next(task for task in tasks if task.metadata["recipe"] == recipe)


def test_the_difficulties_are_there(train):
    assert _table(_one(train, "holes"), "train.csv").isna().to_numpy().any()
    assert _table(_one(train, "holes"), "test.csv").isna().to_numpy().any()
    words = _table(_one(train, "categories"), "train.csv")
    assert sum(words.dtypes == "str") == 4  # three features and the target
    dates = _table(_one(train, "calendar"), "train.csv")["date"]
    assert dates.str.fullmatch(r"20\d\d-\d\d-\d\d").all()
    revenue = _table(_one(train, "skewed"), "train.csv")["revenue"]
    assert revenue.mean() > 1.2 * revenue.median() and revenue.min() > 0
    fraud = _table(_one(train, "rare"), "train.csv")["fraud"]
    assert 0 < fraud.mean() < 0.25
    assert len(_spec(_one(train, "several")).targets) == 3
    assert len(_spec(_one(train, "shares")).targets) == 3


def test_a_leak_is_true_in_train_and_noise_or_absent_in_test(tmp_path):
    tasks = _load(tmp_path, "tabular:leaky_amount", train_size=6)
    seen = set()
    for task in tasks:
        first, test = _table(task, "train.csv"), _table(task, "test.csv")
        assert first["invoice_total"].corr(first["hours"]) > 0.999
        seen.add("invoice_total" in test)
        assert ("without `invoice_total`" in task.prompt) is (
            "invoice_total" not in test
        )
        if "invoice_total" in test:
            truth = pd.read_csv(_spec(task).answers, index_col="id")["hours"]
            assert abs(test["invoice_total"].corr(truth)) < 0.6
    assert seen == {True, False}


def test_rewriting_gives_the_same_bytes(folder, train, tmp_path):
    again = _load(tmp_path, train_size=4)
    written = _hashes(tmp_path)
    assert len(written) == 4 * 5
    assert written.items() <= _hashes(folder).items()
    assert [t.prompt for t in again] == [t.prompt for t in train[:4]]


def test_files_that_are_there_are_not_written_again(folder, train, monkeypatch):
    monkeypatch.setattr(tabular_tasks, "_write", None)  # a use would fail
    assert _load(folder) == train


def test_another_seed_or_size_gives_other_tasks(folder, train, tmp_path):
    other = _load(tmp_path, train_size=2, seed=1)
    assert {t.prompt for t in other}.isdisjoint(t.prompt for t in train)
    places = {pathlib.Path(t.files["train.csv"]).parents[2] for t in (*other, *train)}
    assert len(places) == 2


def test_a_split_does_not_depend_on_the_others_size(folder, train, held_out):
    assert _load(folder, train_size=3) == train[:3]
    assert _load(folder, split="test", train_size=99, eval_size=2) == held_out[:2]
    assert _load(folder, split="test", eval_size=0) == []


def test_a_recipe_by_its_own_name_gives_the_same_tasks(folder, train):
    (moons,) = _load(folder, "tabular:moons", train_size=1)
    assert moons.source == "moons"
    assert moons.prompt == _one(train, "moons").prompt


def test_the_splits_share_no_task(train, held_out):
    assert {t.prompt for t in train}.isdisjoint(t.prompt for t in held_out)
    assert {t.id for t in train}.isdisjoint(t.id for t in held_out)


# --- shipped sets --------------------------------------------------------------


def test_no_shipped_set_is_in_both_splits(shipped):
    sets = {s: {t.metadata["recipe"] for t in shipped[s]} for s in SPLITS}
    assert sets["train"].isdisjoint(sets["test"])
    assert sets["train"] | sets["test"] == set(SHIPPED)
    for tasks in shipped.values():
        assert {t.kind for t in tasks} == {"classification", "regression"}


def test_the_seed_deals_the_sets_out():
    dealt = {tuple(tabular_tasks._dealt("test", seed)) for seed in range(20)}
    assert len(dealt) > 3
    for seed in range(20):
        both = [tabular_tasks._dealt(split, seed) for split in SPLITS]
        assert sorted(itertools.chain(*both)) == sorted(SHIPPED)


def test_every_shipped_set_has_its_metrics(shipped):
    found = collections.defaultdict(set)
    for task in itertools.chain(*shipped.values()):
        spec = _spec(task)
        found[task.metadata["recipe"]].add(spec.metric)
        sample = pathlib.Path(task.files["sample_submission.csv"]).read_text()
        assert grade(sample, spec).valid
    assert found == {name: set(entry.metrics) for name, entry in SHIPPED.items()}


def test_the_shipped_sets_are_real(shipped):
    tasks = {t.id: t for t in itertools.chain(*shipped.values())}
    iris = _table(tasks["iris-accuracy"], "train.csv")
    assert set(iris["species"]) == {"setosa", "versicolor", "virginica"}
    linnerud = _spec(tasks["linnerud-mcrmse"])
    assert linnerud.targets == ("weight", "waist", "pulse")
    assert linnerud.target_range == (109.0, 15.0, 28.0)
    digits = _table(tasks["digits-map_at_3"], "test.csv")
    assert len(digits.columns) == 64


def test_a_set_by_its_own_name_is_for_either_split_but_not_for_both(folder):
    ours = _load(folder, "tabular:iris")
    assert ours == _load(folder, "tabular:iris", "test")
    assert {t.metadata["recipe"] for t in ours} == {"iris"}
    config = DataConfig(
        source="tabular:iris",
        cache_dir=str(folder),
        params=SMALL,
        prompts_per_step=2,
    )
    with pytest.raises(DataError, match="occur in the training pool"):
        load_data(config)


def test_all_is_both(folder, train, shipped):
    both = _load(folder, "tabular:all")
    assert [t.id for t in both] == [t.id for t in (*train, *shipped["train"])]
    assert {t.source for t in both} == {"all"}


# --- through the front door ----------------------------------------------------


def test_a_run_gets_disjoint_splits_and_even_batches(folder):
    config = DataConfig(
        source="tabular:generated",
        cache_dir=str(folder),
        train_size=16,
        eval_size=4,
        params=SMALL,
        prompts_per_step=4,
        stratify=True,
    )
    data = load_data(config)
    assert data.overlap == [] and len(data.eval["generated"]) == 4
    for step in range(8):
        kinds = collections.Counter(t.kind for t in data.train.batch(step))
        assert kinds == {"classification": 2, "regression": 2}


def test_it_stands_beside_other_sources(folder):
    made = _load(
        folder,
        "reasoning_gym:chain_sum",
        params=SMALL | {"chain_sum": {"max_terms": 3}},
    )
    assert len(made) == 16


@pytest.mark.parametrize(
    "text, params, message",
    [
        ("tabular:nonsense", {}, "no tasks 'nonsense'; there are generated, sklearn"),
        ("tabular:moons", {"size": 3}, "no parameter 'size'; there are rows, levels"),
        ("tabular:moons", {"rows": 10}, "rows=10 must be at least 60"),
        ("tabular:moons", {"rows": "many"}, "rows='many' must be"),
        ("tabular:moons", {"levels": ["fatal"]}, "some of easy, medium, hard"),
        ("tabular:moons", {"levels": []}, "some of easy, medium, hard"),
        ("tabular:moons", {"levels": "easy"}, "some of easy, medium, hard"),
    ],
)
def test_bad_requests_are_refused(tmp_path, text, params, message):
    with pytest.raises(DataError, match=message):
        _load(tmp_path, text, params={"tabular": params})


def test_levels_can_be_chosen(tmp_path):
    params = {"tabular": {"rows": 80, "levels": ["easy"]}}
    tasks = _load(tmp_path, "tabular:linear", train_size=2, params=params)
    assert [t.metadata["level"] for t in tasks] == ["easy", "easy"]


def test_a_broken_folder_says_what_to_do(tmp_path):
    (task,) = _load(tmp_path, "tabular:linear", train_size=1)
    kept = pathlib.Path(_spec(task).answers).with_name("task.json")
    kept.write_text("{")
    with pytest.raises(DataError, match="task.json: cannot be read .*delete .*anew"):
        _load(tmp_path, "tabular:linear", train_size=1)


def test_nothing_is_left_of_a_task_that_could_not_be_written(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tabular_tasks, "_csv", fail)
    with pytest.raises(DataError, match="No space left .*data.cache_dir"):
        _load(tmp_path, "tabular:linear", train_size=1)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_two_writers_do_not_disturb_each_other(tmp_path, monkeypatch):
    fill = tabular_tasks._fill

    def overtaken(draft, folder, seed, params):
        fill(draft, folder, seed, params)
        monkeypatch.setattr(tabular_tasks, "_fill", fill)
        _load(tmp_path, "tabular:linear", train_size=1)

    monkeypatch.setattr(tabular_tasks, "_fill", overtaken)
    (task,) = _load(tmp_path, "tabular:linear", train_size=1)
    folder = pathlib.Path(_spec(task).answers).parents[2]
    assert [p.name for p in folder.iterdir()] == ["linear-train-0"]


def test_metadata_can_be_recorded(train):
    for task in train:
        assert json.loads(json.dumps(task.metadata)) == task.metadata
