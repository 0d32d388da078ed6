"""Several judges: their mean or median, their disagreement, and no half verdicts."""

import asyncio

import pytest

from mappa_jax.judges.ensemble import EnsembleJudge
from mappa_jax.testing import ScriptedJudge
from mappa_jax.types import Missing, MissingReason


def score(request, combine, *members):
    judge = EnsembleJudge({f"j{i}": m for i, m in enumerate(members)}, combine)
    return asyncio.run(judge.score(request))


def says(value):
    return ScriptedJudge(lambda request: value)


@pytest.mark.parametrize(("combine", "want"), [("mean", 5.0), ("median", 4.0)])
def test_scores_are_combined_and_disagreement_recorded(make_request, combine, want):
    request = make_request("solver", "x")
    verdict = score(request, combine, says(2.0), says(4.0), says(9.0))
    assert verdict.score == pytest.approx(want)
    assert verdict.disagreement == pytest.approx(7.0)
    assert "j0 (2)" in verdict.rationale and "j2 (9)" in verdict.rationale


def test_one_without_a_verdict_leaves_none(make_request):
    """A mean over those that answered would mix their offsets into the reward."""
    silent = ScriptedJudge(missing_every=1)
    verdict = score(make_request("solver", "x"), "mean", says(2.0), silent)
    assert isinstance(verdict, Missing)
    assert verdict.reason is MissingReason.SERVER_ERROR
    assert verdict.detail.startswith("j1: ")
