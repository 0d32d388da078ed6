"""The form of a judge's answer, and its strict reading."""

from __future__ import annotations

import json
import re
from typing import Any

import pydantic

from mappa_jax.judges.prompts import Prompt
from mappa_jax.types import MissingReason


class ParsedVerdict(pydantic.BaseModel):
    """What a judge model answers, in the order in which it is to write it.

    The rationale comes first so that the score follows from it. The range of the
    score is checked by `parse_verdict` and not here, to tell the two faults apart.
    """

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)

    rationale: str = pydantic.Field(min_length=1)
    score: float
    correct: bool | None = None


def read_verdict(text: str, prompt: Prompt) -> ParsedVerdict | MissingReason:
    """The verdict in a model's answer to `prompt`.

    By a schema the answer is the verdict and nothing else. In free text it is the last
    one that stands whole between lines with the prompt's nonce: what the model quotes
    of the material cannot contain them.
    """
    if prompt.form != "fenced":
        return parse_verdict(text)
    opening = rf"^<<<{prompt.nonce} verdict[ \t\r]*\n"
    # From an opening to the first closing, with no other opening between them.
    whole = rf"{opening}((?:(?!{opening}).)*?)\n{prompt.nonce}>>>"
    found = re.findall(whole, text, re.DOTALL | re.MULTILINE)
    return parse_verdict(found[-1]) if found else MissingReason.UNPARSABLE


def parse_verdict(text: str) -> ParsedVerdict | MissingReason:
    """Reads one JSON object, and nothing around it.

    Nothing is repaired: a score that is out of 0..10, infinite or NaN is
    OUT_OF_RANGE, anything else that is not as asked for is UNPARSABLE.
    """
    try:
        fields = json.loads(text, object_pairs_hook=_once)
        parsed = ParsedVerdict.model_validate(fields)
    except (ValueError, RecursionError):  # pydantic's ValidationError is a ValueError
        return MissingReason.UNPARSABLE
    if not 0.0 <= parsed.score <= 10.0:  # NaN fails this too
        return MissingReason.OUT_OF_RANGE
    return parsed


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError(
            "a key occurs twice, and which one is meant is not ours to say"
        )
    return fields
