"""How fast a provider is called, read from the server's own log."""

import asyncio
import sys
import time

import numpy as np
import pytest
from judge_server import USAGE, Gemini, Reset, Server, most_above

from mappa_jax.judges import Ledger, calls
from mappa_jax.types import Missing, MissingReason, Verdict

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession")
COUNT = 36
TOKENS = USAGE["prompt"] + USAGE["answer"] + USAGE["thinking"]


def ask(judge, make_request, count, tag="q"):
    requests = [make_request("solver", f"{tag}{n}") for n in range(count)]
    return asyncio.gather(*map(judge.score, requests))


class Stalling(Server):
    """Answers nothing for a while, and then at once."""

    def __init__(self, seconds):
        super().__init__(Gemini, self._answer)
        self._seconds, self._opens = seconds, None

    async def _answer(self):
        self._opens = self._opens or time.monotonic() + self._seconds
        await asyncio.sleep(self._opens - time.monotonic())
        return self.good()


@pytest.mark.parametrize(
    "limits", [{"rpm": 1200}, {"tpm": 120_000}], ids=["rpm", "tpm"]
)
def test_a_rate_holds_after_a_stall(make_request, limits):
    """What waits for a slot has taken nothing of the rates, and saves nothing up."""

    async def main():
        server = Stalling(2.0)
        settings = limits | {"concurrency": 4, "deadline_s": 30, "max_output_tokens": 9}
        async with server.judge(**settings) as judge:
            await ask(judge, make_request, COUNT)
        return server

    server = asyncio.run(main())
    times = sorted(r.began for r in server.asked)
    assert len(times) == COUNT and server.most_busy <= 4
    if "rpm" in limits:
        assert most_above(times, np.ones(COUNT), limits["rpm"]) <= 20 + 4
    else:
        tokens = np.full(COUNT, TOKENS)
        assert most_above(times, tokens, limits["tpm"]) <= 2000 + 4 * TOKENS


def test_tokens_that_were_set_aside_for_nothing_are_given_back(make_request):
    """A guess counts the longest answer; thirty of them would take minutes."""

    async def main():
        server = Server(Gemini, lambda: server.good())
        async with server.judge(tpm=600_000, max_output_tokens=8192) as judge:
            began = time.monotonic()
            await ask(judge, make_request, 30)
            return time.monotonic() - began

    assert asyncio.run(main()) < 3


@pytest.mark.parametrize("limits", [{}, {"rpm": 1200}], ids=["free", "rpm"])
def test_one_retry_after_is_for_all(make_request, limits):
    """Forty actions are queued; within the second that the server asked for only
    those ask that were on their way."""
    began, hits = time.monotonic() + 3600, []

    def answer():
        nonlocal began
        began = min(began, time.monotonic())
        hits.append(time.monotonic() - began)
        if hits[-1] < 1:
            return Gemini.failure(429, **{"Retry-After": "1"})
        return server.good()

    server = Server(Gemini, answer)

    async def main():
        async with server.judge(concurrency=2, deadline_s=20, **limits) as judge:
            return await ask(judge, make_request, 40)

    found = asyncio.run(main())
    assert all(isinstance(verdict, Verdict) for verdict in found)
    assert sum(hit < 0.99 for hit in hits) <= 2


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0"}], ids=["none", "zero"])
def test_pauses_grow(make_request, monkeypatch, headers):
    """From the first on they double, whatever the server says that is shorter."""
    monkeypatch.setattr(calls, "FIRST_PAUSE_S", 0.1)
    server = Server(Gemini, lambda: Gemini.failure(503, **headers))
    pauses, sleep = [], asyncio.sleep

    async def noted(seconds, *rest):
        if sys._getframe(1).f_globals["__name__"] == calls.__name__:
            pauses.append(seconds)
        await sleep(seconds, *rest)

    monkeypatch.setattr(asyncio, "sleep", noted)

    async def main():
        async with server.judge(deadline_s=4.0) as judge:
            return await judge.score(make_request("solver", "x"))

    assert asyncio.run(main()).reason is MissingReason.SERVER_ERROR
    gaps = np.diff([r.began for r in server.asked])
    assert len(gaps) >= 3
    assert len(pauses) == len(gaps)
    for k, (pause, gap) in enumerate(zip(pauses, gaps, strict=True)):
        assert 0.05 * 2**k <= pause <= 0.1 * 2**k
        assert gap >= pause - 0.01


def test_a_pause_holds_no_slot(make_request, monkeypatch):
    monkeypatch.setattr(calls, "FIRST_PAUSE_S", 1.0)
    script = [lambda: Gemini.failure(500), lambda: server.good()]
    server = Server(Gemini, *script)

    async def main():
        async with server.judge(concurrency=1) as judge:
            first = asyncio.create_task(judge.score(make_request("solver", "a")))
            await asyncio.sleep(0.1)
            second = await judge.score(make_request("solver", "b"))
            assert not first.done()
            return second, await first

    assert all(isinstance(v, Verdict) for v in asyncio.run(main()))


def test_timeouts_count_as_a_provider_that_is_down(make_request, monkeypatch):
    monkeypatch.setattr(calls, "DOWN_AFTER", 3)
    monkeypatch.setattr(calls, "TRIAL_PAUSE_S", 0.1)

    async def hang():
        await asyncio.sleep(30)

    async def main():
        server = Server(Gemini, hang)
        async with server.judge(deadline_s=0.2, concurrency=3, outage_s=0.5) as judge:
            found = await ask(judge, make_request, 3)
            assert judge.meter().down_since is not None
            late = await ask(judge, make_request, 20, "late")
        return found, late

    found, late = asyncio.run(main())
    assert {v.reason for v in found} == {MissingReason.TIMEOUT}
    assert all(isinstance(v, Missing) for v in late)
    assert any("judge.outage_s" in v.detail for v in late)


def test_who_was_given_up_unasked_is_no_call_of_the_budget(make_request, monkeypatch):
    monkeypatch.setattr(calls, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(calls, "TRIAL_PAUSE_S", 0.2)

    def gone():
        raise Reset

    async def main():
        server, ledger = Server(Gemini, gone), Ledger(None)
        async with server.judge(ledger, outage_s=0.4, concurrency=2) as judge:
            found = await ask(judge, make_request, 30)
        return found, server, ledger

    found, server, ledger = asyncio.run(main())
    unasked = [v for v in found if v.call.attempts == 0]
    assert unasked and {v.reason for v in unasked} == {MissingReason.INFRASTRUCTURE}
    assert ledger.spent.calls == 30 - len(unasked)
    assert sum(v.call.attempts for v in found) == len(server.asked)
