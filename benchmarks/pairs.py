"""Two or more ways to do one thing, timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Found(NamedTuple):
    """Median seconds by name; and how many times as fast the last is as the first, the
    median of the pairs' ratios: a machine's speed may change from pair to pair."""

    seconds: dict[str, float]
    times_as_fast: float


def alternate(ways: Mapping[str, Callable[[], Any]], pairs: int) -> Found:
    """Times callables that return when their work is done; all have run before."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(pairs):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    first, *_, last = seconds.values()
    ratio = statistics.median(a / b for a, b in zip(first, last, strict=True))
    return Found({n: statistics.median(s) for n, s in seconds.items()}, ratio)
