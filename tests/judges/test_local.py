"""A model of our own as the judge: the mean over the numbers it finds likely."""

import asyncio
import dataclasses
import time

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


class Slow(Scripted):
    """A scorer that takes a while, and knows how many run at once."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.active, self.most, self.ended = seconds, 0, 0, 0

    def __call__(self, text):
        self.active += 1
        self.most = max(self.most, self.active)
        time.sleep(self.seconds)
        self.active -= 1
        self.ended += 1
        return super().__call__(text)


async def score_all(requests, scorer, **changes):
    judge = make_judge(
        dataclasses.replace(CONFIG, **changes),
        roles=["solver"],
        keys={},
        ledger=Ledger(None),
        make_scorer=lambda model: scorer,
    )
    await judge.check()
    try:
        return await asyncio.gather(*map(judge.score, requests))
    finally:
        await judge.aclose()


def test_waiting_for_the_model_is_not_its_fault(make_request):
    """Twenty prompts of a tenth of a second each, with half a second for each."""
    scorer = Slow(0.1)
    requests = [make_request("solver", str(n)) for n in range(20)]
    found = asyncio.run(score_all(requests, scorer, deadline_s=0.5))
    assert all(isinstance(verdict, Verdict) for verdict in found)
    assert scorer.most == 1


def test_a_deadline_does_not_put_one_prompt_beside_another(make_request):
    """A thread cannot be stopped: the next prompt waits for its end."""
    scorer = Slow(0.3)
    requests = [make_request("solver", str(n)) for n in range(3)]

    async def main():
        judge = make_judge(
            dataclasses.replace(CONFIG, deadline_s=0.1),
            roles=["solver"],
            keys={},
            ledger=Ledger(None),
            make_scorer=lambda model: scorer,
        )
        await judge._provider.open()
        found = await asyncio.gather(*map(judge.score, requests))
        await judge.aclose()
        return found

    found = asyncio.run(main())
    assert {v.reason for v in found} == {MissingReason.TIMEOUT}
    assert scorer.most == 1 and scorer.ended == 3 and scorer.active == 0


@pytest.mark.parametrize("odds", [-18.0, -5.0, -0.1, 0.0])
@pytest.mark.parametrize("sure", [0, 5, 10])
def test_rounding_leaves_no_score_outside(make_request, sure, odds):
    """Probabilities in single precision that do not quite sum to one."""
    logits = np.full(11, -40.0, np.float32)
    logits[[sure, (sure + 10) % 11]] = 0.0, odds
    chances = np.exp(logits) / np.exp(logits).sum() * np.float32(1.0000002)

    class Sure(Scripted):
        def __call__(self, text):
            return chances.astype(np.float32), 1

    verdict = score(make_request("solver", "x"), Sure())
    assert isinstance(verdict, Verdict), verdict
    exact = np.average(range(11), weights=np.exp(logits.astype(np.float64)))
    assert verdict.score == pytest.approx(exact, abs=1e-5)
