"""Trajectories as the viewer sees them."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import credit_of, make_task, make_trajectory

from mappa_jax.report.build import no_pieces
from mappa_jax.report.episodes import episode, split_thinking
from mappa_jax.report.index import columns, index_row
from mappa_jax.text import strip_thinking
from mappa_jax.types import Missing, MissingReason, Outcome, Verdict


@pytest.fixture
def trajectory():
    return make_trajectory(make_task(1, "train"), 2, 0, right=True, judged=True)


def with_end(trajectory, score, outcome, correct=None):
    last = dataclasses.replace(trajectory.verdicts[-1], score=score, correct=correct)
    return dataclasses.replace(
        trajectory,
        verdicts=(*trajectory.verdicts[:-1], last),
        outcome=None if outcome is None else Outcome(outcome),
    )


@pytest.mark.parametrize(
    "score, correct, outcome, disagrees",
    [
        (9.0, None, 1.0, False),
        (9.0, None, 0.0, True),
        (5.0, None, 0.5, True),  # half right is not right
        (4.9, None, 1.0, True),
        (2.0, True, 1.0, False),  # what the judge says of the answer goes first
        (9.0, False, 1.0, True),
        (9.0, None, None, None),
    ],
)
def test_the_judge_against_the_outcome(trajectory, score, correct, outcome, disagrees):
    row = index_row(with_end(trajectory, score, outcome, correct), None)
    assert row.judge_disagrees is disagrees
    assert row.credit_disagrees is None  # not recorded


@pytest.mark.parametrize(
    "advantage, outcome, disagrees",
    [(0.5, 1.0, False), (0.5, 0.0, True), (-0.5, 1.0, True), (-0.5, 0.0, False)]
    + [(0.0, 1.0, None), (1e-9, 0.0, None), ("nan", 0.0, None), (0.5, None, None)],
)
def test_credit_against_the_outcome(trajectory, advantage, outcome, disagrees):
    trajectory = with_end(trajectory, 9.0, outcome)
    credit = credit_of(trajectory)
    credit["actions"][-1]["advantage"] = advantage
    credit["actions"][0]["advantage"] = -0.0
    credit["actions"][1] = {"masked": "no verdict"}
    if advantage == "nan":
        credit["actions"][0]["advantage"] = "nan"
    assert index_row(trajectory, credit).credit_disagrees is disagrees


def test_what_is_missing_is_counted_and_is_no_number(trajectory):
    gone = Missing(MissingReason.TIMEOUT, "", trajectory.verdicts[0].call)
    trajectory = dataclasses.replace(
        trajectory, verdicts=(gone, *trajectory.verdicts[1:])
    )
    row = index_row(trajectory, None)
    assert row.missing == 1 and row.scores[0] is None and row.scores[1] == 8.0
    shown = episode(trajectory, None, no_pieces)["actions"][0]
    assert shown["verdict"]["missing"] == "timeout"
    assert "score" not in shown["verdict"] and shown["credit"] is None


def test_columns_hold_what_the_rows_hold(trajectory):
    rows = [(0, index_row(trajectory, credit_of(trajectory)))]
    rows.append((1, index_row(dataclasses.replace(trajectory, verdicts=()), None)))
    found = columns(rows)
    assert found["agents"] == ["solver", "coder", "verifier"]
    assert found["agent"] == [0, 1, 2, 0, 1, 2]
    assert found["score"] == [7.5, 8.0, 9.0, None, None, None]
    assert found["actions"] == [3, 3] and found["file"] == [0, 1]
    assert found["tasks"] == ["sums/train-1"] and found["task"] == [0, 0]


def test_tokens_go_with_their_ratios(trajectory):
    asked = []

    def spell(agent, ids):
        asked.append(agent)
        return {one: str(one) for one in ids}

    shown = episode(trajectory, credit_of(trajectory), spell)["actions"]
    for action, one in zip(trajectory.actions, shown, strict=True):
        credit = one["credit"]
        assert credit["ids"] == action.token_ids.tolist()
        assert len(credit["policy_reference"]) == len(credit["ids"])
        assert set(credit["pieces"]) == set(credit["ids"])
    assert asked == ["solver", "coder", "verifier"]


@pytest.mark.parametrize(
    "text, opened, thinking, said",
    [
        ("The sum is 4.", False, "", "The sum is 4."),
        ("<think>2 + 2</think>4", False, "2 + 2", "4"),
        ("2 + 2</think>\n\n4", True, "2 + 2", "4"),
        ("2 + 2 and never", True, "2 + 2 and never", ""),
        ("<think>never ends", False, "never ends", ""),
        ("", False, "", ""),
    ],
)
def test_thinking_is_told_from_what_is_said(text, opened, thinking, said):
    content = strip_thinking(text, opened=opened)
    assert split_thinking(text, content) == (thinking, said)


@given(st.text(alphabet="ab<>/think \n", max_size=40), st.booleans())
def test_nothing_that_was_said_is_lost(text, opened):
    content = strip_thinking(text, opened=opened)
    thinking, said = split_thinking(text, content)
    assert content in said
    kept = [c for c in thinking + said if c in "ab"]
    assert kept == [c for c in text if c in "ab"]


def test_a_verdict_is_shown_whole(trajectory):
    verdict = trajectory.verdicts[-1]
    assert isinstance(verdict, Verdict)
    shown = episode(trajectory, None, no_pieces)["actions"][-1]["verdict"]
    assert shown["rationale"] == verdict.rationale
    assert shown["call"]["model"] == "gemini-2.5-flash"
