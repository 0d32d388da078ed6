"""Sums in text, by hand."""

from fractions import Fraction

import pytest

from mappa_jax.judges.arithmetic import (
    find_numbers,
    find_steps,
    same_answer,
    to_number,
)


@pytest.mark.parametrize(
    "text, steps",
    [
        ("2 + 3 = 5", [True]),
        ("2 + 3 = 6", [False]),
        ("so 12 * 3 = 36, then 36 - 6 = 30.", [True, True]),
        ("3 + 4 = 7. 5 + 6 = 11.", [True, True]),
        ("2 + 3 * 4 = 14", [True]),
        ("(2 + 3) * 4 = 20", [True]),
        ("2 * (3 + 4) = 14", [True]),
        ("1,200 / 4 = 300", [True]),
        ("10 / 3 = 3.33", [True]),
        ("10 / 3 = 3.34", [False]),
        ("10 / 3 = 3", [False]),
        ("5 / 0 = 5", [False]),
        ("20% * 50 = 10", [True]),
        ("5 apples + 3 apples = 8 apples", [True]),
        ("$5 \\times 3 = 15$", [True]),
        ("\\frac{9}{3} + 1 = 4", [True]),
        ("5 x 3 = 15 and 6 × 2 = 12", [True, True]),
        ("- 3 + 4 = 7\n2) 5 + 5 = 10\n1. 6 - 2 = 4", [True, True, True]),
        ("2 + 3 = 5 * 2 = 10", [False, True]),
        ("2 + 3 = 5\n2+3=5", [True]),
        # No arithmetic is done in these.
        ("1 = 1", []),
        ("5 + 0 = 5, 7 * 1 = 7, 0 * 9 = 0, 8 / 1 = 8", []),
        ("x = 5", []),
        ("= = = 5", []),
        ("2 3 + 4 = 7", []),
        ("((((2 + 3 = 5", []),
        ("(" * 99 + "2+2" + ")" * 99 + " = 4", []),
        ("9" * 50 + " + 2 = 4", []),
        ("", []),
    ],
)
def test_steps(text, steps):
    assert [step.holds for step in find_steps(text)] == steps


def test_a_step_knows_its_numbers():
    (step,) = find_steps("1.5 * (4 - 2) = 3")
    assert step.operands == (Fraction(3, 2), 4, 2)
    assert step.result == 3


def test_numbers():
    text = "3, -4 and 1,200.5 of [2,3] in x-5 or .5"
    assert find_numbers(text) == (3, -4, Fraction(2401, 2), 2, 3, 5, Fraction(1, 2))


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("72", "72.0", True),
        ("1,000", "1000", True),
        ("\\frac{1}{2}", "0.5", True),
        ("$18", "18", True),
        ("50%", "0.5", True),
        ("\\text{ B }", "b", True),
        ("x + 1", "x+1", True),
        ("72", "73", False),
        ("", "", False),
        ("1/0", "1/0", True),  # no number, but the same text
    ],
)
def test_same_answer(one, other, same):
    assert same_answer(one, other) is same


def test_what_is_no_number():
    assert to_number("seven") is None
    assert to_number("-3.") == -3
