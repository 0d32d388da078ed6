"""What happened when in an iteration: spans, for a person and for the ledger.

Nothing is kept unless somebody records, and a span then costs two clock readings. The
file is the Trace Event Format, which ui.perfetto.dev and chrome://tracing open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Span:
    """One thing that took from `start` to `end`, seconds of time.perf_counter.

    Attributes:
      track: what it belongs to: "engine", "sandbox", "judge", "train".
      name: what it was.
      detail: more about it.
    """

    track: str
    name: str
    start: float
    end: float
    detail: str = ""


@dataclasses.dataclass
class Timeline:
    """Spans, in the order in which they ended."""

    spans: list[Span] = dataclasses.field(default_factory=list)

    def of(self, track: str, name: str = "") -> list[Span]:
        """Spans of a track; with `name` only those called so."""
        return [s for s in self.spans if s.track == track and name in ("", s.name)]

    def write(self, path: Path) -> None:
        """The Trace Event Format. Spans that overlap stand in rows of their own."""
        rows = {}
        for span, row in _rows(self.spans):
            rows.setdefault((span.track, row), []).append(span)
        events = []
        for number, ((track, row), spans) in enumerate(sorted(rows.items())):
            name = f"{track} {row}" if row else track
            thread = {"ph": "M", "name": "thread_name", "pid": 1, "tid": number}
            events.append(thread | {"args": {"name": name}})
            events += [
                {
                    "ph": "X",
                    "name": span.name,
                    "pid": 1,
                    "tid": number,
                    "ts": round(1e6 * span.start, 1),
                    "dur": round(1e6 * (span.end - span.start), 1),
                    "args": {"detail": span.detail},
                }
                for span in spans
            ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")


def _rows(spans: Iterable[Span]) -> Iterator[tuple[Span, int]]:
    """Each span with the first row of its track that is free when it starts."""
    free: dict[str, list[float]] = {}
    for span in sorted(spans, key=lambda s: s.start):
        ends = free.setdefault(span.track, [])
        row = next((i for i, end in enumerate(ends) if end <= span.start), len(ends))
        ends[row : row + 1] = [span.end]
        yield span, row


_recording: list[Timeline] = []


@contextlib.contextmanager
def record() -> Iterator[Timeline]:
    """Records the spans of this process, of all its threads and tasks."""
    timeline = Timeline()
    _recording.append(timeline)
    try:
        yield timeline
    finally:
        _recording.remove(timeline)


@contextlib.contextmanager
def span(track: str, name: str, detail: str = "") -> Iterator[None]:
    """What the block took, if somebody records."""
    if not _recording:
        yield
        return
    start = time.perf_counter()
    try:
        yield
    finally:
        found = Span(track, name, start, time.perf_counter(), detail)
        for timeline in _recording:
            timeline.spans.append(found)


def covered(spans: Iterable[Span], start: float, end: float) -> float:
    """Seconds between `start` and `end` in which at least one of `spans` went on."""
    return sum(b - a for a, b in merged(spans, start, end))


def merged(
    spans: Iterable[Span], start: float, end: float
) -> list[tuple[float, float]]:
    """Where at least one of `spans` went on, as disjoint intervals in order."""
    out: list[tuple[float, float]] = []
    clipped = ((max(s.start, start), min(s.end, end)) for s in spans)
    for a, b in sorted(pair for pair in clipped if pair[0] < pair[1]):
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        else:
            out.append((a, b))
    return out


def exposed(
    spans: Iterable[Span], others: Iterable[Span], start: float, end: float
) -> float:
    """Seconds in which one of `spans` went on and none of `others`."""
    mine, theirs = [*spans], [*others]
    return covered([*mine, *theirs], start, end) - covered(theirs, start, end)
