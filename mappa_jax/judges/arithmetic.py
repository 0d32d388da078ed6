"""Numbers and sums in text, read exactly and without `eval`.

Used by the rubric. Everything is a `Fraction`, every loop is bounded by the length of
the text, and what cannot be read is no step rather than a wrong one.
"""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

MAX_DIGITS = 24  # longer numbers are not sums that anybody does by hand
MAX_DEPTH = 16  # of brackets

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+"
_TOKEN = re.compile(rf"(?P<number>{_NUMBER})(?P<percent>%?)|(?P<sign>[-+*/()=])")
_SIGNED = re.compile(rf"(?<![\w.)])-?(?:{_NUMBER})|{_NUMBER}")
_REWRITES = (
    (re.compile(r"(?m)^[ \t]*(?:[-*•]|\d+[.)])[ \t]+"), ""),  # marks of a list
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\.(?!\d)"), ";"),  # the end of a sentence
    (re.compile(r"\\left|\\right|\\[,;! ]|\\?\$|[*_]{2}"), ""),
    (re.compile(r"\\text\{[^{}]*\}"), " "),
    (re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\times|\\cdot|[×·∗]|(?<=\d)\s*[xX]\s*(?=\d)"), "*"),
    (re.compile(r"\\div|÷"), "/"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\\%"), "%"),
    # One word of unit between a number and what follows: 5 apples + 3 apples = 8.
    (re.compile(r"(?<=\d)[ \t]+[A-Za-z]+[ \t]*(?=[-+*/=])"), ""),
)
# What may stand inside one sum; anything else ends it.
_SUM = re.compile(r"[-+*/()=\d.% \t]+")


@dataclasses.dataclass(frozen=True)
class Step:
    """One equation of a text: a sum on at least one side.

    Attributes:
      operands: all numbers of the sum's side.
      result: the value of the right-hand side.
      holds: whether both sides agree, up to the rounding that the right one shows.
      text: the equation, without blanks.
    """

    operands: tuple[Fraction, ...]
    result: Fraction
    holds: bool
    text: str


@dataclasses.dataclass(frozen=True)
class _Side:
    value: Fraction | None  # None: divides by zero
    operands: tuple[Fraction, ...]
    trivial: bool  # no operator, or none that changes anything
    decimals: int  # digits after the point of a lone number
    text: str


def find_steps(text: str) -> tuple[Step, ...]:
    """The distinct equations of `text` whose left side does some arithmetic.

    `1 = 1`, `5 + 0 = 5` and `5 * 1 = 5` do none.
    """
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    steps: dict[str, Step] = {}
    for match in _SUM.finditer(text):
        sides = [_read_side(part) for part in match[0].split("=")]
        for left, right in zip(sides, sides[1:], strict=False):
            if left is None or right is None or left.trivial or right.value is None:
                continue
            step = Step(
                operands=left.operands,
                result=right.value,
                holds=_agree(left.value, right),
                text=f"{left.text}={right.text}",
            )
            steps.setdefault(step.text, step)
    return tuple(steps.values())


def find_numbers(text: str) -> tuple[Fraction, ...]:
    """All numbers of `text`, in order, signs included where they are signs."""
    return tuple(
        number
        for match in _SIGNED.finditer(text)
        if (number := _to_fraction(match[0])) is not None
    )


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are one number, or one text but for blanks and markup."""
    first, second = to_number(one), to_number(other)
    if first is not None and second is not None:
        return first == second
    return _plain(one) == _plain(other) != ""


def to_number(text: str) -> Fraction | None:
    """The value of an answer that is a number or a sum of numbers, else None."""
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    side = _read_side(text.strip().rstrip(",;").strip())
    return None if side is None else side.value


def _plain(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm|left|right)\b|[\\${}\s]", "", text)
    return text.casefold().rstrip(".,")


def _agree(value: Fraction | None, right: _Side) -> bool:
    if value is None or right.value is None:
        return False
    if not right.decimals:
        return value == right.value
    return abs(value - right.value) <= Fraction(1, 2 * 10**right.decimals)


def _to_fraction(text: str) -> Fraction | None:
    digits = text.rstrip(",").replace(",", "")
    if len(digits) > MAX_DIGITS:
        return None
    return Fraction(digits)


def _read_side(text: str) -> _Side | None:
    tokens = list(_TOKEN.finditer(text))
    if not tokens or _TOKEN.sub("", text).strip():
        return None
    reader = _Reader(tokens)
    try:
        value = reader.sum(0)
    except ZeroDivisionError:
        value = None
    except _UnreadableError:
        return None
    if value is not None and reader.left():
        return None
    last = tokens[-1]["number"] or ""
    lone = len(reader.operands) == 1
    return _Side(
        value=value,
        operands=tuple(reader.operands),
        trivial=not reader.changed,
        decimals=len(last.partition(".")[2]) if lone else 0,
        text="".join(text.split()),
    )


class _UnreadableError(Exception):
    pass


class _Reader:
    """Recursive descent over sum = product ((+|-) product)*, and so on down."""

    def __init__(self, tokens):
        self._tokens, self._at = tokens, 0
        self.operands: list[Fraction] = []
        self.changed = False  # did any operator do anything?

    def left(self) -> bool:
        return self._at < len(self._tokens)

    def _take(self, signs: str) -> str | None:
        if self.left():
            sign = self._tokens[self._at]["sign"]
            if sign and sign in signs:
                self._at += 1
                return sign
        return None

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while sign := self._take("+-"):
            other = self.product(depth)
            self.changed |= value != 0 and other != 0
            value = value + other if sign == "+" else value - other
        return value

    def product(self, depth: int) -> Fraction:
        value = self.atom(depth)
        while sign := self._take("*/"):
            other = self.atom(depth)
            by_zero = sign == "/" and other == 0  # wrong, rather than idle
            self.changed |= by_zero or not {value, other} & {0, 1}
            value = value * other if sign == "*" else value / other
        return value

    def atom(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH or not self.left():
            raise _UnreadableError
        if self._take("-"):
            return -self.atom(depth + 1)
        if self._take("("):
            value = self.sum(depth + 1)
            if self._take(")") is None:
                raise _UnreadableError
            return value
        token = self._tokens[self._at]
        number = _to_fraction(token["number"]) if token["number"] else None
        if number is None:
            raise _UnreadableError
        self._at += 1
        number = number / 100 if token["percent"] else number
        self.operands.append(number)
        return number
