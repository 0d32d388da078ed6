"""How fast, and whether at all, a provider may be called.

Clocks are `time.monotonic`, pauses `asyncio.sleep`; both are looked up on the modules,
so that a test may run them faster.
"""

from __future__ import annotations

import asyncio
import time


class TokenBucket:
    """At most `per_minute` units a minute, in the long run; 0: no limit.

    The bucket holds a second's worth (at least one unit). A demand larger than that
    is served when the bucket is full, and the debt is waited off by those after it.
    First come, first served. Units that were not used in the end can be given back.

    Attributes:
      room: what it holds when it is full.
    """

    def __init__(self, per_minute: float):
        self._rate = per_minute / 60
        self.room = max(self._rate, 1.0)
        self._level = self.room
        self._filled = time.monotonic()
        self._turn = asyncio.Lock()
        self._back = asyncio.Event()

    async def take(self, amount: float = 1.0) -> None:
        """Returns when `amount` may be used."""
        if not self._rate:
            return
        async with self._turn:
            needed = min(amount, self.room)
            while (missing := needed - self._fill()) > 1e-6:
                await self._pause(missing / self._rate)
            self._level -= amount

    def give_back(self, amount: float) -> None:
        """Says that so many of the units taken were not used; negative: that so many
        more were."""
        self._level = min(self._level + amount, self.room)
        self._back.set()

    async def _pause(self, seconds: float) -> None:
        """Returns then, or when units come back."""
        self._back.clear()
        ends = [
            asyncio.ensure_future(asyncio.sleep(seconds)),
            asyncio.ensure_future(self._back.wait()),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()

    def _fill(self) -> float:
        """What is in the bucket by now."""
        now = time.monotonic()
        self._level += (now - self._filled) * self._rate
        self._level = min(self._level, self.room)
        self._filled = now
        return self._level


class CircuitBreaker:
    """Holds calls back while the provider is down.

    After `threshold` faults of the endpoint in a row it opens: callers wait. Every
    `pause_s` one of them is let through; its success closes the breaker for all. When
    the provider has been down for `patience_s` they no longer wait but are given up,
    all but that one, until it answers again.
    """

    def __init__(self, threshold: int, pause_s: float, patience_s: float):
        self._threshold = threshold
        self._pause_s = pause_s
        self._patience_s = patience_s
        self._in_a_row = 0
        self._closed = asyncio.Event()
        self._closed.set()
        self._next_trial = 0.0
        self.down_since: float | None = None

    async def passage(self) -> bool:
        """Returns True when a call may be made, False when it is given up."""
        while not self._closed.is_set():
            now = time.monotonic()
            if now >= self._next_trial:
                self._next_trial = now + self._pause_s
                return True
            if now - self.down_since >= self._patience_s:
                return False
            until = min(self._next_trial, self.down_since + self._patience_s)
            try:
                async with asyncio.timeout(until - now):
                    await self._closed.wait()
            except TimeoutError:
                pass
        return True

    def succeeded(self) -> None:
        """Says that the endpoint has answered, whatever it said."""
        self._in_a_row, self.down_since = 0, None
        self._closed.set()

    def failed(self) -> None:
        """Says that it has not."""
        self._in_a_row += 1
        if self._in_a_row >= self._threshold and self._closed.is_set():
            self._closed.clear()
            self.down_since = time.monotonic()
            self._next_trial = self.down_since + self._pause_s
