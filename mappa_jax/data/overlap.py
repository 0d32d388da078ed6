"""Evaluation problems that were trained on: found before the first step."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from mappa_jax.data.errors import DataError
from mappa_jax.types import Task

_SHOWN = 5
_SPACE = re.compile(r"\s+|\\[,;:! ]|~|\$")
# Punctuation that ends a word or clause. Signs inside numbers and formulas (1.5,
# 5!, a-b) and the cells of a drawn grid carry meaning and stay.
_PROSE = re.compile(r"(?<=[\w)}\]])\s*[.,;:?]+(?=\s|$)")
_QUOTES = re.compile("[\"'`\u2018\u2019\u201c\u201d]")


@dataclasses.dataclass(frozen=True)
class Overlap:
    """One evaluation problem that occurs in the training pool."""

    source: str
    eval_id: str
    train_source: str
    train_id: str


def normalise(prompt: str) -> str:
    """The prompt without differences of case, spacing, quotes and punctuation.

    Equal results mean the same problem; operators and brackets are kept, because
    "3 + 4" and "3 - 4" are two problems.
    """
    text = unicodedata.normalize("NFKC", prompt).casefold()
    text = _QUOTES.sub("", _SPACE.sub(" ", text))
    return _SPACE.sub(" ", _PROSE.sub(" ", text)).strip()


def find_overlap(train: Iterable[Task], held_out: Iterable[Task]) -> list[Overlap]:
    """The evaluation problems that occur in the training pool, in their order."""
    known = {normalise(task.prompt): task for task in train}
    pairs = ((task, known.get(normalise(task.prompt))) for task in held_out)
    return [
        Overlap(task.source, task.id, match.source, match.id)
        for task, match in pairs
        if match is not None
    ]


def check_overlap(
    train: Sequence[Task],
    evaluation: Mapping[str, Sequence[Task]],
    on_overlap: Literal["refuse", "report"],
) -> list[Overlap]:
    """The overlap of all evaluation sets with the training pool.

    Raises:
      DataError: there is one and `on_overlap` is "refuse".
    """
    held_out = [task for tasks in evaluation.values() for task in tasks]
    found = find_overlap(train, held_out)
    if found and on_overlap == "refuse":
        shown = ", ".join(f"{o.source}/{o.eval_id}" for o in found[:_SHOWN])
        more = ", ..." if len(found) > _SHOWN else ""
        raise DataError(
            f"{len(found)} of {len(held_out)} evaluation problems occur in the "
            f"training pool ({shown}{more}): their scores would not be of held-out "
            "problems. Choose another data.source or data.eval_source, or set "
            'data.on_overlap="report" to train on them knowingly'
        )
    return found
