"""A model of our own as the judge: the mean over the numbers it finds likely."""

import asyncio

import numpy as np
import pytest

from mappa_jax.config import JudgeConfig
from mappa_jax.judges import JudgeError, Ledger, make_judge
from mappa_jax.judges.local import PromptTooLong
from mappa_jax.types import Missing, MissingReason, Verdict

CONFIG = JudgeConfig(provider="local", model="random:tiny")


class Scripted:
    """A scorer that likes 2 and 9, and refuses what is too long."""

    def __init__(self, room=10**6):
        self.room, self.asked = room, []

    def __call__(self, text):
        self.asked.append(text)
        if len(text) > self.room:
            raise PromptTooLong(f"{len(text)} tokens")
        chances = np.zeros(11)
        chances[[2, 9]] = 0.25, 0.75
        return chances, len(text)


def score(request, scorer, ledger=None):
    async def one():
        judge = make_judge(
            CONFIG,
            roles=["solver", "coder", "verifier"],
            keys={},
            ledger=ledger or Ledger(None),
            make_scorer=lambda model: scorer,
        )
        await judge.check()
        try:
            return await judge.score(request)
        finally:
            await judge.aclose()

    return asyncio.run(one())


def test_the_score_is_the_mean_over_what_is_likely(make_request):
    scorer = Scripted()
    verdict = score(make_request("solver", "12 * 7 = 84"), scorer)
    assert isinstance(verdict, Verdict)
    assert verdict.score == pytest.approx(0.25 * 2 + 0.75 * 9)
    assert "9: 75%" in verdict.rationale and "2: 25%" in verdict.rationale
    assert verdict.call.cost == 0 and verdict.call.tokens_in == len(scorer.asked[-1])
    assert "whole number from 0 to 10" in scorer.asked[-1]
    assert "JSON" not in scorer.asked[-1]


def test_a_prompt_that_is_too_long_is_missing(make_request):
    verdict = score(make_request("solver", "x"), Scripted(room=200))
    assert isinstance(verdict, Missing)
    assert verdict.reason is MissingReason.TRUNCATED
    assert "judge.prompt_tokens" in verdict.detail


def test_without_weights_it_is_refused():
    with pytest.raises(JudgeError, match="local"):
        make_judge(CONFIG, roles=["solver"], keys={}, ledger=Ledger(None))
