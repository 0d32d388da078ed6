"""What happened when."""

import json

import pytest

from mappa_jax import timeline
from mappa_jax.timeline import Span


def of(*pairs, track="t"):
    return [Span(track, "x", start, end) for start, end in pairs]


@pytest.mark.parametrize(
    ("spans", "want"),
    [
        ([], []),
        ([(1, 2), (3, 4)], [(1, 2), (3, 4)]),
        ([(3, 4), (1, 3)], [(1, 4)]),
        ([(1, 9), (2, 3)], [(1, 9)]),
        ([(-5, 2), (8, 20), (30, 40)], [(0, 2), (8, 10)]),
    ],
)
def test_intervals_are_merged_and_clipped(spans, want):
    assert timeline.merged(of(*spans), 0, 10) == want
    assert timeline.covered(of(*spans), 0, 10) == sum(b - a for a, b in want)


def test_what_is_exposed_is_what_nothing_else_covers():
    programs, device = of((0, 4), (3, 6), (9, 12)), of((1, 2), (5, 10))
    # 0-1, 2-5, 10-12
    assert timeline.exposed(programs, device, 0, 20) == 6
    assert timeline.exposed(programs, device, 0, 3) == 2
    assert timeline.exposed(programs, [], 0, 20) == 9
    assert timeline.exposed([], device, 0, 20) == 0


def test_nothing_is_kept_unless_somebody_records():
    with timeline.span("a", "before"):
        pass
    with timeline.record() as found:
        with pytest.raises(ValueError), timeline.span("a", "failed", "why"):
            raise ValueError
        with timeline.span("b", "inside"):
            pass
    with timeline.span("a", "after"):
        pass
    assert [(s.track, s.name, s.detail) for s in found.spans] == [
        ("a", "failed", "why"),
        ("b", "inside", ""),
    ]
    assert all(s.end >= s.start for s in found.spans)
    assert found.of("a") == found.of("a", "failed") == found.spans[:1]


def test_spans_that_overlap_stand_in_rows_of_their_own(tmp_path):
    found = timeline.Timeline(of((0, 2), (1, 3), (2, 4)) + of((0, 9), track="u"))
    path = tmp_path / "profile" / "timeline.json"
    found.write(path)
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    rows = {}
    for event in events:
        if event["ph"] == "X":
            rows.setdefault(names[event["tid"]], []).append((event["ts"], event["dur"]))
    assert rows == {
        "t": [(0, 2e6), (2e6, 2e6)],
        "t 1": [(1e6, 2e6)],
        "u": [(0, 9e6)],
    }
