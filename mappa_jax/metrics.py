"""Numbers of a run: metrics.jsonl, and the loggers that show them to people."""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mappa_jax.loggers.base import Logger, Shown

NOTHING = Shown()


class MetricsError(ValueError):
    """metrics.jsonl is damaged beyond a torn last line."""


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metrics as one dict with keys joined by "/".

    Leaves are numbers, or anything that `numpy.asarray` makes one number of.

    Raises:
      TypeError: a leaf is not one number; the message names it.
    """
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}/")
        else:
            flat[name] = _number(name, value)
    return flat


def _number(name: str, value: Any) -> float | int:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        # bfloat16 and its kin are of kind "V" in NumPy but convert to float.
        if array.size != 1 or array.dtype.kind != "V":
            raise TypeError(f"the metric {name!r} must be one number, got {value!r}")
        return float(array.reshape(()))
    number = array.reshape(()).item()
    return int(number) if isinstance(number, bool) else number


class MetricWriter:
    """Writes WORKDIR/metrics.jsonl, and tells the loggers.

    A line of metrics.jsonl is one object with `step` and the flattened metrics. JSON
    has no NaN: a number that is not finite is null there, and `non_finite` maps its
    name to "nan", "inf" or "-inf". A step is on the disk when `write` returns.

    Args:
      workdir: made where it is missing.
      resume_step: the first step that will be written; what an earlier run has
        recorded from there on is dropped, and a torn last line with it. 0 for a
        new run.
      loggers: told each step, after it is on the disk; closed with the writer.

    Raises:
      MetricsError: metrics.jsonl holds a line that is not one of ours.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        resume_step: int,
        loggers: Sequence[Logger] = (),
    ):
        folder = pathlib.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        truncate_from(self._path, resume_step)
        self._lines = self._path.open("a", encoding="utf-8")
        self._loggers = loggers

    def write(
        self, step: int, metrics: Mapping[str, Any], shown: Shown = NOTHING
    ) -> None:
        """Records one iteration; `shown` is for the loggers alone.

        Raises:
          TypeError: a metric is not one number.
          ValueError: a metric is called like one of our own fields.
          OSError: the disk is full.
        """
        flat = flatten(metrics)
        for name in ("step", "non_finite"):
            if name in flat:
                raise ValueError(f"the metric name {name!r} is taken")
        self._lines.write(_line(step, flat))
        self._lines.flush()
        os.fsync(self._lines.fileno())
        finite = {k: v for k, v in flat.items() if math.isfinite(v)}
        for logger in self._loggers:
            logger.write(step, finite, shown)

    def close(self) -> None:
        self._lines.close()
        for logger in self._loggers:
            logger.close()


def _line(step: int, flat: Mapping[str, float]) -> str:
    row: dict[str, Any] = {"step": step}
    row |= {k: v if math.isfinite(v) else None for k, v in flat.items()}
    strange = {k: str(float(v)) for k, v in flat.items() if not math.isfinite(v)}
    if strange:
        row["non_finite"] = strange
    return json.dumps(row, allow_nan=False) + "\n"


def truncate_from(path: pathlib.Path, step: int) -> None:
    """Drops the lines from `step` on, and a torn last one; atomic.

    Raises:
      MetricsError: another line than the last is not a JSON object with a step.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    kept = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        recorded = _step_of(line)
        if recorded is None and number < len(lines):
            raise MetricsError(
                f"{path}:{number}: not a line of metrics; repair or move the file"
            )
        if recorded is not None and recorded < step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".jsonl.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _step_of(line: str) -> int | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if isinstance(step, int) else None
