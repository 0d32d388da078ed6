"""What may be said of a run's evaluations, and what may not."""

import pytest

from mappa_jax.report.verdict import judge_run


def row(step, avg, label="team", half=0.1, problems=40, source="sums"):
    found = {"avg": avg, "avg_low": avg - half, "avg_high": avg + half}
    return {
        "step": step,
        "label": label,
        "sources": {source: found | {"problems": problems}},
    }


def scores(values, source="sums"):
    return {source: {f"t{i}": float(v) for i, v in enumerate(values)}}


BEFORE, AFTER = ("team", 0), ("team", 9)


def test_paired_problems_show_what_the_two_intervals_hide():
    """Every problem is better by 0.05 while problems differ by far more."""
    hard = [i / 20 for i in range(20)]
    rows = [row(0, 0.475, half=0.13), row(9, 0.525, half=0.13)]
    paired = {BEFORE: scores(hard), AFTER: scores([v + 0.05 for v in hard])}
    found = judge_run(rows, paired)
    assert found["tone"] == "better"
    (one,) = found["comparisons"]
    assert one["paired"] and one["problems"] == 20
    assert one["difference"] == pytest.approx(0.05)
    assert one["low"] == pytest.approx(0.05) == one["high"]
    assert "+0.05 [+0.05, +0.05]" in found["headline"]
    assert judge_run(rows, {})["tone"] == "unclear"


def test_the_interval_holds_the_difference_and_its_sign():
    before, after = [0] * 12, [1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    paired = {BEFORE: scores(before), AFTER: scores(after)}
    (one,) = judge_run([row(0, 0), row(9, 0.25)], paired)["comparisons"]
    assert one["low"] <= one["difference"] == 0.25 <= one["high"]
    swapped = {BEFORE: scores([1] * 12), AFTER: scores([0] * 12)}
    assert judge_run([row(0, 1), row(9, 0)], swapped)["tone"] == "worse"


def test_only_problems_of_both_are_compared():
    before = scores([0.0] * 10)
    after = {"sums": {f"t{i}": 1.0 for i in range(4, 14)}}
    (one,) = judge_run([row(0, 0), row(9, 1)], {BEFORE: before, AFTER: after})[
        "comparisons"
    ]
    assert one["problems"] == 6


def test_of_few_problems_nothing_is_said():
    paired = {BEFORE: scores([0] * 4), AFTER: scores([1] * 4)}
    found = judge_run([row(0, 0), row(9, 1)], paired)
    assert found["tone"] == "unclear"
    assert "fewer than 5 problems" in found["sentences"][0]


@pytest.mark.parametrize(
    "after, tone", [(0.45, "better"), (0.35, "unclear"), (0.02, "unclear")]
)
def test_without_trajectories_intervals_must_lie_apart(after, tone):
    found = judge_run([row(0, 0.2), row(9, after)], {})
    assert found["tone"] == tone
    assert "cannot be paired" in found["sentences"][0]
    assert found["comparisons"][0]["low"] is None


def test_one_evaluation_says_nothing():
    found = judge_run([row(9, 0.9)], {})
    assert found["tone"] == "unknown"
    assert "one evaluation only" in found["headline"]
    assert "no evaluation yet" in judge_run([], {})["headline"]


def test_the_untrained_team_stands_for_a_start_that_was_not_evaluated():
    rows = [row(0, 0.1, "untrained"), row(0, 0.3, "single"), row(9, 0.9, "trained")]
    found = judge_run(rows, {})
    assert found["tone"] == "better"
    roles = [(c["role"], c["other"]) for c in found["comparisons"]]
    assert roles[0] == ("before", "the untrained team")
    assert roles[1][0] == "control" and "single" not in roles[1][1]
    assert any("better than one untrained agent" in s for s in found["sentences"])


def test_the_lack_of_a_control_is_said():
    found = judge_run([row(0, 0.1), row(9, 0.9)], {})
    assert any("There is no control" in s for s in found["sentences"])
    with_one = judge_run([row(0, 0.1), row(9, 0.9), row(0, 0.8, "single")], {})
    assert not any("There is no control" in s for s in with_one["sentences"])
    assert any("not shown to differ from one" in s for s in with_one["sentences"])


def test_data_sets_that_part_ways_are_mixed():
    first = [row(0, 0.1), row(9, 0.9)]
    second = [row(0, 0.9, source="words"), row(9, 0.1, source="words")]
    both = [
        {**a, "sources": a["sources"] | b["sources"]}
        for a, b in zip(first, second, strict=True)
    ]
    assert judge_run(both, {})["tone"] == "mixed"


def test_the_latest_evaluation_counts():
    rows = [row(0, 0.1), row(4, 0.9), row(9, 0.1)]
    assert judge_run(rows, {})["tone"] == "unclear"
