"""Every trajectory on disk, whole: one JSON object per line.

Token ids and log-probabilities are kept as lists, so that a record can be trained
on again, audited or judged anew. A file is complete or absent.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mappa_jax.types import (
    Action,
    JudgeCall,
    Message,
    Missing,
    MissingReason,
    Observation,
    Outcome,
    Task,
    Trajectory,
    Verdict,
)


class RecordError(ValueError):
    """A record cannot be read; the message names file and line."""


def training_path(workdir: str | os.PathLike[str], step: int) -> pathlib.Path:
    """Where the trajectories of a training iteration lie."""
    return pathlib.Path(workdir) / "trajectories" / f"step_{step:06d}.jsonl"


def training_files(
    workdir: str | os.PathLike[str],
) -> list[tuple[int, pathlib.Path]]:
    """Every training iteration's number and file, in order."""
    found = (pathlib.Path(workdir) / "trajectories").glob("step_*.jsonl")
    return sorted((int(path.stem.removeprefix("step_")), path) for path in found)


def evaluation_path(
    workdir: str | os.PathLike[str], step: int, source: str
) -> pathlib.Path:
    """Where the trajectories of an evaluation after `step` iterations lie."""
    name = re.sub(r"[^\w.-]+", "_", source)
    return pathlib.Path(workdir) / "trajectories" / f"eval_{step:06d}_{name}.jsonl"


def credit_path(workdir: str | os.PathLike[str], step: int) -> pathlib.Path:
    """Where the credit of a training iteration lies (learning/recorded.py)."""
    return pathlib.Path(workdir) / "trajectories" / f"credit_{step:06d}.jsonl"


def write_trajectories(path: pathlib.Path, trajectories: Iterable[Trajectory]) -> None:
    """Writes them all, or nothing: to a temporary file that is then renamed.

    Raises:
      TypeError: a task's metadata are not JSON-serialisable.
    """
    write_rows(path, map(encode, trajectories))


def write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON values, one a line, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_rows(path: pathlib.Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none where there is no file.

    A last line without its end is left out: a run that goes on is writing it.

    Raises:
      RecordError: another line is not an object with the `needed` keys.
    """
    if not path.exists():
        return []
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_row(path, n, line, needed) for n, line in enumerate(whole, 1) if line]


def _row(
    path: pathlib.Path, number: int, line: str, needed: Sequence[str]
) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as e:
        raise RecordError(f"{path}:{number}: not JSON ({e}); mend the line") from e
    lacking = [k for k in needed if not isinstance(row, dict) or k not in row]
    if lacking:
        raise RecordError(
            f"{path}:{number}: no {', '.join(lacking)} in this line; mend or remove it"
        )
    return row


def append_row(path: pathlib.Path, row: Mapping[str, Any]) -> None:
    """Adds a JSON value as a line of its own; a torn last line is cut off first."""
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")


def read_evaluations(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of evaluations.jsonl; of an evaluation that was made again, the last.

    Raises:
      RecordError: a line is damaged.
    """
    rows = read_rows(workdir / "evaluations.jsonl", ("step", "label", "sources"))
    return [*{(row["label"], row["step"]): row for row in rows}.values()]


def read_trajectories(path: str | os.PathLike[str]) -> list[Trajectory]:
    """What `write_trajectories` wrote, equal in every field.

    Raises:
      RecordError: a line is not a record.
    """
    trajectories = []
    with pathlib.Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                trajectories.append(decode(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise RecordError(
                    f"{path}:{number}: not a trajectory record; was the file edited? "
                    f"({type(error).__name__}: {error})"
                ) from error
    return trajectories


def encode(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as JSON values."""
    return {
        "task": _fields(trajectory.task),
        "step": trajectory.step,
        "sample": trajectory.sample,
        "actions": [_encode_action(action) for action in trajectory.actions],
        "verdicts": [_encode_verdict(verdict) for verdict in trajectory.verdicts],
        "outcome": _optional(_fields, trajectory.outcome),
        "failure": trajectory.failure,
    }


def decode(row: Mapping[str, Any]) -> Trajectory:
    """The trajectory that `encode` made `row` of."""
    return Trajectory(
        task=Task(**row["task"]),
        step=row["step"],
        sample=row["sample"],
        actions=tuple(_decode_action(action) for action in row["actions"]),
        verdicts=tuple(_decode_verdict(verdict) for verdict in row["verdicts"]),
        outcome=_optional(_decode_outcome, row["outcome"]),
        failure=row["failure"],
    )


def _encode_action(action: Action) -> dict[str, Any]:
    return _fields(action) | {
        "messages": [_fields(message) for message in action.messages],
        "prompt_ids": action.prompt_ids.tolist(),
        "token_ids": action.token_ids.tolist(),
        "logprobs": [plain(value) for value in action.logprobs.tolist()],
        "observation": _optional(_fields, action.observation),
        "outcome": _optional(_fields, action.outcome),
    }


def _decode_action(row: Mapping[str, Any]) -> Action:
    converted = {
        "messages": tuple(Message(**message) for message in row["messages"]),
        "prompt_ids": np.asarray(row["prompt_ids"], np.int32),
        "token_ids": np.asarray(row["token_ids"], np.int32),
        "logprobs": np.asarray([float(v) for v in row["logprobs"]], np.float32),
        "observation": _optional(_decode_observation, row["observation"]),
        "outcome": _optional(_decode_outcome, row.get("outcome")),
    }
    return Action(**{**row, **converted})


def _decode_observation(row: Mapping[str, Any]) -> Observation:
    names = ("files", "files_before", "changed", "empty")
    listed = {name: tuple(row.get(name, ())) for name in names}
    return Observation(**{**row, **listed})


def _decode_outcome(row: Mapping[str, Any]) -> Outcome:
    return Outcome(**row)


def _encode_verdict(verdict: Verdict | Missing) -> dict[str, Any]:
    fields = _fields(verdict) | {"call": _fields(verdict.call)}
    if isinstance(verdict, Missing):
        fields["reason"] = verdict.reason.value
    return fields


def _decode_verdict(row: Mapping[str, Any]) -> Verdict | Missing:
    call = JudgeCall(**row["call"])
    if "reason" in row:
        reason = MissingReason(row["reason"])
        return Missing(reason=reason, detail=row["detail"], call=call)
    return Verdict(**{**row, "call": call})


def _fields(record: Any) -> dict[str, Any]:
    """The fields of a dataclass, one level deep."""
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in fields.items()}


def plain(value: float) -> float | str:
    """JSON has no NaN: "nan", "inf" and "-inf" stand for what is not finite."""
    return value if math.isfinite(value) else str(value)


def _optional(convert: Any, value: Any) -> Any:
    return None if value is None else convert(value)
