"""A run's report as named blocks of JSON, made file by file.

`overview` holds the verdict, the curves, the config and the versions; `index` a row per
episode; `chunk/FILE/NUMBER` a few episodes whole, which the page reads when one of them
is opened. A file that has not changed is not read again.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mappa_jax import records
from mappa_jax.report.curves import panels
from mappa_jax.report.episodes import Pieces, Row, columns, episode, index_row
from mappa_jax.report.verdict import RESAMPLES, judge_run
from mappa_jax.report.workdir import (
    TRAINING,
    RecordFile,
    RunFiles,
    read_credit,
    read_run,
)

CHUNK = 16  # episodes
FORMAT = 1  # of the blocks

Version = tuple[tuple[str, int, int], ...]


def no_pieces(agent: str, ids: Sequence[int]) -> None:
    """Of a run whose tokenizers are not at hand."""


@dataclasses.dataclass(frozen=True)
class Digest:
    """A file of trajectories, read.

    Attributes:
      rows: of the index, in the order of the file.
      chunks: gzipped JSON, `CHUNK` episodes each.
    """

    rows: tuple[Row, ...]
    chunks: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True)
class Report:
    """The blocks of a report; `version` is equal for equal files."""

    version: Version
    overview: bytes
    index: bytes
    digests: Mapping[str, Digest]

    def blocks(self) -> Iterator[tuple[str, bytes]]:
        """All of them by name, gzipped."""
        yield "overview", self.overview
        yield "index", self.index
        for key, digest in self.digests.items():
            for number, chunk in enumerate(digest.chunks):
                yield f"chunk/{key}/{number}", chunk


def stamps(folder: Path) -> Version:
    """Changes when a file that a report is made of does."""
    above = [p for p in folder.glob("*") if p.suffix in (".json", ".jsonl")]
    paths = sorted([*above, *(folder / "trajectories").glob("*.jsonl")])
    return tuple((p.name, *_stamp(p)) for p in paths)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:  # written over just now
        return 0, 0
    return status.st_size, status.st_mtime_ns


class Builder:
    """Builds a folder's report, again and again while its run goes on.

    Args:
      folder: the workdir.
      pieces: the text of tokens.
      note: what the reader should know besides.
    """

    def __init__(self, folder: Path, pieces: Pieces = no_pieces, note: str = ""):
        self.folder = folder
        self._pieces = pieces
        self._note = note
        self._known: dict[str, tuple[Any, Digest]] = {}

    def build(self) -> Report:
        """The report of what lies there now.

        Raises:
          ConfigError: there is nothing to show.
          RecordError: a file is damaged.
        """
        version = stamps(self.folder)
        run = read_run(self.folder)
        digests = {file.key: self._digest(file) for file in run.files}
        return Report(
            version,
            packed(overview(run, digests, self._note)),
            packed(index(run, digests)),
            digests,
        )

    def _digest(self, file: RecordFile) -> Digest:
        credit = file.path.with_name(records.credit_path("", file.step).name)
        stamp = (_stamp(file.path), _stamp(credit))
        known = self._known.get(file.key)
        if known is None or known[0] != stamp:
            known = (stamp, read_digest(file, self._pieces))
            self._known[file.key] = known
        return known[1]


def read_digest(file: RecordFile, pieces: Pieces) -> Digest:
    """Reads one file of trajectories, with its credit."""
    trajectories = records.read_trajectories(file.path)
    pairs = list(zip(trajectories, read_credit(file, trajectories), strict=True))
    chunks = [
        packed([episode(*pair, pieces) for pair in pairs[at : at + CHUNK]])
        for at in range(0, len(pairs), CHUNK)
    ]
    return Digest(tuple(index_row(*pair) for pair in pairs), tuple(chunks))


def packed(value: Any) -> bytes:
    """JSON, gzipped; the same bytes for the same value."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return gzip.compress(text.encode(), compresslevel=6, mtime=0)


def index(run: RunFiles, digests: Mapping[str, Digest]) -> dict[str, Any]:
    """A row per episode, column-wise, and the files that they are in."""
    rows = [
        (number, row)
        for number, file in enumerate(run.files)
        for row in digests[file.key].rows
    ]
    files = [
        {
            "key": file.key,
            "set": file.set,
            "step": file.step,
            "episodes": len(digests[file.key].rows),
        }
        for file in run.files
    ]
    return {"format": FORMAT, "chunk": CHUNK, "files": files} | columns(rows)


def overview(run: RunFiles, digests: Mapping[str, Digest], note: str) -> dict[str, Any]:
    """Everything but the episodes."""
    agents = team(run, digests)
    seed, resamples = _bootstrap(run.config)
    problems = problem_scores(run, digests)
    return {
        "format": FORMAT,
        "name": run.folder.resolve().name,
        "agents": agents,
        "done": run.metrics[-1]["step"] if run.metrics else 0,
        "steps": run.config.get("steps"),
        "verdict": judge_run(run.evaluations, problems, resamples, seed),
        "panels": panels(run.metrics, run.evaluations, agents),
        "facts": facts(run, digests),
        "config": flat(run.config),
        "starts": run.starts,
        "notes": [text for text in (note, *notes(run)) if text],
    }


def _bootstrap(config: Mapping[str, Any]) -> tuple[int, int]:
    evaluation = config.get("eval") or {}
    return config.get("seed", 0), evaluation.get("bootstrap", RESAMPLES)


def team(run: RunFiles, digests: Mapping[str, Digest]) -> list[str]:
    """The agents in the order in which they act, as far as it can be told."""
    acted = dict.fromkeys(
        agent
        for file in run.files
        if file.set != "single"
        for row in digests[file.key].rows
        for agent in row.agents
    )
    keys = (k.split("/")[1] for r in run.metrics for k in r if k.startswith("agents/"))
    return list(dict.fromkeys([*acted, *keys]))


def problem_scores(run: RunFiles, digests: Mapping[str, Digest]) -> dict[Any, Any]:
    """(label, step) -> source -> task -> mean outcome over its samples."""
    found: dict[Any, Any] = {}
    for file in run.files:
        if file.set == TRAINING:
            continue
        sources = found.setdefault((file.set, file.step), {})
        for row in digests[file.key].rows:
            if row.outcome is not None:
                tasks = sources.setdefault(row.source, {})
                tasks.setdefault(row.task, []).append(row.outcome)
    return {
        key: {
            source: {task: float(np.mean(scores)) for task, scores in tasks.items()}
            for source, tasks in sources.items()
        }
        for key, sources in found.items()
    }


def facts(run: RunFiles, digests: Mapping[str, Digest]) -> list[list[str]]:
    """A few numbers of the whole run: name and value."""
    rows = [row for digest in digests.values() for row in digest.rows]
    actions = sum(len(row.agents) for row in rows)
    out = [["Episodes on record", f"{len(rows):,}"], ["Actions", f"{actions:,}"]]
    judged = [
        row for f in run.files if f.set == TRAINING for row in digests[f.key].rows
    ]
    if judged:
        missing = sum(row.missing for row in judged)
        total = sum(len(row.agents) for row in judged)
        share = missing / max(total, 1)
        out.append(["Missing verdicts in training", f"{missing:,} ({share:.1%})"])
        out.append(["Judge against outcome", _told(judged, "judge_disagrees")])
        out.append(["Credit against outcome", _told(judged, "credit_disagrees")])
    spent = [row["judge/spent"] for row in run.metrics if row.get("judge/spent")]
    if spent:
        out.append(["Spent on the judge", f"${spent[-1]:,.2f}"])
    seconds = [row.get("seconds/iteration") for row in run.metrics]
    told = [value for value in seconds if value]
    if told:
        out.append(["Median iteration", f"{np.median(told):,.1f} s"])
    return out


def _told(rows: Sequence[Row], name: str) -> str:
    known = [getattr(row, name) for row in rows if getattr(row, name) is not None]
    if not known:
        return "not known"
    return f"{sum(known):,} of {len(known):,} disagree ({sum(known) / len(known):.0%})"


def notes(run: RunFiles) -> list[str]:
    """What is not there, in words."""
    out = []
    if not run.metrics:
        out.append("metrics.jsonl is missing or empty: there are no learning curves.")
    if not run.files:
        out.append("There are no trajectories in this folder: no episodes to read.")
    if run.undone:
        out.append(
            f"{len(run.undone)} files of trajectories are of iterations that the run "
            "has gone back on, and are not shown."
        )
    return out


def flat(config: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """[key, value] of every leaf of a config, keys joined by dots."""
    out = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            out += flat(value, f"{prefix}{key}.")
        else:
            out.append([f"{prefix}{key}", json.dumps(value, ensure_ascii=False)])
    return out
