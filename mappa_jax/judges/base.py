"""What a judge is, and how it may fail."""

from __future__ import annotations

from typing import Protocol

from mappa_jax.types import JudgeRequest, Missing, Verdict


class JudgeError(ValueError):
    """The judge cannot work as configured; the message names the key and the remedy."""


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
        """

    async def aclose(self) -> None:
        """Releases connections. The judge is not used afterwards."""
