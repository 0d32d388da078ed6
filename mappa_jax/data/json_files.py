"""Problems in local JSON files: the source "jsonl:<path>"."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mappa_jax.data.errors import DataError
from mappa_jax.data.values import answer_text
from mappa_jax.types import Task

_FORM = (
    'one JSON object per line, such as {"prompt": "What is 2 + 2?", "answer": "4"} '
    "(see docs/data.md)"
)


def read_text(path: pathlib.Path) -> str:
    """The file's text.

    Raises:
      DataError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the path in data.source "
            "or data.eval_source"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error}); convert it") from error


def _refuse_constant(name: str) -> None:
    """NaN and Infinity, which Python reads and JSON does not have."""
    raise json.JSONDecodeError(f"{name} is not JSON", name, 0)


def parse_lines(text: str, path: pathlib.Path) -> list[tuple[str, Mapping[str, Any]]]:
    """JSON lines as (where, object) pairs; empty lines are skipped.

    Raises:
      DataError: a line is not a JSON object, or there is none.
    """
    rows = []
    # Not splitlines(): JSON text may hold U+2028, which is no line end in a file.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: not valid JSON ({error.msg} at column {error.colno}); "
                f"expected {_FORM}"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: not a JSON object; expected {_FORM}")
        rows.append((where, row))
    if not rows:
        raise DataError(f"{path}: holds no problems; expected {_FORM}")
    return rows


def parse_rows(text: str, path: pathlib.Path) -> list[tuple[str, Mapping[str, Any]]]:
    """As `parse_lines`, but one JSON list of objects is read as well."""
    if not text.lstrip().startswith("["):
        return parse_lines(text, path)
    try:
        rows = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}); expected a list of "
            f"objects or {_FORM}"
        ) from error
    placed = [(f"{path}: item {index}", row) for index, row in enumerate(rows)]
    for where, row in placed:
        if not isinstance(row, dict):
            raise DataError(f"{where}: not a JSON object; expected {_FORM}")
    if not placed:
        raise DataError(f"{path}: holds no problems; expected {_FORM}")
    return placed


def load_jsonl(path: pathlib.Path, source: str) -> Sequence[Task]:
    """The problems of a JSON-lines file, in its order.

    Fields: `prompt` (text), `answer` (text, number or null), and, where present, `id`
    (text or integer; the line number otherwise) and `metadata` (object, in which
    `accepted_answers` is a list of texts, each of them right).

    Raises:
      DataError: naming file and line, where a line is malformed or an id repeats.
    """
    tasks: dict[str, Task] = {}
    for where, row in parse_lines(read_text(path), path):
        task = _task(row, where, source)
        if task.id in tasks:
            raise DataError(f"{where}: the id {task.id!r} occurs twice; make it unique")
        tasks[task.id] = task
    return tuple(tasks.values())


def _task(row: Mapping[str, Any], where: str, source: str) -> Task:
    identity = row.get("id", f"line-{where.rpartition(':')[2]}")
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise DataError(f"{where}: 'id' must be text or an integer, got {identity!r}")
    metadata = row.get("metadata", {})
    if not isinstance(metadata, dict):
        raise DataError(
            f"{where}: 'metadata' must be an object, got {type(metadata).__name__}"
        )
    accepted = metadata.get("accepted_answers", [])
    if not (isinstance(accepted, list) and all(isinstance(a, str) for a in accepted)):
        raise DataError(
            f"{where}: 'metadata.accepted_answers' must be a list of texts, "
            f"got {accepted!r}"
        )
    return Task(
        id=str(identity),
        prompt=prompt_text(row, where),
        answer=answer_text(row.get("answer"), where),
        source=source,
        metadata=metadata,
    )


def prompt_text(row: Mapping[str, Any], where: str) -> str:
    """The field `prompt` of a row.

    Raises:
      DataError: it is missing, empty or no text.
    """
    if "prompt" not in row:
        near = ", ".join(sorted(row)) or "none"
        raise DataError(
            f"{where}: the field 'prompt' is missing (fields: {near}); expected {_FORM}"
        )
    if not isinstance(row["prompt"], str) or not row["prompt"].strip():
        raise DataError(
            f"{where}: 'prompt' must be non-empty text, got {row['prompt']!r}"
        )
    return row["prompt"]
