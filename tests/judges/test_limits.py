"""Rate limits and the circuit breaker, on a clock of our own."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mappa_jax.judges import limits
from mappa_jax.judges.limits import CircuitBreaker, TokenBucket


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds


@settings(max_examples=100, deadline=None)
@given(
    per_minute=st.integers(6, 6000),
    amounts=st.lists(st.floats(0.1, 500), min_size=1, max_size=40),
)
def test_in_the_long_run_the_rate_holds(per_minute, amounts):
    """What was taken by any time is at most the rate times it, and one bucket and one
    demand more."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "time", clock)
        patch.setattr(limits.asyncio, "sleep", clock.sleep)
        bucket = TokenBucket(per_minute)
        rate = per_minute / 60

        async def main():
            taken = 0.0
            for amount in amounts:
                await bucket.take(amount)
                taken += amount
                most = rate * (clock.now - 100) + max(rate, 1.0) + amount
                assert taken <= most + 1e-6

        asyncio.run(main())


def test_without_a_limit_nothing_waits(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
    asyncio.run(TokenBucket(0).take(1e9))
    assert clock.now == 100.0


def test_the_breaker_lets_one_try_and_closes_on_success():
    async def main():
        breaker = CircuitBreaker(threshold=3, pause_s=0.05, patience_s=10)
        for _ in range(2):
            breaker.failed()
        assert await breaker.passage() and breaker.down_since is None
        breaker.failed()
        assert breaker.down_since is not None
        waiting = [asyncio.create_task(breaker.passage()) for _ in range(5)]
        await asyncio.sleep(0.08)
        assert sum(task.done() for task in waiting) == 1  # the trial
        breaker.succeeded()
        assert await asyncio.wait_for(asyncio.gather(*waiting), 1) == [True] * 5
        assert breaker.down_since is None

    asyncio.run(main())


def test_the_breaker_gives_up():
    async def main():
        breaker = CircuitBreaker(threshold=1, pause_s=10, patience_s=0.1)
        breaker.failed()
        assert await asyncio.wait_for(breaker.passage(), 1) is False

    asyncio.run(main())


def test_a_success_between_faults_keeps_it_closed():
    breaker = CircuitBreaker(threshold=2, pause_s=1, patience_s=1)
    for _ in range(5):
        breaker.failed()
        breaker.succeeded()
    assert breaker.down_since is None
