"""Grading: what is right, what is wrong, and what must not hang a run."""

import asyncio

import pytest

from mappa_jax.answers import Grader, extract_boxed
from mappa_jax.types import Outcome, Task


@pytest.fixture(scope="module")
def grader():
    grader = Grader(workers=1, seconds=1.5)
    yield grader
    grader.close()


def _task(answer, grader="math", **metadata):
    return Task("t", "?", answer, grader=grader, metadata=metadata)


@pytest.mark.parametrize(
    "text, content",
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{7} and then \boxed{8", "7"),
        (r"} { \boxed {9}", "9"),
        (r"\boxed{}", ""),
        ("42", None),
        (r"\boxed 42", None),
    ],
)
def test_the_last_balanced_box_is_the_answer(text, content):
    assert extract_boxed(text) == content


def test_extraction_of_many_open_boxes_is_linear():
    # The quadratic way takes minutes here, and the test's time limit with it.
    assert extract_boxed(r"\boxed{" * 200_000) is None


@pytest.mark.parametrize(
    "answer, reference, score",
    [
        ("60", "60", 1.0),
        ("060", "60", 1.0),
        ("61", "60", 0.0),
        ("1,000", "1000", 1.0),
        ("$-4.0$", "-4", 1.0),
        ("336", r"336^\circ", 1.0),
        ("337", r"336^\circ", 0.0),
    ],
)
def test_plain_numbers_need_no_worker(answer, reference, score):
    grader = Grader(workers=1, seconds=1.0)
    grader._ask = None  # a request would fail
    graded = grader.grade_now(_task(reference), rf"\boxed{{{answer}}}")
    grader.close()
    assert graded.outcome == Outcome(score, answer) and graded.reason is None


@pytest.mark.parametrize(
    "answer, reference, score",
    [
        (r"\frac{120}{2}", "60", 1.0),
        ("m = 60", "60", 1.0),
        (r"2\sqrt{2}", r"\sqrt{8}", 1.0),
        ("0.3333333333", "1/3", 1.0),
        (r"\sqrt{3}", r"\sqrt{8}", 0.0),
        ("", "60", 0.0),
        (r"\frac{", "60", 0.0),
    ],
)
def test_expressions_are_compared_by_value(grader, answer, reference, score):
    text = rf"\boxed{{{answer}}}"
    assert asyncio.run(grader.grade(_task(reference), text)).score == score


def test_each_accepted_answer_is_right(grader):
    task = _task("080 or 081 (both)", accepted_answers=["080", "081"])
    scores = [
        grader.grade_now(task, rf"\boxed{{{a}}}").outcome.score
        for a in ("80", "81", "82", "80+1")
    ]
    assert scores == [1.0, 1.0, 0.0, 1.0]


def test_a_text_without_a_box_is_wrong_and_says_why(grader):
    graded = grader.grade_now(_task("60"), "the answer is 60")
    assert graded.outcome == Outcome(0.0, None)
    assert graded.reason == "no boxed answer"


def test_no_ground_truth_is_no_outcome(grader):
    assert grader.grade_now(_task(None), r"\boxed{1}") is None


def test_exact_ignores_spacing_only(grader):
    def score(text):
        return grader.grade_now(_task("a  b", "exact"), text).outcome.score

    assert score(r"\boxed{ a b }") == 1.0
    assert score(r"\boxed{ A b }") == 0.0


def test_an_unknown_grader_is_refused(grader):
    with pytest.raises(ValueError, match="unknown grader 'maths'"):
        grader.grade_now(_task("1", "maths"), r"\boxed{1}")


def test_a_pathological_answer_is_wrong_and_the_next_grade_works(grader):
    async def both():
        bad = grader.grade_reasoned(_task("60"), r"\boxed{9^{9^{9^{9}}}}")
        bad = await asyncio.wait_for(bad, timeout=15.0)
        good = await grader.grade(_task("60"), r"\boxed{\frac{120}{2}}")
        return bad, good

    before = grader.reasons["timeout"]
    bad, good = asyncio.run(both())
    assert bad.outcome == Outcome(0.0, "9^{9^{9^{9}}}") and bad.reason == "timeout"
    assert grader.reasons["timeout"] == before + 1
    assert good.score == 1.0


def test_a_worker_killed_from_outside_is_replaced_without_a_score(grader):
    assert grader.grade_now(_task("1/2"), r"\boxed{2/4}").outcome.score == 1.0
    grader._all[0]._process.kill()
    assert grader.grade_now(_task("1/2"), r"\boxed{2/4}").outcome.score == 1.0


def test_a_grader_serves_several_event_loops(grader):
    scores = [
        asyncio.run(grader.grade(_task("1/2"), r"\boxed{3/6}")).score for _ in range(2)
    ]
    assert scores == [1.0, 1.0]


def test_the_loop_runs_on_while_an_answer_is_compared(grader):
    async def ticks():
        grading = asyncio.ensure_future(
            grader.grade(_task("60"), r"\boxed{9^{9^{9}} + x}")
        )
        count = 0
        while not grading.done():
            await asyncio.sleep(0.01)
            count += 1
        return count

    assert asyncio.run(ticks()) > 20


def test_families_of_reasoning_gym_score_their_own_way():
    task = Task(
        "c",
        "State the final answer: 400 + 9600 =",
        "10000",
        grader="reasoning_gym:chain_sum",
        metadata={"entry": {}, "params": {"max_terms": 2}},
    )
    grader = Grader(workers=1, seconds=5.0)
    try:
        # Commas and trailing zeros are this scorer's rule; text equality would fail.
        right = grader.grade_now(task, r"\boxed{10,000.0}")
        wrong = grader.grade_now(task, r"\boxed{9999}")
    finally:
        grader.close()
    assert right.outcome.score == 1.0
    assert wrong.outcome.score < 1.0
