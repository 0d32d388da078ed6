"""What a run has left in its folder, read without changing it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from mappa_jax import records, versions
from mappa_jax.config import ConfigError
from mappa_jax.records import RecordError, read_evaluations, read_rows
from mappa_jax.types import Trajectory

TRAINING = "training"
TEAM = "team"  # the label of the team in training, in evaluations.jsonl
CONTROLS = ("trained", "untrained", "single", "blind")  # of launch/evaluate.py
_NAME = re.compile(r"(step|eval)_(\d{6,})(?:_(.*))?")


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """One file of trajectories.

    Attributes:
      path: where it lies.
      key: its name, which links to its episodes start with.
      set: "training", or the label of an evaluation.
      step: iterations done (of training: the iteration).
    """

    path: Path
    key: str
    set: str
    step: int

    @property
    def credit(self) -> Path:
        """Where the credit of a training iteration lies, if it was recorded."""
        return self.path.with_name(records.credit_path("", self.step).name)


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """A run as its folder tells of it; what is not there is empty.

    Attributes:
      folder: the workdir.
      config: config.json.
      metrics: lines of metrics.jsonl.
      evaluations: lines of evaluations.jsonl (`read_evaluations`).
      starts: lines of versions.jsonl.
      files: trajectories, training first, in the order of the steps.
      undone: names of trajectory files of iterations that the run has gone back on.
    """

    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    starts: list[dict[str, Any]]
    files: tuple[RecordFile, ...]
    undone: tuple[str, ...]


def read_run(folder: Path) -> RunFiles:
    """Everything but the trajectories themselves.

    Raises:
      ConfigError: there is neither a metric, nor an evaluation, nor a trajectory.
      RecordError: a line is damaged; file and line are named.
    """
    metrics = read_rows(folder / "metrics.jsonl", ("step",))
    evaluations = read_evaluations(folder)
    found = record_files(folder, evaluations)
    if not (metrics or evaluations or found):
        raise ConfigError(
            f"{folder}: metrics.jsonl, evaluations.jsonl and trajectories are missing: "
            "nothing to draw yet"
        )
    kept = [file for file in found if _stands(file, metrics, evaluations)]
    return RunFiles(
        folder=folder,
        config=_read_config(folder / "config.json"),
        metrics=metrics,
        evaluations=evaluations,
        starts=read_rows(folder / versions.FILE, ("step", "packages")),
        files=tuple(kept),
        undone=tuple(file.path.name for file in found if file not in kept),
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise RecordError(f"{path}: not JSON ({e})") from e


def record_files(folder: Path, evaluations: list[dict[str, Any]]) -> list[RecordFile]:
    """The files of trajectories, training first, each in the order of the steps."""
    known = {(row["label"], row["step"]) for row in evaluations}
    found = []
    for path in (folder / "trajectories").glob("*.jsonl"):
        match = _NAME.fullmatch(path.stem)
        if match:
            kind, step, name = match.groups()
            label = TRAINING
            if kind == "eval":
                label = _label(name or "", int(step), known)
            found.append(RecordFile(path, path.stem, label, int(step)))
    return sorted(found, key=lambda f: (f.set != TRAINING, f.step, f.key))


def _label(name: str, step: int, known: set[tuple[str, int]]) -> str:
    """The label in the name of an evaluation's file, "single_chain_sum"; a data set
    may be called "single_digits"."""
    first = name.partition("_")[0]
    control = first in CONTROLS and name != first
    return first if control and (not known or (first, step) in known) else TEAM


def _stands(
    file: RecordFile, metrics: list[dict[str, Any]], evaluations: list[dict[str, Any]]
) -> bool:
    """Whether a file is of the run as it went: a run that was resumed from an earlier
    step leaves files behind, which it writes over when it comes there."""
    if file.set == TRAINING:
        return not metrics or file.step <= metrics[-1]["step"] + 1
    known = {(row["label"], row["step"]) for row in evaluations}
    return not evaluations or (file.set, file.step) in known


def read_credit(file: RecordFile, trajectories: list[Trajectory]) -> list[Any]:
    """Of each trajectory what training made of it; None where that is not recorded.

    Raises:
      RecordError: the file beside `file` is damaged, or is of other trajectories.
    """
    path = file.credit
    if file.set != TRAINING or not path.exists():
        return [None] * len(trajectories)
    rows = read_rows(path, ("task", "sample", "actions"))
    if list(map(_shape_of_row, rows)) != list(map(_shape, trajectories)):
        raise RecordError(
            f"{path}: not the credit of {file.path.name}: tasks or tokens differ; "
            "remove it, and the report will show none for that iteration"
        )
    return rows


def _shape(trajectory: Trajectory) -> tuple[Any, ...]:
    lengths = [(a.agent, len(a.token_ids)) for a in trajectory.actions]
    return trajectory.task.id, trajectory.sample, lengths


def _shape_of_row(row: dict[str, Any]) -> tuple[Any, ...]:
    lengths = [(a["agent"], a["tokens"]) for a in row["actions"]]
    return row["task"], row["sample"], lengths
