"""A judge's answer is read strictly, and never repaired."""

import pytest

from mappa_jax.judges.schema import ParsedVerdict, parse_verdict
from mappa_jax.types import MissingReason


@pytest.mark.parametrize(
    "text, score, correct",
    [
        ('{"rationale": "r", "score": 7.5, "correct": true}', 7.5, True),
        ('{"rationale": "r", "score": 0}', 0.0, None),
        (' {"score": 10, "rationale": "r", "correct": null}\n', 10.0, None),
    ],
)
def test_good(text, score, correct):
    wanted = ParsedVerdict(rationale="r", score=score, correct=correct)
    assert parse_verdict(text) == wanted


@pytest.mark.parametrize("score", ["10.01", "11", "-0.1", "NaN", "Infinity", "1e999"])
def test_out_of_range_is_not_clamped(score):
    text = f'{{"rationale": "r", "score": {score}}}'
    assert parse_verdict(text) is MissingReason.OUT_OF_RANGE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8",
        "null",
        '{"rationale": "r"}',
        '{"rationale": "r", "score": "8"}',
        '{"rationale": "r", "score": true}',
        '{"rationale": "r", "score": null}',
        '{"rationale": "", "score": 8}',
        '{"rationale": "r", "score": 8, "correct": "yes"}',
        '{"rationale": "r", "score": 8, "grade": 10}',
        '{"rationale": "r", "score": 1, "score": 10}',
        '{"rationale": "r", "score": 8',
        '```json\n{"rationale": "r", "score": 8}\n```',
        '{"rationale": "r", "score": 8} {"rationale": "r", "score": 10}',
        "[" * 100_000,
    ],
)
def test_unparsable(text):
    assert parse_verdict(text) is MissingReason.UNPARSABLE
