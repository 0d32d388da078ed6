"""What a call costs, from a dated table (prices.json, or the user's own)."""

from __future__ import annotations

import json
from pathlib import Path

import pydantic

from mappa_jax.judges.base import JudgeError
from mappa_jax.judges.provider import Usage

OWN = Path(__file__).with_name("prices.json")
MILLION = 1e6


class Price(pydantic.BaseModel):
    """US dollars per million tokens."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: float = pydantic.Field(ge=0)
    cached: float = pydantic.Field(ge=0)
    answer: float = pydantic.Field(ge=0)

    def of(self, usage: Usage) -> float:
        """US dollars; thinking is billed like the answer."""
        return (
            self.prompt * max(usage.prompt - usage.cached, 0)
            + self.cached * usage.cached
            + self.answer * (usage.answer + usage.thinking)
        ) / MILLION


class _Table(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True)

    as_of: str
    unit: str = ""
    models: dict[str, Price]


def find_price(model: str, path: str = "") -> Price | None:
    """The model's price; None where the table does not have it.

    Args:
      model: as in judge.model.
      path: of the user's table; "" for the one that comes with the package.

    Raises:
      JudgeError: the table cannot be read.
    """
    table = Path(path) if path else OWN
    try:
        found = _Table.model_validate(json.loads(table.read_text(encoding="utf-8")))
    except (OSError, ValueError) as e:
        raise JudgeError(
            f"judge.prices={str(table)!r} cannot be read: {e}. It is JSON: as_of, and "
            "models, each with prompt, cached and answer in US dollars per million"
        ) from e
    return found.models.get(model)
