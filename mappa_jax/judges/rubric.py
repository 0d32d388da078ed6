"""The offline judge: named checks by role, in points, scaled to 0..10.

It needs no network, costs nothing and always gives the same verdict, so that a run can
be rehearsed and a test can know the best policy. It reads form and arithmetic; it does
not understand. Each check gives a share of its points, so that a weak policy finds a
slope to climb, and none pays for what can be written without looking at the task: a
step must rest on the task's numbers, a program must use them, an answer must agree with
what was handed on.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Sequence

from mappa_jax.judges import evidence
from mappa_jax.judges.arithmetic import find_numbers, same_answer, to_number
from mappa_jax.judges.base import Meter
from mappa_jax.judges.rubric_datascience import Style, judge_action
from mappa_jax.types import JudgeCall, JudgeRequest, Missing, Verdict

DECIMALS = 4  # of a score


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of a rubric: what was looked at, its points, and the share earned."""

    name: str
    points: float
    share: float

    def __str__(self) -> str:
        said = {0.0: "no", 1.0: "yes"}.get(self.share, f"{self.share:.0%}")
        return f"{self.name}: {said} (+{self.points * self.share:g} of {self.points:g})"


@dataclasses.dataclass(frozen=True)
class RubricJudge:
    """See `Judge`. Never fails, hence never answers `Missing`.

    Attributes:
      style: how the quality of a submission caps the last agent's points
        (judges/rubric_datascience.py).
    """

    style: Style = "balanced"
    name: str = "rubric"

    async def check(self) -> None:
        """Nothing can be wrong."""

    async def score(self, request: JudgeRequest) -> Verdict | Missing:
        """See `Judge.score`."""
        started = time.monotonic()
        if request.role.makes:
            found = judge_action(request, self.style)
            score, rationale = round(found.points, DECIMALS), found.why
        else:
            checks = apply_rubric(request)
            score, rationale = total(checks), "\n".join(map(str, checks))
        return Verdict(
            score=score,
            rationale=rationale,
            call=JudgeCall(self.name, latency_s=time.monotonic() - started),
            correct=_correct(request),
        )

    def meter(self) -> Meter:
        """Nothing is under way and nothing costs."""
        return Meter()

    def sync(self) -> None:
        """Nothing is recorded."""

    async def aclose(self) -> None:
        """Nothing is held."""


def apply_rubric(request: JudgeRequest) -> tuple[Check, ...]:
    """The checks of the role's rubric; those that do not apply are left out."""
    if not request.action.content.strip():
        return (Check("says something", 10, 0.0),)
    rubric = RUBRICS.get(request.role.name, _generic)
    return (*_form(request), *rubric(request))


def total(checks: Sequence[Check]) -> float:
    """Points earned as a share of those that could be, times 10."""
    earned = sum(check.points * check.share for check in checks)
    return round(10 * earned / sum(check.points for check in checks), DECIMALS)


def _form(request: JudgeRequest) -> tuple[Check, ...]:
    action = request.action
    return (
        Check("within the length limit", 0.5, float(action.finish == "stop")),
        Check(
            "readable and not repetitive",
            0.5,
            float(evidence.is_readable(action.content)),
        ),
    )


def _solver(request: JudgeRequest) -> tuple[Check, ...]:
    text = request.action.content
    steps = evidence.grounded_steps(text, request.task)
    holding = [step for step in steps if step.holds]
    answer = evidence.stated_answer(text)
    value = None if answer is None else to_number(answer)
    used = [number for step in holding for number in step.operands]
    return (
        Check("arithmetic steps that hold", 3, _share(len(holding), len(steps))),
        Check("steps use the task's numbers", 2, _coverage(request.task, used)),
        Check("states a final answer", 2, float(answer is not None)),
        Check(
            "the answer is the result of a step that holds",
            2,
            float(value is not None and value in {step.result for step in holding}),
        ),
    )


def _coder(request: JudgeRequest) -> tuple[Check, ...]:
    action, shown = request.action, evidence.shown_output(request)
    if action.code is None and action.turn > 0 and find_numbers(shown):
        return _report(request, shown)
    seen = action.observation
    ran = seen is not None and seen.ok
    printed = find_numbers(seen.stdout) if seen is not None and ran else ()
    used = evidence.code_numbers(action.code or "")
    return (
        Check("code block present", 1, float(action.code is not None)),
        Check("code ran without error", 2, float(ran)),
        Check("printed a number", 2, float(bool(printed))),
        # Not whether it agrees with the solver, who may well be wrong.
        Check(
            "code computes with the task's numbers", 4, _coverage(request.task, used)
        ),
    )


def _report(request: JudgeRequest, shown: str) -> tuple[Check, ...]:
    """A later turn that runs nothing and says what the program has found."""
    text = request.action.content
    value = evidence.last_number(evidence.stated_answer(text) or text)
    found = value is not None and value == evidence.last_number(shown)
    return (
        Check("states a result", 3, float(value is not None)),
        Check("the result is what was printed", 6, float(found)),
    )


def _verifier(request: JudgeRequest) -> tuple[Check, ...]:
    boxed = evidence.boxed_answers(request.action.content)
    answer = boxed[-1] if boxed else None
    shown = evidence.shown_output(request)
    checks = [
        Check("answer boxed", 2, float(bool(boxed))),
        Check("exactly one boxed answer", 1, float(len(boxed) == 1)),
    ]
    if find_numbers(shown):
        checks.append(Check("agrees with the tool's output", 3, _agrees(answer, shown)))
    else:
        is_number = answer is not None and to_number(answer) is not None
        checks.append(Check("the answer is a number", 3, float(is_number)))
    return (*checks, *_against_reference(request, answer))


def _generic(request: JudgeRequest) -> tuple[Check, ...]:
    """For a role that this file does not know."""
    text, seen = request.action.content, request.action.observation
    answer = evidence.stated_answer(text)
    # Digits strewn over nonsense are not use of the task's numbers.
    used = find_numbers(text) if evidence.is_readable(text) else ()
    checks = [
        Check("states a final answer", 3, float(answer is not None)),
        Check("uses the task's numbers", 3, _coverage(request.task, used)),
    ]
    if request.role.uses_tool:
        ran = seen is not None and seen.ok
        checks.append(Check("code ran without error", 3, float(ran)))
    return (*checks, *_against_reference(request, answer))


def _against_reference(request: JudgeRequest, answer: str | None) -> tuple[Check, ...]:
    if request.reference is None or not request.is_last:
        return ()
    right = answer is not None and same_answer(answer, request.reference)
    return (Check("agrees with the reference", 3, float(right)),)


def _correct(request: JudgeRequest) -> bool | None:
    if request.reference is None or not request.is_last:
        return None
    if request.action.outcome is not None:
        return request.action.outcome.score == 1.0
    answer = evidence.stated_answer(request.action.content)
    return answer is not None and same_answer(answer, request.reference)


def _agrees(answer: str | None, shown: str) -> float:
    """Whether the answer is the last number of what a program printed."""
    value = None if answer is None else to_number(answer)
    return float(value is not None and value == evidence.last_number(shown))


def _coverage(task: str, used) -> float:
    """The share of the task's numbers, as often as they occur, that are `used`."""
    wanted = collections.Counter(find_numbers(task))
    if not wanted:
        return float(bool(used))
    return _share((wanted & collections.Counter(used)).total(), wanted.total())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


RUBRICS: dict[str, Callable[[JudgeRequest], tuple[Check, ...]]] = {
    "solver": _solver,
    "coder": _coder,
    "verifier": _verifier,
}
