"""What a judge is, and how it may fail."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from mappa_jax.types import JudgeRequest, Missing, Verdict


class JudgeError(ValueError):
    """The judge cannot work as configured; the message names the key and the remedy."""


class TooManyMissing(RuntimeError):
    """The judge left too much of a batch unscored; the run has stopped, saved."""


class BudgetReached(TooManyMissing):
    """The judge's budget is spent; the run has stopped, saved, and can go on."""


@dataclasses.dataclass
class Meter:
    """What a judge is doing and has cost.

    Attributes:
      in_flight, most_in_flight: requests at the provider, now and at most so far.
      calls, tokens, usd: of the run so far, those before a resume included.
      down_since: `time.monotonic()` since when the provider is down, or None.
    """

    in_flight: int = 0
    most_in_flight: int = 0
    calls: int = 0
    tokens: int = 0
    usd: float = 0.0
    down_since: float | None = None


class Judge(Protocol):
    """Scores one action at a time. Safe to call from many tasks of one event loop."""

    @property
    def name(self) -> str:
        """What its verdicts are filed under."""

    async def check(self) -> None:
        """One cheap probe before the first step.

        Raises:
          JudgeError: if credentials, model or endpoint cannot work.
        """

    async def score(self, request: JudgeRequest) -> Verdict | Missing:
        """A verdict on `request.action`, or why there is none.

        Faults of the outside world never raise and never become a number.

        Raises:
          JudgeError: in a replay, what is asked was not asked of the run it repeats.
        """

    def meter(self) -> Meter:
        """What it is doing and has cost."""

    def sync(self) -> None:
        """Returns when what it has recorded is on the disk."""

    async def aclose(self) -> None:
        """Releases connections. The judge is not used afterwards."""
