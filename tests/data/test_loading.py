"""All the data of a run, and evaluation problems that were trained on."""

import json
import pathlib

import pytest

from mappa_jax.config import DataConfig
from mappa_jax.data import DataError, Overlap, load_data
from mappa_jax.data.overlap import normalise

SHARED = pathlib.Path(__file__).parents[2] / ".." / "shared" / "data"
needs_problems = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the competition problems are not in ../shared/data"
)


def _file(tmp_path, name, *prompts):
    path = tmp_path / f"{name}.jsonl"
    rows = [json.dumps({"prompt": p, "answer": "1", "id": p}) for p in prompts]
    path.write_text("\n".join(rows))
    return f"jsonl:{path}"


@pytest.mark.parametrize(
    "one, two",
    [
        ("Find $x$ , given\n y.", "find x, given y"),
        ("What is \u201cA\u201d?", "what is 'a' ?"),
        ("Let $a \\, b$", "let a b"),
        ("\uff11 + 2", "1 + 2"),
    ],
)
def test_the_same_problem_in_other_clothes(one, two):
    assert normalise(one) == normalise(two)


@pytest.mark.parametrize(
    "one, two",
    [
        ("3 + 4", "3 - 4"),
        ("1.5", "15"),
        ("5! is", "5 is"),
        ("(1 + 2) * 3", "1 + (2 * 3)"),
        ("#.#\n...", "##.\n..."),
        ("x^2", "x2"),
    ],
)
def test_other_problems_stay_apart(one, two):
    assert normalise(one) != normalise(two)


def test_overlap_is_refused_with_its_count_and_first_ids(tmp_path):
    names = [f"problem {i}" for i in range(8)]
    config = DataConfig(
        source=_file(tmp_path, "train", *names),
        eval_source=_file(tmp_path, "eval", "new", *(f"{n} ." for n in names[:7])),
    )
    with pytest.raises(
        DataError, match="7 of 8 .*eval/problem 0 .*, \\.\\.\\."
    ) as caught:
        load_data(config)
    assert "problem 5" not in str(caught.value)
    assert 'data.on_overlap="report"' in str(caught.value)


def test_overlap_is_reported_where_that_is_asked(tmp_path):
    config = DataConfig(
        source=_file(tmp_path, "train", *"abcdefgh"),
        eval_source=_file(tmp_path, "eval", "x", "C"),
        on_overlap="report",
    )
    assert load_data(config).overlap == [Overlap("eval", "C", "train", "c")]


def test_several_evaluation_sets_by_name(tmp_path):
    config = DataConfig(
        source=_file(tmp_path, "train", *"abcdefgh"),
        eval_source=f"{_file(tmp_path, 'e1', 'x')},{_file(tmp_path, 'e2', 'y', 'z')}",
    )
    data = load_data(config)
    assert {name: len(tasks) for name, tasks in data.eval.items()} == {"e1": 1, "e2": 2}
    assert data.overlap == []
    assert len(data.train.batch(0)) == 8


def test_a_source_without_held_out_problems_evaluates_nothing(tmp_path):
    assert load_data(DataConfig(source=_file(tmp_path, "t", *"abcdefgh"))).eval == {}


def test_a_procedural_source_holds_problems_out():
    data = load_data(DataConfig(source="reasoning_gym:chain_sum"))
    assert len(data.train.tasks) == 1024
    assert [(name, len(tasks)) for name, tasks in data.eval.items()] == [
        ("chain_sum", 64)
    ]
    assert data.overlap == []


def test_an_empty_source_is_refused():
    with pytest.raises(DataError, match="data.source is empty"):
        load_data(DataConfig(source=""))


def _competition(tmp_path, source, evaluation, **config):
    return DataConfig(
        source=source,
        eval_source=evaluation,
        folder=str(SHARED),
        cache_dir=str(tmp_path),
        **config,
    )


@needs_problems
def test_the_data_of_the_reference_experiment(tmp_path):
    config = _competition(
        tmp_path,
        "competition_math:aime_1983_2024",
        "competition_math:aime_2025,competition_math:amc_eval_32",
        subset=512,
        prompts_per_step=32,
    )
    data = load_data(config)
    assert len(data.train.tasks) == 512
    assert {name: len(tasks) for name, tasks in data.eval.items()} == {
        "aime_2025": 30,
        "amc_eval_32": 32,
    }
    epoch = [task.id for step in range(16) for task in data.train.batch(step)]
    assert len(set(epoch)) == 512


@needs_problems
def test_training_on_the_evaluation_problems_is_refused(tmp_path):
    config = _competition(
        tmp_path, "competition_math:amc", "competition_math:amc_eval_32"
    )
    with pytest.raises(DataError, match="32 of 32 evaluation problems"):
        load_data(config)
