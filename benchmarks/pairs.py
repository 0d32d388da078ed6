"""Two or more ways to do one thing, timed in turn."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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
    return ratios(seconds)


def ratios(seconds: Mapping[str, Sequence[float]]) -> Found:
    """Of seconds by name, taken in turn."""
    first, *_, last = seconds.values()
    ratio = statistics.median(a / b for a, b in zip(first, last, strict=True))
    return Found({n: statistics.median(s) for n, s in seconds.items()}, ratio)


def compare(programs: Mapping[str, Any], arrays: Sequence[Any], pairs: int) -> Any:
    """Compiled programs that compute the same of the same arrays: median seconds, how
    many times as fast the last is as the first, and MiB of scratch that the compiler
    reserves.

    Raises:
      AssertionError: their results differ.
    """
    import jax
    import numpy as np

    first = [jax.tree.leaves(program(*arrays)) for program in programs.values()]
    for results in zip(*first, strict=True):
        for other in results[1:]:
            most = np.abs(results[0]).max()
            np.testing.assert_allclose(results[0], other, atol=1e-4 * most)

    def runs(program: Any) -> Callable[[], Any]:
        return lambda: jax.block_until_ready(program(*arrays))

    found = alternate({name: runs(one) for name, one in programs.items()}, pairs)
    scratch = {
        name: one.memory_analysis().temp_size_in_bytes / 2**20
        for name, one in programs.items()
    }
    return found._asdict() | {"scratch_mib": scratch}


def tell(rows: Mapping[str, Mapping[str, Any]], path: str) -> None:
    """Prints what `compare` gave, a line for each case by its name, and writes it to
    `path`, if that is not empty."""
    for name, row in rows.items():
        times = ", ".join(f"{1e3 * s:.0f} ms" for s in row["seconds"].values())
        scratch = ", ".join(f"{m:.0f} MiB" for m in row["scratch_mib"].values())
        print(
            f"{name}: {row['times_as_fast']:.2f} times as fast ({times}), "
            f"scratch {scratch}"
        )
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps([*rows.values()], indent=1) + "\n")
