"""What calls have in common, through real clients against a server that fails."""

import asyncio
import collections
import contextlib
import json
import logging
import time

import pytest
from judge_server import VERDICT, Faulty, Gemini, OpenAI, Reset, Server

from mappa_jax.config import BudgetConfig
from mappa_jax.judges import Ledger, calls
from mappa_jax.types import Missing, MissingReason, Verdict

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession")
BOTH = pytest.mark.parametrize("says", [Gemini, OpenAI], ids=["gemini", "openai"])


def run(work):
    return asyncio.run(work)


@pytest.fixture
def quick(monkeypatch):
    """Pauses between attempts of a hundredth."""
    monkeypatch.setattr(calls, "FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(calls, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(calls, "TRIAL_PAUSE_S", 0.05)


@pytest.mark.parametrize(
    ("says", "count"), [(Gemini, 2000), (OpenAI, 2000)], ids=["gemini", "openai"]
)
def test_no_action_is_lost_and_no_verdict_is_paid_for_twice(
    says, count, make_request, quick, tmp_path
):
    """At 30% faults of every kind, each action ends as a score or a counted Missing."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    server = Faulty(says, rate=0.3)
    requests = [make_request("solver", f"The answer is {n}.") for n in range(count)]

    async def main():
        async with server.judge(
            ledger, concurrency=24, deadline_s=2.0, outage_s=60.0
        ) as judge:
            return await asyncio.gather(*map(judge.score, requests))

    with contextlib.closing(ledger):
        found = run(main())
    reasons = collections.Counter(
        v.reason.value if isinstance(v, Missing) else "verdict" for v in found
    )
    assert sum(reasons.values()) == count
    assert reasons["verdict"] > 0.6 * count
    assert {v.score for v in found if isinstance(v, Verdict)} == {8.5}
    expected = {"timeout", "unparsable", "out_of_range", "blocked"}
    assert (
        expected
        <= set(reasons)
        <= expected
        | {
            *("verdict", "rate_limited", "server_error", "infrastructure"),
        }
    )
    good = collections.Counter(says.prompt(r.body) for r in server.asked if r.answered)
    assert sum(good.values()) == reasons["verdict"]
    assert set(good.values()) == {1}
    assert server.most_busy <= 24
    assert ledger.spent.calls == count


@BOTH
def test_what_is_on_record_is_not_asked_again(says, make_request, tmp_path):
    path = tmp_path / "ledger.jsonl"
    requests = [make_request("solver", str(n)) for n in range(5)]

    async def ask():
        server, ledger = Server(says, lambda: server.good()), Ledger(path)
        with contextlib.closing(ledger):
            async with server.judge(ledger) as judge:
                found = await asyncio.gather(*map(judge.score, requests))
        return found, len(server.asked)

    first, asked = run(ask())
    again, none = run(ask())
    assert (asked, none) == (5, 0)
    assert [v.score for v in first] == [v.score for v in again]
    assert all(v.call.cached and v.call.cost == 0 for v in again)
    assert all(not v.call.cached for v in first)


def test_what_is_asked_at_the_same_time_is_asked_once(make_request):
    request = make_request("solver", "the same")

    async def main():
        server = Server(Gemini, slow := lambda: slowly(server))
        assert slow
        async with server.judge() as judge:
            return await asyncio.gather(
                *(judge.score(request) for _ in range(8))
            ), server

    found, server = run(main())
    assert len(server.asked) == 1
    assert sum(not v.call.cached for v in found) == 1
    assert {v.score for v in found} == {8.5}


async def slowly(server, seconds=0.1):
    await asyncio.sleep(seconds)
    return server.good()


def test_another_opinion_is_another_call(make_request):
    import dataclasses

    request = make_request("solver", "x")
    again = dataclasses.replace(request, repeat=1)

    async def main():
        scores = iter([3.0, 7.0])
        server = Server(Gemini, lambda: server.good(next(scores)))
        async with server.judge() as judge:
            return [(await judge.score(r)).score for r in (request, again, request)]

    assert run(main()) == [3.0, 7.0, 3.0]


@BOTH
def test_a_replay_asks_nobody_and_gives_the_same(says, make_request, tmp_path, quick):
    """Missing verdicts included, at the addresses where the run got them."""
    import dataclasses

    path = tmp_path / "ledger.jsonl"
    requests = [
        dataclasses.replace(make_request("solver", str(n % 7)), address=f"1/s/{n}/0/0")
        for n in range(12)
    ]

    async def original():
        script = [lambda: says.failure(500), lambda: server.good(4.0)]
        server = Server(says, *script)
        with contextlib.closing(Ledger(path)) as ledger:
            async with server.judge(ledger, deadline_s=0.004) as judge:
                return [await judge.score(r) for r in requests]

    async def replayed():
        ledger = Ledger(path, read_only=True)
        server = Server(says, lambda: says.failure(500))
        async with server.judge(ledger, key=None, replay=str(path)) as judge:
            await judge.check()
            found = [await judge.score(r) for r in requests]
            other = await judge.score(make_request("solver", "new"))
        assert server.requests == []
        return found, other

    was = run(original())
    before = path.read_bytes()
    now, other = run(replayed())
    assert path.read_bytes() == before

    def told(v):
        return v.score if isinstance(v, Verdict) else (v.reason, v.detail)

    assert list(map(told, now)) == list(map(told, was))
    assert isinstance(other, Missing)
    assert other.reason is MissingReason.INFRASTRUCTURE
    assert "judge.replay" in other.detail


@pytest.mark.parametrize(
    ("budget", "name", "most"),
    [
        (BudgetConfig(calls=7), "calls", 7),
        # 125 tokens a call, but it might have written 4096 more.
        (BudgetConfig(tokens=10_000), "tokens", 60),
        (BudgetConfig(usd=0.014), "usd", 60),
    ],
)
def test_a_budget_is_never_passed(make_request, budget, name, most):
    ledger = Ledger(None)

    async def main():
        server = Server(Gemini, lambda: slowly(server, 0.01))
        limits = {"concurrency": 32, "max_output_tokens": 4096}
        async with server.judge(ledger, budget=budget, **limits) as judge:
            requests = [make_request("solver", str(n)) for n in range(150)]
            return await asyncio.gather(*map(judge.score, requests)), judge.meter()

    found, meter = run(main())
    missing = [v for v in found if isinstance(v, Missing)]
    assert missing and {v.reason for v in missing} == {MissingReason.BUDGET}
    assert f"judge.budget.{name}" in missing[0].detail
    assert 0 < len(found) - len(missing) <= most
    spent = {"calls": meter.calls, "tokens": ledger.spent.tokens, "usd": meter.usd}
    assert spent[name] <= getattr(budget, name)


def test_a_provider_that_is_down_is_waited_for(make_request, quick):
    """Calls wait, beyond their deadline even, and go on when it is back."""
    down = {"until": None}

    def entry(server):
        now = time.monotonic()
        down["until"] = down["until"] or now + 1.2
        if now < down["until"]:
            raise Reset
        return server.good()

    async def main():
        server = Server(Gemini, lambda: entry(server))
        async with server.judge(deadline_s=0.8, concurrency=8) as judge:
            requests = [make_request("solver", str(n)) for n in range(30)]
            work = asyncio.gather(*map(judge.score, requests))
            await asyncio.sleep(0.6)
            assert judge.meter().down_since is not None
            found = await work
            assert judge.meter().down_since is None
        return found, server

    found, server = run(main())
    assert sum(isinstance(v, Verdict) for v in found) > 20
    assert len(server.asked) < 30 + 60  # not hammered meanwhile


def test_a_provider_that_stays_down_is_given_up(make_request, quick):
    def gone():
        raise Reset

    async def main():
        server = Server(Gemini, gone)
        async with server.judge(outage_s=0.5, concurrency=4) as judge:
            requests = [make_request("solver", str(n)) for n in range(20)]
            return await asyncio.wait_for(
                asyncio.gather(*map(judge.score, requests)), 10
            )

    found = run(main())
    assert all(isinstance(v, Missing) for v in found)
    assert any("judge.outage_s" in v.detail for v in found)


def test_requests_a_minute(make_request):
    async def main():
        server = Server(Gemini, lambda: server.good())
        async with server.judge(rpm=1200) as judge:  # 20 a second, and 20 at once
            requests = [make_request("solver", str(n)) for n in range(50)]
            await asyncio.gather(*map(judge.score, requests))
        return sorted(r.began for r in server.asked)

    times = run(main())
    for first, last in zip(times, times[40:], strict=False):
        assert last - first > 0.9  # 41 requests need 20 of the bucket and a second more


@pytest.mark.parametrize(("hedge", "most"), [(0.0, 1), (0.1, 2)])
def test_the_slowest_are_asked_twice_if_so_wished(
    make_request, monkeypatch, hedge, most
):
    monkeypatch.setattr(calls, "HEDGE_AFTER", 5)

    async def main():
        pauses = iter([0.01] * 10 + [1.5, 0.01])
        server = Server(Gemini, lambda: slowly(server, next(pauses)))
        async with server.judge(hedge=hedge, concurrency=1) as judge:
            for n in range(10):
                await judge.score(make_request("solver", str(n)))
            began = time.monotonic()
            verdict = await judge.score(make_request("solver", "slow"))
            return verdict, time.monotonic() - began, len(server.asked) - 10

    verdict, took, asked = run(main())
    assert isinstance(verdict, Verdict)
    assert asked <= most
    assert (took < 1.0) == (hedge > 0)


def test_a_paid_answer_is_written_down_even_if_nobody_waits(make_request):
    ledger = Ledger(None)

    async def main():
        server = Server(Gemini, lambda: slowly(server))
        async with server.judge(ledger) as judge:
            asking = asyncio.create_task(judge.score(make_request("solver", "x")))
            await asyncio.sleep(0.03)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    run(main())
    assert ledger.spent.calls == 1


@BOTH
def test_the_key_reaches_no_file_and_no_log(says, make_request, tmp_path, caplog):
    path = tmp_path / "ledger.jsonl"
    caplog.set_level(logging.DEBUG)

    def leak():
        return says.failure(400, "your key SECRETKEY is odd")

    async def main():
        script = [leak, lambda: says.answer(json.dumps(VERDICT | {"rationale": KEY}))]
        server = Server(says, *script)
        with contextlib.closing(Ledger(path)) as ledger:
            async with server.judge(ledger) as judge:
                return [await judge.score(make_request("solver", t)) for t in "ab"]

    missing, verdict = run(main())
    assert "[secret]" in missing.detail and KEY not in missing.detail
    assert verdict.rationale == "[secret]"
    assert KEY.encode() not in path.read_bytes()
    assert not any(KEY in record.getMessage() for record in caplog.records)


KEY = "SECRETKEY"
