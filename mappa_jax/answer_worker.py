"""The process in which answers are compared; see `answers.Grader`.

An answer is a model's text, and comparing it may run SymPy for hours or eat all
memory. So this runs in a process of its own that the kernel ends when a comparison
has used up its processor time: a signal's default action works inside C code, where
a Python handler does not, and processor time does not depend on the machine's load.

One JSON object per line: a request on standard input, its reply on standard output.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

# A wall, not a setting: far above what SymPy needs, far below what hurts a host.
MEMORY_BYTES = 4 << 30

# Their scorers compare tuples, which JSON turns into lists.
_TUPLE_FAMILIES = ("arc_agi", "rearc")


def score_math(answer: str, references: list[str]) -> float:
    """1.0 where math-verify finds the answer equal to one of the references."""
    import math_verify

    given = math_verify.parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
    for reference in references:
        gold = math_verify.parse(f"\\boxed{{{reference}}}", parsing_timeout=None)
        if math_verify.verify(gold, given, timeout_seconds=None):
            return 1.0
    return 0.0


def score_reasoning_gym(
    family: str,
    question: str,
    reference: str | None,
    metadata: Mapping[str, Any],
    answer: str,
) -> float:
    """What the family's own scorer says, in 0..1.

    Args:
      family: a name that reasoning_gym registers.
      question, reference: the entry's own.
      metadata: `entry`, the entry's metadata, and `params`, the family's parameters.
      answer: the text to be scored.

    Raises:
      ValueError: the scorer leaves that range; and whatever else it raises.
    """
    entry = metadata["entry"]
    scorer = _scorer(family, json.dumps(metadata["params"], sort_keys=True))
    if family in _TUPLE_FAMILIES:
        entry = _tuples(entry)
    score = float(
        scorer(answer, {"question": question, "answer": reference, "metadata": entry})
    )
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"the scorer of {family} returned {score}, not in 0..1")
    return score


@functools.cache
def _scorer(family: str, params: str) -> Callable[[str, Mapping[str, Any]], float]:
    # Some scorers read the family's parameters, so the default scorer will not do.
    import reasoning_gym

    return reasoning_gym.create_dataset(family, **json.loads(params)).score_answer


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _prepare(request: Mapping[str, Any]) -> None:
    """Imports outside the time limit what the request needs."""
    if request["kind"] == "math":
        import math_verify  # noqa: F401
    else:
        import reasoning_gym  # noqa: F401


def _score(request: Mapping[str, Any]) -> float:
    arguments = {key: value for key, value in request.items() if key != "kind"}
    if request["kind"] == "math":
        return score_math(**arguments)
    return score_reasoning_gym(**arguments)


def serve(seconds: float) -> None:
    """Answers requests until standard input ends.

    Args:
      seconds: processor time per request; SIGPROF ends the process beyond it.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a scorer prints must not mix with the replies
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin:
        request = json.loads(line)
        _prepare(request)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            reply = {"score": _score(request), "reason": None}
        except Exception as error:  # a scorer that trips over a model's text
            reply = {"score": 0.0, "reason": f"{type(error).__name__}: {error}"}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
