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

from mappa_jax import records
from mappa_jax.report.episodes import Pieces, episode
from mappa_jax.report.index import CHUNK, Digest, index, index_row
from mappa_jax.report.overview import overview
from mappa_jax.report.workdir import RecordFile, read_credit, read_run

Version = tuple[tuple[str, int, int], ...]


def no_pieces(agent: str, ids: Sequence[int]) -> None:
    """Of a run whose tokenizers are not at hand."""


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
        stamp = (_stamp(file.path), _stamp(file.credit))
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
