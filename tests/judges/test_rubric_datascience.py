"""The data-science rubric: the blame lies with whoever owed the file."""

import pytest

from mappa_jax.judges.rubric import RubricJudge
from mappa_jax.judges.rubric_datascience import judge_action, trail
from mappa_jax.testing import make_action
from mappa_jax.types import JudgeRequest, Observation, Outcome
from mappa_jax.workflows.datascience import ROLES, SINGLE_ROLES

ENGINEERED = ("X_test.pkl", "X_train.pkl", "y_train.pkl")
MODELLED = (*ENGINEERED, "model.pkl")
NO_X_TEST = ("X_train.pkl", "y_train.pkl", "model.pkl")
MISSING = "FileNotFoundError: [Errno 2] No such file or directory: '{}'"


def ran(after, before=(), **fields):
    return Observation(files=after, files_before=before, **fields)


def crashed(after, before=(), said="ValueError: no", **fields):
    return ran(after, before, exit_status=1, stderr=f"Traceback\n{said}\n", **fields)


def request(who, seen, turn=0, before=(), outcome=None, shown=True, team=ROLES):
    role = next(r for r in team if r.name == who)
    action = make_action(who, "x", turn, code="x", observation=seen, outcome=outcome)
    reference = outcome.report if outcome is not None and shown else None
    return JudgeRequest(
        team=team,
        role=role,
        task="task",
        action=action,
        token_limit=9,
        before=before,
        reference=reference,
    )


def points(*args, style="balanced", **fields):
    return judge_action(request(*args, **fields), style).points


def test_an_agent_whose_files_are_there_has_done_well():
    assert points("engineer", ran(ENGINEERED)) == 9
    assert points("modeller", ran(MODELLED, ENGINEERED)) == 9


@pytest.mark.parametrize("turn, low, high", [(0, 1.5, 3), (3, 1, 2)])
def test_what_is_missing_costs_and_most_where_turns_end(turn, low, high):
    scores = [
        points("engineer", ran(ENGINEERED[:made]), turn=turn) for made in range(3)
    ]
    assert low <= min(scores) and max(scores) <= high
    assert scores == sorted(scores) and len(set(scores)) == 3  # a slope to climb


def test_a_forgotten_file_is_the_engineers_and_not_the_analysts():
    engineer = points("engineer", ran(NO_X_TEST[:2]), turn=3)
    said = MISSING.format("X_test.pkl")
    analyst = points("analyst", crashed(NO_X_TEST, NO_X_TEST, said))
    assert engineer <= 2 < 3 <= analyst <= 5
    found = judge_action(
        request("analyst", crashed(NO_X_TEST, NO_X_TEST, said)), "balanced"
    )
    assert "X_test.pkl (owed by the data engineer)" in found.why


def test_a_missing_model_is_the_modellers():
    said = MISSING.format("/work/model.pkl")
    assert points("analyst", crashed(ENGINEERED, ENGINEERED, said)) == 4
    assert points("modeller", crashed(ENGINEERED, ENGINEERED)) <= 2


def test_a_file_that_is_there_is_no_excuse():
    said = MISSING.format("model.pkl")
    assert points("analyst", crashed(MODELLED, MODELLED, said)) == 0.5


def test_a_file_that_nobody_owed_is_no_excuse():
    said = MISSING.format("answers.csv")
    assert points("analyst", crashed(ENGINEERED, ENGINEERED, said)) == 0.5


def test_words_of_a_file_that_are_only_printed_are_no_excuse():
    seen = ran(
        ENGINEERED, ENGINEERED, exit_status=1, stdout=MISSING.format("model.pkl")
    )
    assert points("analyst", seen) == 0.5


def test_a_limit_is_the_agents_own():
    assert points("modeller", ran(ENGINEERED, ENGINEERED, limit="wall_time")) == 0.5


def test_text_instead_of_a_program_is_a_critical_failure():
    failing = points("engineer", crashed(()))
    running = points("engineer", ran(()), turn=3)
    assert points("engineer", None) == 0 < failing < running  # it pays to try
    before = (make_action("engineer", "x", observation=ran(ENGINEERED)),)
    assert points("engineer", None, turn=1, before=before) == 8


def graded(**quality):
    return Outcome(1.0, report="a report", quality=quality)


@pytest.mark.parametrize(
    "quality, style, score",
    [
        ({"gap": 1.0}, "balanced", 9),
        ({"gap": 0.5}, "balanced", 6.5),
        ({"gap": 0.0}, "balanced", 4),
        ({"gap": 3.0}, "balanced", 9),
        ({}, "balanced", 9),
        ({"roc_auc": 0.86, "fair_accuracy": 0.1}, "paper", 9),
        ({"fair_accuracy": 0.85}, "paper", 9),
        ({"fair_accuracy": 0.75}, "paper", 8),
        ({"fair_accuracy": 0.74}, "paper", 6),
        ({"fair_accuracy": 0.55}, "paper", 4),
        ({"fair_accuracy": 0.2}, "paper", 3),
        ({"fair_rmse_percent": 9.9}, "paper", 9),
        ({"fair_rmse_percent": 24.0}, "paper", 8),
        ({"fair_rmse_percent": 49.0}, "paper", 6),
        ({"fair_rmse_percent": 50.0}, "paper", 4),
    ],
)
def test_quality_caps_the_last_agent(quality, style, score):
    seen = ran((*MODELLED, "submission.csv"), MODELLED)
    assert points("analyst", seen, outcome=graded(**quality), style=style) == score


def test_quality_counts_only_where_it_is_shown():
    seen = ran((*MODELLED, "submission.csv"), MODELLED)
    assert points("analyst", seen, outcome=graded(gap=0.0), shown=False) == 9


def test_a_submission_that_cannot_be_scored_is_worth_little():
    seen = ran((*MODELLED, "submission.csv"), MODELLED)
    bad = Outcome(0.0, report="row 3 has no number")
    found = judge_action(request("analyst", seen, outcome=bad), "balanced")
    assert found.points == 3 and "row 3" in found.why


def test_the_trail_says_what_is_owed_by_whom():
    found = trail(request("analyst", ran(NO_X_TEST, NO_X_TEST)))
    assert found.owed == {"X_test.pkl": "owed by the data engineer"}
    assert found.missing == ("submission.csv",) and found.share == 0


async def test_the_judge_takes_this_rubric_for_roles_that_owe_files():
    seen = ran((*MODELLED, "submission.csv"), MODELLED)
    asked = request("analyst", seen, outcome=graded(fair_accuracy=0.2))
    paper, balanced = RubricJudge("paper"), RubricJudge()
    assert (await paper.score(asked)).score == 3
    assert (await balanced.score(asked)).score == 9
    assert (await balanced.score(asked)).correct is True
    alone = request("single", ran(("submission.csv",)), team=SINGLE_ROLES)
    assert (await balanced.score(alone)).score == 9


SUBMITTED = (*MODELLED, "submission.csv")


def test_a_crash_beside_a_bad_submission_is_worth_no_more_than_the_submission():
    bad = Outcome(0.0, report="row 3 has no number")
    clean = points("analyst", ran(SUBMITTED, MODELLED), outcome=bad)
    crash = points("analyst", crashed(SUBMITTED, MODELLED), outcome=bad)
    assert crash <= clean == 3


def test_who_removes_a_file_of_others_is_blamed():
    left = tuple(n for n in MODELLED if n != "X_test.pkl")
    modeller = request("modeller", ran(left, ENGINEERED))
    assert judge_action(modeller, "balanced").points <= 2
    said = MISSING.format("X_test.pkl")
    later = request("analyst", crashed(left, left, said), before=(modeller.action,))
    found = judge_action(later, "balanced")
    assert found.points == 4 and "X_test.pkl (removed by the modeller)" in found.why


def test_the_work_of_another_agent_is_no_credit():
    early = make_action("engineer", "x", observation=ran((*ENGINEERED, SUBMITTED[-1])))
    idle = ran(SUBMITTED, SUBMITTED)
    assert points("analyst", idle, before=(early,), outcome=graded(gap=1.0)) == 4
    own = make_action("analyst", "x", observation=ran(SUBMITTED, MODELLED))
    assert points("analyst", idle, turn=1, before=(own,)) == 9
    assert points("analyst", ran(SUBMITTED, SUBMITTED, changed=SUBMITTED[-1:])) == 9


def test_files_that_hold_nothing_are_not_there():
    assert points("engineer", ran(ENGINEERED, empty=ENGINEERED), turn=3) == 1
