"""Several judges: their mean or median, their disagreement, and no half verdicts."""

import asyncio

import pytest
from judge_server import ROLES, Gemini, OpenAI, Server

from mappa_jax.config import (
    BudgetConfig,
    ConfigError,
    JudgeConfig,
    MemberConfig,
    parse_members,
)
from mappa_jax.judges import Ledger, make_judge
from mappa_jax.judges.ensemble import EnsembleJudge
from mappa_jax.testing import ScriptedJudge
from mappa_jax.types import Missing, MissingReason, Verdict

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession")


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


async def ensemble(requests, members, ledger, **changes):
    """(verdicts, the judge's meter) of an ensemble as a run makes it."""
    config = JudgeConfig(provider="ensemble", members=members, form="schema", **changes)
    keys = {"gemini": "K"}
    judge = make_judge(config, roles=ROLES, keys=keys, ledger=ledger)
    try:
        await judge.check()
        found = await asyncio.gather(*map(judge.score, requests))
        return found, judge.meter()
    finally:
        await judge.aclose()


def test_members_share_one_account(make_request):
    """The cap is of all of them together, and what they spend is counted once."""

    async def main():
        server, ledger = Server(Gemini, lambda: server.good()), Ledger(None)
        async with server.url() as url:
            models = ("gemini-2.5-flash", "gemini-2.5-pro", "gemini-2.5-flash-lite")
            members = ", ".join(f"gemini:{model}@{url}" for model in models)
            requests = [make_request("solver", str(n)) for n in range(12)]
            budget = BudgetConfig(calls=12)
            found, meter = await ensemble(requests, members, ledger, budget=budget)
        return found, meter, ledger.spent, len(server.requests)

    found, meter, spent, asked = asyncio.run(main())
    assert asked == spent.calls == meter.calls <= 12
    assert meter.usd == spent.usd and meter.tokens == spent.tokens
    assert 1 <= meter.most_in_flight <= 9
    missing = [v for v in found if isinstance(v, Missing)]
    assert missing and {v.reason for v in missing} == {MissingReason.BUDGET}
    assert sum(isinstance(v, Verdict) for v in found) <= 3


def test_one_model_at_two_addresses_is_two_judges(make_request):
    """The ledger of one is no cache for the other, now or in a resumed run."""

    async def main():
        low = Server(OpenAI, lambda: low.good(2.0))
        high = Server(OpenAI, lambda: high.good(9.0))
        ledger, request = Ledger(None), make_request("solver", "x")
        async with low.url() as one, high.url() as other:
            members = f"openai:m@{one},openai:m@{other}"
            for _ in range(2):
                (found,), _ = await ensemble([request], members, ledger)
                assert found.disagreement == pytest.approx(7.0)
        return len(low.asked), len(high.asked)

    assert asyncio.run(main()) == (1, 1)


def test_members_are_written_in_one_line():
    text = "rubric, gemini:gemini-2.5-pro,openai:org/m:8b@http://h:1/v1"
    assert [*parse_members(text).values()] == [
        MemberConfig("rubric"),
        MemberConfig("gemini", "gemini-2.5-pro"),
        MemberConfig("openai", "org/m:8b", "http://h:1/v1"),
    ]
    with pytest.raises(ConfigError, match="judge.members.*'rubric'.*twice"):
        parse_members("rubric,rubric")
