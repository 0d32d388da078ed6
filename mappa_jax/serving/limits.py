"""How much is served at a time, and who waits."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Iterator

from mappa_jax.serving.errors import invalid, queue_full


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
      body_bytes: of a request.
      read_seconds: for a body to arrive.
      seconds: for a request, from its body to its answer, waiting included.
      running: answers that are worked on at a time.
      waiting: answers that may wait besides.
      choices: of one request (`n`).
    """

    body_bytes: int
    read_seconds: float
    seconds: float
    running: int
    waiting: int
    choices: int


class Admission:
    """Who may work, who waits, who is sent away.

    Attributes:
      running: answers that are worked on.
      waiting: answers that wait.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.running)
        self._reserved = 0
        self._seconds = 1.0  # what an answer takes, of late
        self.running = 0

    @property
    def waiting(self) -> int:
        return self._reserved - self.running

    @property
    def idle(self) -> bool:
        return not self._reserved

    @contextlib.contextmanager
    def reserve(self, choices: int) -> Iterator[None]:
        """Room for the answers of a request.

        Raises:
          ApiError: 429, with the time after which there may be room; 400 if there never
            is.
        """
        limits = self._limits
        if choices > min(limits.choices, limits.running + limits.waiting):
            raise invalid(f"n: at most {limits.choices} answers", "n")
        if self._reserved + choices > limits.running + limits.waiting:
            raise queue_full(self._seconds * (1 + limits.waiting / limits.running))
        self._reserved += choices
        try:
            yield
        finally:
            self._reserved -= choices

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits until one more may be worked on; first come, first served."""
        async with self._slots:
            self.running += 1
            start = time.monotonic()
            try:
                yield
            finally:
                self.running -= 1
                took = time.monotonic() - start
                self._seconds += 0.2 * (took - self._seconds)
