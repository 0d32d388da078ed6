"""Small conversions that several sources share."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from mappa_jax.data.errors import DataError


def answer_text(value: Any, where: str) -> str | None:
    """A reference answer as text: 33.0 -> "33", " 7 " -> "7", None -> None.

    Args:
      value: what the source holds: text, a number or nothing.
      where: file and line, for the error.

    Raises:
      DataError: the value is empty, not finite, or of another type.
    """
    if value is None:
        return None
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    raise DataError(
        f"{where}: 'answer' must be non-empty text, a finite number or null, "
        f"got {value!r}"
    )


def jsonable(value: Any) -> Any:
    """`value` in JSON's types: keys become text, sequences lists, sets sorted lists.

    Whatever JSON has no form for becomes its `str`, so that a record can always be
    written; the scorers that read it back are checked when a source is loaded.
    """
    if isinstance(value, enum.Enum):
        return jsonable(value.value)
    if isinstance(value, np.generic | np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, Set):
        return [jsonable(item) for item in sorted(value, key=repr)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)
