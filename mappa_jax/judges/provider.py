"""What a judge model's endpoint must offer; one file per provider implements it.

A provider sends one prompt and says what came back: text with its usage, or a `Fault`.
Everything that calls have in common (limits, retries, the ledger, the budget, the
reading of the verdict) is in calls.py and done once.
"""

from __future__ import annotations

import dataclasses
import email.utils
import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

from mappa_jax.judges.prompts import Form, Prompt
from mappa_jax.types import MissingReason

SHOWN_CHARS = 200  # of a faulty answer, in the detail of a fault


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of one call, as the provider counts them.

    Attributes:
      prompt: read, the cached ones included.
      cached: of them, read from the provider's cache.
      answer: written, thinking apart.
      thinking: thought, billed like the answer.
    """

    prompt: int = 0
    cached: int = 0
    answer: int = 0
    thinking: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.answer + self.thinking

    def __add__(self, other: Usage) -> Usage:
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Usage(*(a + b for a, b in zip(mine, theirs, strict=True)))


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a judge model wrote, thoughts left out."""

    text: str
    usage: Usage = Usage()


@dataclasses.dataclass(frozen=True)
class Fault:
    """A call that gave no answer.

    Attributes:
      reason: as it will stand in a `Missing`.
      detail: for a person.
      passing: whether it is worth asking again.
      down: whether it speaks of the endpoint rather than of this call.
      refused: whether the endpoint took offence at how it was asked, so that another
        form may do.
      retry_after_s: the pause that the server asked for, or None.
      usage: what was paid for all the same.
    """

    reason: MissingReason
    detail: str
    passing: bool = False
    down: bool = False
    refused: bool = False
    retry_after_s: float | None = None
    usage: Usage = Usage()


class Provider(Protocol):
    """One endpoint and model. Safe to call from many tasks of one event loop.

    Attributes:
      name: as in judge.provider.
      model: as in judge.model.
      forms: how the model may write its verdict. The first is tried first; the next
        where the endpoint refuses it, or does not write as it was asked to.
      at_once: requests that it can serve at a time; 0: as judge.concurrency says.
    """

    name: str
    model: str
    forms: tuple[Form, ...]
    at_once: int

    def settings(self, form: Form) -> Mapping[str, Any]:
        """What an answer depends on besides the prompt, the endpoint included where
        it may be another model's; JSON values, no secrets."""

    async def open(self) -> None:
        """Makes ready for the first call. Raises JudgeError."""

    async def ask(self, prompt: Prompt) -> Reply | Fault:
        """One attempt, as `prompt.form` says. Raises nothing for a fault of the
        outside world."""

    async def aclose(self) -> None:
        """Releases connections."""


def passing_fault(status: int, detail: str, retry_after: str) -> Fault | None:
    """The fault behind an HTTP status that is worth asking again, or None.

    Args:
      status: of the response.
      detail: for a person.
      retry_after: the header of that name, "" where there is none.
    """
    after = after_seconds(retry_after)
    if status == 429:
        return Fault(
            MissingReason.RATE_LIMITED, detail, passing=True, retry_after_s=after
        )
    if status == 408 or status >= 500:
        return Fault(
            MissingReason.SERVER_ERROR,
            detail,
            passing=True,
            down=True,
            retry_after_s=after,
        )
    return None


def after_seconds(header: str) -> float | None:
    """A Retry-After header in seconds from now; it may be a number or a date."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(header)
            seconds = when.timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
