"""reasoning-gym families: distinct problems, disjoint splits, honest refusals."""

import json

import pytest

from mappa_jax.answers import Grader
from mappa_jax.config import DataConfig
from mappa_jax.data import DataError, procedural
from mappa_jax.data.overlap import normalise
from mappa_jax.data.sources import load_tasks, parse_sources


def _load(family, split="train", **config):
    (spec,) = parse_sources(f"reasoning_gym:{family}")
    return load_tasks(spec, split, DataConfig(**config))


@pytest.mark.parametrize("family", ["chain_sum", "gsm_symbolic"])
def test_splits_are_distinct_disjoint_and_reproducible(family):
    train, test = _load(family), _load(family, "test")
    assert (len(train), len(test)) == (1024, 64)
    prompts = {normalise(task.prompt) for task in (*train, *test)}
    assert len(prompts) == 1024 + 64
    assert len({task.id for task in (*train, *test)}) == 1024 + 64
    assert train == _load(family)
    assert train[0].grader == f"reasoning_gym:{family}"
    json.dumps(train[0].metadata, allow_nan=False)


def test_a_space_of_few_problems_still_splits_cleanly():
    # 200 problems in all: two digits and a sign, so streams are bound to collide.
    config = {
        "params": {"chain_sum": {"max_terms": 2, "max_digits": 1}},
        "train_size": 120,
        "eval_size": 40,
    }
    train, test = (_load("chain_sum", split, **config) for split in ("train", "test"))
    assert not {t.prompt for t in train} & {t.prompt for t in test}


def test_neighbouring_seeds_share_hardly_a_problem():
    one, two = ({t.prompt for t in _load("chain_sum", seed=s)} for s in (0, 1))
    assert len(one & two) < 50


def test_the_test_split_does_not_depend_on_the_training_size():
    small = _load("chain_sum", "test", train_size=8)
    assert small == _load("chain_sum", "test", train_size=800)


def test_too_few_distinct_problems_are_refused():
    params = {"chain_sum": {"max_terms": 2, "max_digits": 1}}
    with pytest.raises(DataError, match=r"distinct train .*data\.train_size asks for"):
        _load("chain_sum", params=params, train_size=300, eval_size=10)


@pytest.mark.parametrize(
    "params, message",
    [
        ({"max_term": 3}, "no parameter 'max_term'; did you mean .*max_terms"),
        ({"seed": 3}, r"data\.params\.chain_sum\.seed: set data\.seed"),
        ({"min_terms": 9, "max_terms": 2}, "refused by the family: max_terms must"),
    ],
)
def test_bad_parameters_are_named(params, message):
    with pytest.raises(DataError, match=message):
        _load("chain_sum", params={"chain_sum": params})


def test_parameters_of_a_family_that_there_is_not_are_refused():
    procedural.check_params({"chain_sum": {}, "gsm_symbolic": {}})
    with pytest.raises(DataError, match="data.params.chain_sums: .*chain_sum"):
        procedural.check_params({"chain_sums": {}})


def test_an_unknown_family_suggests_one():
    with pytest.raises(DataError, match="'chain_sums'; did you mean .*chain_sum"):
        _load("chain_sums")


@pytest.fixture(scope="module")
def grader():
    grader = Grader(workers=1, seconds=10.0)
    yield grader
    grader.close()


# dice: plain; word_ladder: no single answer; puzzle24: its scorer reads the
# parameters; rearc: compares tuples, which JSON has not.
@pytest.mark.parametrize("family", ["dice", "puzzle24", "word_ladder", "rearc"])
def test_an_entry_that_went_through_json_is_scored_right(grader, family):
    (task,) = _load(family, train_size=1, eval_size=1)
    right = grader.grade_now(task, rf"\boxed{{{task.answer}}}")
    wrong = grader.grade_now(task, r"\boxed{zebra}")
    assert right.outcome.score == 1.0
    assert wrong.outcome.score < 0.5


def test_the_scorer_is_the_one_of_these_parameters(grader):
    # With numbers up to 6 only, 24 by hand from (6, 6, 6, 6) is right; an expression
    # over other numbers is not.
    params = {"puzzle24": {"min_value": 6, "max_value": 6}}
    (task,) = _load("puzzle24", train_size=1, eval_size=0, params=params)
    assert grader.grade_now(task, r"\boxed{6+6+6+6}").outcome.score == 1.0
    assert grader.grade_now(task, r"\boxed{8+8+4+4}").outcome.score < 1.0
