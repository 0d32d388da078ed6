"""What the rubric looks for in an action and in what the agent was shown."""

from __future__ import annotations

import ast
import re
import warnings
from fractions import Fraction

from mappa_jax.judges.arithmetic import Step, find_numbers, find_steps
from mappa_jax.types import JudgeRequest

# Readable: so much of it is letters, digits, blanks or common marks, and of its
# words and characters so many runs are distinct.
READABLE_SHARE = 0.85
WORD_RUN, DISTINCT_WORD_RUNS = 4, 0.5
CHAR_RUN, DISTINCT_CHAR_RUNS = 8, 0.2
COMMON_MARKS = frozenset(" \n\t.,;:!?'\"()[]{}<>+-*/=%$\\^_#`|&~@×·÷−–")
LARGEST_CONSTANT = 10**18  # of those that are compared with the task's numbers
MAX_CODE_CHARS = 20_000  # ast.parse takes long over more

_NUMBER = r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?"
_STATED = re.compile(
    rf"(?:####|\banswer\b(?:\s+is|\s+would\s+be)?)[\s:=*$]*({_NUMBER})", re.IGNORECASE
)
_OUTPUT_HEAD = re.compile(
    r"^(?:tool |program )?output\b[^\n:]{0,40}:[ \t]*", re.IGNORECASE | re.MULTILINE
)
# What is shown of a run besides standard output; the numbers in it are no results.
_NOT_STDOUT = re.compile(
    r"^(?:stderr:|stopped: |exit status -?\d).*", re.DOTALL | re.MULTILINE
)


def is_readable(text: str) -> bool:
    """Whether `text` is mostly ordinary characters and does not go in circles."""
    text = text.strip()
    if not any(char.isalnum() for char in text):
        return False
    ordinary = sum(c.isalnum() or c in COMMON_MARKS for c in text)
    if ordinary < READABLE_SHARE * len(text):
        return False
    words = text.split()
    return (
        _distinct_runs(words, WORD_RUN) >= DISTINCT_WORD_RUNS
        and _distinct_runs(text, CHAR_RUN) >= DISTINCT_CHAR_RUNS
    )


def _distinct_runs(items, length: int) -> float:
    runs = [tuple(items[i : i + length]) for i in range(len(items) - length + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


def grounded_steps(text: str, task: str) -> list[Step]:
    """The steps of `text` that start from the task's numbers, or from such a step.

    Where the task has no digits, every step counts.
    """
    known = set(find_numbers(task))
    steps = find_steps(text)
    if not known:
        return list(steps)
    grounded = []
    for step in steps:
        if known & set(step.operands):
            grounded.append(step)
            if step.holds:
                known.add(step.result)
    return grounded


def boxed_answers(text: str) -> list[str]:
    r"""The contents of every closed `\boxed{...}`, outermost, in order."""
    found, start = [], 0
    while (at := text.find("\\boxed{", start)) >= 0:
        begin = at + len("\\boxed{")
        depth, end = 1, begin
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth:
            break
        if text[begin : end - 1].strip():
            found.append(text[begin : end - 1])
        start = end
    return found


def stated_answer(text: str) -> str | None:
    """The last boxed answer, else the last "answer is 5" or "#### 5"."""
    boxed = boxed_answers(text)
    if boxed:
        return boxed[-1]
    stated = _STATED.findall(text)
    return stated[-1] if stated else None


def code_numbers(code: str) -> list[Fraction]:
    """The numbers that a program computes with: none if it only prints them."""
    if len(code) > MAX_CODE_CHARS:
        return []
    try:
        with warnings.catch_warnings():  # about the agent's code, and not for our log
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    nodes = list(ast.walk(tree))
    if not any(isinstance(node, ast.BinOp | ast.AugAssign) for node in nodes):
        return []
    values = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return [
        Fraction(str(value))
        for value in values
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < LARGEST_CONSTANT
    ]


def shown_output(request: JudgeRequest) -> str:
    """What the team's last program before this action printed; "" if none ran."""
    seen = [a.observation.stdout for a in request.before if a.observation is not None]
    return seen[-1] if seen else ""


def last_number(text: str) -> Fraction | None:
    """The last number in `text`."""
    found = find_numbers(text)
    return found[-1] if found else None
