"""What calls have in common, through real clients against a server that fails."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import logging
import time

import numpy as np
import pytest
from judge_server import (
    VERDICT,
    Faulty,
    Gemini,
    OpenAI,
    Plain,
    Reset,
    Server,
    most_above,
)

from mappa_jax.config import BudgetConfig
from mappa_jax.judges import JudgeError, Ledger, calls
from mappa_jax.types import Missing, MissingReason, Verdict

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession")
RPM, TPM = 60 * 800, 60 * 100_000  # high enough for the test to be quick
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
        limits = {"concurrency": 24, "rpm": RPM, "tpm": TPM, "max_output_tokens": 256}
        async with server.judge(
            ledger, deadline_s=1.2, outage_s=60.0, **limits
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
    times = [r.began for r in server.asked]
    assert most_above(times, np.ones(len(times)), RPM) <= RPM / 60 + 24
    tokens = [125 * r.answered for r in server.asked]
    assert most_above(times, tokens, TPM) <= TPM / 60 + 24 * 125
    assert ledger.spent.calls == count


@BOTH
def test_what_is_on_record_is_not_asked_again(says, make_request, tmp_path):
    path = tmp_path / "ledger.jsonl"
    requests = [make_request("solver", str(n)) for n in range(5)]
    server = Server(says, lambda: server.good())

    async def ask():
        with contextlib.closing(Ledger(path)) as ledger:
            async with server.judge(ledger) as judge:
                found = await asyncio.gather(*map(judge.score, requests))
        return found, len(server.asked)

    first, asked = run(ask())
    again, still = run(ask())
    assert (asked, still) == (5, 5)
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
    path = tmp_path / "ledger.jsonl"
    requests = [
        dataclasses.replace(make_request("solver", str(n % 7)), address=f"1/s/{n}/0/0")
        for n in range(12)
    ]

    script = [lambda: says.failure(500), lambda: server.good(4.0)]
    server = Server(says, *script)

    async def original():
        with contextlib.closing(Ledger(path)) as ledger:
            async with server.judge(ledger, deadline_s=0.004) as judge:
                return [await judge.score(r) for r in requests]

    async def replayed():
        ledger, asked = Ledger(path, read_only=True), len(server.requests)
        async with server.judge(ledger, key=None, replay=str(path)) as judge:
            await judge.check()
            found = [await judge.score(r) for r in requests]
            with pytest.raises(JudgeError, match="judge.replay.*another way"):
                await judge.score(make_request("solver", "new"))
        assert len(server.requests) == asked
        return found

    was = run(original())
    before = path.read_bytes()
    now = run(replayed())
    assert path.read_bytes() == before

    def told(v):
        return v.score if isinstance(v, Verdict) else (v.reason, v.detail)

    assert list(map(told, now)) == list(map(told, was))


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
        async with server.judge(hedge=hedge, concurrency=2) as judge:
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


def test_a_replay_asks_in_the_form_that_the_run_had_settled(make_request, tmp_path):
    """A server without schemas; and a resumed run pays for no first call either."""
    path, server = tmp_path / "ledger.jsonl", Plain()
    requests = [
        dataclasses.replace(make_request("solver", str(n)), address=f"1/s/{n}/0/0")
        for n in range(3)
    ]

    async def ask(ledger, **changes):
        async with server.judge(ledger, form="auto", **changes) as judge:
            await judge.check()
            return [(await judge.score(r)).score for r in requests]

    with contextlib.closing(Ledger(path)) as ledger:
        first = run(ask(ledger))
    asked = len(server.requests)
    assert asked == 2 + 3  # a probe of each form, and the actions
    with contextlib.closing(Ledger(path)) as ledger:
        assert run(ask(ledger)) == first
    replayed = Ledger(path, read_only=True)
    assert run(ask(replayed, key=None, replay=str(path))) == first == [3.0] * 3
    assert len(server.requests) == asked


def told(verdict):
    if isinstance(verdict, Verdict):
        return verdict.score
    return verdict.reason, verdict.detail


def test_a_replay_shares_a_failure_where_the_run_did(make_request, tmp_path):
    """Two actions of one content; what one call got is what both got, even if the
    content was answered later, or at the same place after a resume."""
    path, good = tmp_path / "ledger.jsonl", []
    one = make_request("solver", "same")
    first, second, later = (
        dataclasses.replace(one, address=f"{step}/s/t/{n}/0")
        for step, n in [(1, 0), (1, 1), (5, 0)]
    )

    async def answer():
        await asyncio.sleep(0.05)
        return server.good() if good else Gemini.failure(400)

    server = Server(Gemini, answer)

    async def original():
        with contextlib.closing(Ledger(path)) as ledger:
            async with server.judge(ledger) as judge:
                found = await asyncio.gather(judge.score(first), judge.score(second))
                good.append(1)
                found.append(await judge.score(later))
        assert ledger.spent.calls == 2
        return found

    async def asked_again():
        with contextlib.closing(Ledger(path)) as ledger:
            async with server.judge(ledger) as judge:
                return await judge.score(second)

    async def replayed():
        ledger = Ledger(path, read_only=True)
        async with server.judge(ledger, replay=str(path)) as judge:
            return [await judge.score(r) for r in (first, second, later)]

    was = run(original())
    assert [isinstance(v, Missing) for v in was] == [True, True, False]
    assert [told(v) for v in run(replayed())] == [told(v) for v in was]
    assert isinstance(run(asked_again()), Verdict)
    now = run(replayed())
    assert [isinstance(v, Missing) for v in now] == [True, False, False]
    assert len(server.asked) == 2


def test_what_an_answer_depends_on_is_part_of_its_content(make_request):
    """Another limit of tokens is another question; another concurrency is not."""
    request, ledger = make_request("solver", "x"), Ledger(None)
    server = Server(Gemini, lambda: server.good())

    async def ask(**changes):
        async with server.judge(ledger, **changes) as judge:
            await judge.score(request)
        return len(server.asked)

    assert run(ask(max_output_tokens=100)) == 1
    assert run(ask(max_output_tokens=100, concurrency=3, rpm=100)) == 1
    assert run(ask(max_output_tokens=101)) == 2
    assert run(ask(max_output_tokens=101, thinking_tokens=7)) == 3


# -- hedging -------------------------------------------------------------------


def hedged(monkeypatch, **changes):
    """(main, server, ledger, slow): ten quick calls and then eight slow ones at once,
    with `slow` the number of requests before them."""
    monkeypatch.setattr(calls, "HEDGE_AFTER", 5)
    ledger, slow = Ledger(None), []

    async def answer():
        await asyncio.sleep(0.4 if slow else 0.01)
        return server.good()

    server = Server(Gemini, answer)

    async def main(make_request):
        async with server.judge(ledger, concurrency=2, hedge=0.1, **changes) as judge:
            for n in range(10):
                await judge.score(make_request("solver", str(n)))
            slow.append(len(server.asked))
            requests = [make_request("solver", f"slow {n}") for n in range(8)]
            return await asyncio.gather(*map(judge.score, requests))

    return main, server, ledger, slow


def test_a_second_request_takes_a_slot_and_is_paid_for(make_request, monkeypatch):
    main, server, ledger, _ = hedged(monkeypatch)
    found = run(main(make_request))
    assert all(isinstance(verdict, Verdict) for verdict in found)
    assert server.most_busy <= 2
    assert ledger.spent.calls == 18
    # Nothing is answered twice; what was begun and dropped is charged by its length,
    # whether or not it had reached the server: no call is asked a third time.
    read = len(Gemini.prompt(server.asked[-1].body)) // 4
    charged = ledger.spent.tokens - 18 * 125
    begun = round(charged / read)
    assert len(server.asked) - 18 <= begun <= 18
    assert abs(charged - begun * read) <= 10 * begun


def test_a_dropped_request_is_charged(make_request, monkeypatch):
    """The first request for one call is slow, the second one quick."""
    monkeypatch.setattr(calls, "HEDGE_AFTER", 5)
    ledger, pauses = Ledger(None), []
    server = Server(Gemini, lambda: slowly(server, pauses.pop() if pauses else 0.01))

    async def main():
        async with server.judge(ledger, hedge=0.1, concurrency=2) as judge:
            for n in range(10):
                await judge.score(make_request("solver", str(n)))
            before = ledger.spent.tokens
            pauses.append(30.0)
            verdict = await judge.score(make_request("solver", "slow"))
            return verdict, ledger.spent.tokens - before

    verdict, spent = run(main())
    read = len(Gemini.prompt(server.asked[-1].body)) // 4 + 1
    assert verdict.call.tokens_in == 100 + read
    assert spent == 125 + read


def test_a_second_request_needs_room_in_the_budget(make_request, monkeypatch):
    budget = BudgetConfig(calls=18)
    main, server, _, slow = hedged(monkeypatch, budget=budget)
    found = run(main(make_request))
    assert all(isinstance(verdict, Verdict) for verdict in found)
    # All that the budget has left is held for the eight calls themselves.
    assert len(server.asked) - slow[0] == 8


def test_a_very_small_share_is_of_the_slowest(make_request):
    server = Server(Gemini, lambda: server.good())

    async def main():
        async with server.judge(hedge=0.004) as judge:
            for n in range(calls.HEDGE_AFTER + 3):
                assert isinstance(
                    await judge.score(make_request("solver", str(n))), Verdict
                )

    run(main())


# -- stopping ------------------------------------------------------------------


def test_on_closing_what_was_not_asked_is_given_up(make_request):
    ledger = Ledger(None)
    server = Server(Gemini, lambda: slowly(server, 0.3))

    async def main():
        async with server.judge(ledger, concurrency=2) as judge:
            requests = [make_request("solver", str(n)) for n in range(60)]
            asking = [asyncio.create_task(judge.score(r)) for r in requests]
            await asyncio.sleep(0.15)
            for task in asking:
                task.cancel()
            began = time.monotonic()
        return time.monotonic() - began

    assert run(main()) < 1.5
    assert len(server.asked) == 2
    assert ledger.spent.calls == 2 and ledger.spent.tokens == 2 * 125


def test_what_is_cut_off_by_closing_is_charged(make_request, monkeypatch, tmp_path):
    monkeypatch.setattr(calls, "DRAIN_S", 0.1)
    server = Server(Gemini, lambda: slowly(server, 30))
    path = tmp_path / "ledger.jsonl"

    async def main():
        with contextlib.closing(Ledger(path)) as ledger:
            async with server.judge(ledger, deadline_s=60) as judge:
                asking = asyncio.create_task(judge.score(make_request("solver", "x")))
                await asyncio.sleep(0.2)
            await asyncio.wait([asking])
            assert asking.cancelled()

    run(main())
    spent = Ledger(path, read_only=True).spent
    assert spent.calls == 1 and spent.tokens > 300 and spent.usd > 0
    row = json.loads(path.read_text().splitlines()[-1])["call"]
    assert row["outcome"] == "infrastructure" and "stopped" in row["detail"]
