"""Is the final answer right? Graded by rule, never by a judge.

The final answer is what the text holds in its last \\boxed{...}. Plain numbers are
compared here; everything else in worker processes (`answer_worker`), so that no
answer can hang or exhaust the run.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import decimal
import logging
import queue
import re
from typing import Any

from mappa_jax.answer_process import AnswerProcess, GradingError
from mappa_jax.types import Outcome, Task

__all__ = ["Grade", "Grader", "GradingError", "extract_boxed"]

_BOX_TOKENS = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.[0-9]{1,40})?")
_DEGREES = re.compile(r"(?:\^\s*\{?\s*\\circ\s*\}?|°)$")

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Grade:
    """An outcome, and why it was not reached by plain comparison.

    `reason` is None, "no boxed answer", "timeout", "crash", or the error that the
    scorer raised on the answer; in each of these cases the score is 0.
    """

    outcome: Outcome
    reason: str | None = None


def extract_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} whose braces balance, stripped, or None.

    Of nested boxes it is the inner one. Escaped braces do not count.
    """
    open_at: list[tuple[bool, int]] = []  # of each open brace: is it a box, its inside
    last: tuple[int, int] | None = None
    for token in _BOX_TOKENS.finditer(text):
        if token[0].startswith("\\boxed"):
            open_at.append((True, token.end()))
        elif token[0] == "{":
            open_at.append((False, token.end()))
        elif token[0] == "}" and open_at:
            boxed, start = open_at.pop()
            if boxed and (last is None or start > last[0]):
                last = (start, token.start())
    return None if last is None else text[slice(*last)].strip()


class Grader:
    """Grades texts in warm worker processes, each replaced when an answer kills it.

    Args:
      workers: processes, started on first need.
      seconds: processor time for one answer; beyond it the answer is wrong.

    Attributes:
      reasons: how often each `Grade.reason` has occurred, error messages left off.
    """

    def __init__(self, *, workers: int, seconds: float):
        self.reasons: collections.Counter[str] = collections.Counter()
        self._threads = concurrent.futures.ThreadPoolExecutor(workers, "grader")
        self._slots: queue.SimpleQueue[AnswerProcess] = queue.SimpleQueue()
        self._all = [AnswerProcess(seconds) for _ in range(workers)]
        for slot in self._all:
            self._slots.put(slot)

    async def grade(self, task: Task, text: str) -> Outcome | None:
        """What the ground truth says of the text's final answer.

        Returns:
          None where the task has no ground truth.

        Raises:
          GradingError: workers cannot be run. A wrong, unreadable or pathological
            answer is an Outcome of score 0 instead.
        """
        graded = await self.grade_reasoned(task, text)
        return None if graded is None else graded.outcome

    async def grade_reasoned(self, task: Task, text: str) -> Grade | None:
        """As `grade`, with the reason of a score that was not compared."""
        graded, request = _at_once(task, text)
        if request is not None:
            loop = asyncio.get_running_loop()
            reply = await loop.run_in_executor(self._threads, self._ask, request)
            graded = _graded(reply, extract_boxed(text))
        return self._noted(task, graded)

    def grade_now(self, task: Task, text: str) -> Grade | None:
        """As `grade_reasoned`, blocking."""
        graded, request = _at_once(task, text)
        if request is not None:
            graded = _graded(self._ask(request), extract_boxed(text))
        return self._noted(task, graded)

    async def aclose(self) -> None:
        """Ends the workers, after the answers in hand."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """As `aclose`, blocking."""
        self._threads.shutdown(wait=True)
        for slot in self._all:
            slot.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        slot = self._slots.get()
        try:
            return slot.ask(request)
        finally:
            self._slots.put(slot)

    def _noted(self, task: Task, graded: Grade | None) -> Grade | None:
        if graded is not None and graded.reason is not None:
            self.reasons[graded.reason.partition(":")[0]] += 1
            if graded.outcome.answer is not None:
                _logger.warning(
                    "task %s: the answer %.80r scores 0: %s",
                    task.id,
                    graded.outcome.answer,
                    graded.reason,
                )
        return graded


def _at_once(task: Task, text: str) -> tuple[Grade | None, dict[str, Any] | None]:
    """The grade where no worker is needed, or else the request for one."""
    kind, _, family = task.grader.partition(":")
    if kind not in _REQUESTS:
        raise ValueError(
            f"task {task.id}: unknown grader {task.grader!r}; there are math, exact "
            "and reasoning_gym:<family>"
        )
    if task.answer is None and kind != "reasoning_gym":
        return None, None
    answer = extract_boxed(text)
    if answer is None:
        return Grade(Outcome(0.0), "no boxed answer"), None
    score, request = _REQUESTS[kind](task, family, answer)
    return (None, request) if score is None else (Grade(Outcome(score, answer)), None)


def _graded(reply: dict[str, Any], answer: str | None) -> Grade:
    return Grade(Outcome(reply["score"], answer), reply["reason"])


def _exact(task: Task, family: str, answer: str) -> tuple[float, None]:
    del family
    return float(answer.split() == task.answer.split()), None


def _math(task: Task, family: str, answer: str) -> tuple[float | None, dict | None]:
    del family
    # A problem may have several official answers.
    references = list(task.metadata.get("accepted_answers", [task.answer]))
    known = [_same_number(answer, reference) for reference in references]
    if any(known) or any(answer == reference for reference in references):
        return 1.0, None
    if all(same is False for same in known):
        return 0.0, None
    return None, {"kind": "math", "answer": answer, "references": references}


def _gym(task: Task, family: str, answer: str) -> tuple[None, dict]:
    return None, {
        "kind": "reasoning_gym",
        "family": family,
        "question": task.prompt,
        "reference": task.answer,
        "metadata": dict(task.metadata),
        "answer": answer,
    }


_REQUESTS = {"exact": _exact, "math": _math, "reasoning_gym": _gym}


def _same_number(answer: str, reference: str) -> bool | None:
    """Whether two plain numbers are equal; None where only math-verify can tell."""
    one, two = _number(answer), _number(reference)
    if one is None or two is None:
        return None
    if one == two:
        return True
    whole = one == one.to_integral_value() and two == two.to_integral_value()
    return False if whole else None  # decimals may agree after rounding


def _number(text: str) -> decimal.Decimal | None:
    """ "1,000" -> 1000, "336^\\circ" -> 336, "m = 16" -> None."""
    bare = _DEGREES.sub("", text.strip().strip("$").strip()).strip().rstrip(".")
    if _NUMBER.fullmatch(bare) is None:
        return None
    return decimal.Decimal(bare.replace(",", ""))
