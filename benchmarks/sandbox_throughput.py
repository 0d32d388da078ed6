"""Programs a second through the sandbox, warm and cold, at several numbers of workers.

  python benchmarks/sandbox_throughput.py --json=docs/sandbox_throughput.json

A program that imports numpy, pandas and scikit-learn and fits a line, in episodes of
its own, as a rollout would run them. Warm: the packages are imported before the fork.
Cold: every program imports them. Both in turn, and the medians of their latencies.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import statistics
import time
from pathlib import Path

from absl import app, flags

from mappa_jax.config import SandboxConfig
from mappa_jax.tools import make_sandbox

_JSON = flags.DEFINE_string("json", "", "Where to write the numbers.")
_WORKERS = flags.DEFINE_multi_integer("workers", [1, 2, 4], "Programs at once.")
_RUNS = flags.DEFINE_integer("runs", 60, "Warm programs per measurement.")

PACKAGES = ("numpy", "pandas", "sklearn.linear_model")
PROGRAM = """
import numpy, pandas
from sklearn.linear_model import LinearRegression
frame = pandas.DataFrame({"x": range(50)})
print(LinearRegression().fit(frame, 2 * frame.x).predict(frame)[-1])
"""


async def measure(preload: tuple[str, ...], workers: int, runs: int) -> dict:
    """Runs a second, and the median and 95th percentile of the seconds of one."""
    config = SandboxConfig(
        preload=preload, workers=workers, wall_seconds=60.0, cpu_seconds=60
    )
    sandbox = make_sandbox(config)
    slots = asyncio.Semaphore(workers)  # so that no time is spent in the queue
    taken = []

    async def one() -> None:
        async with slots, sandbox.workspace() as workspace:
            start = time.perf_counter()
            seen = await workspace.run(PROGRAM)
            taken.append(time.perf_counter() - start)
        if seen.stdout.strip() != "98.0" or not seen.ok:
            raise RuntimeError(f"the program did not run: {seen}")

    try:
        await one()  # the start is not part of it
        taken.clear()
        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(runs)))
        seconds = time.perf_counter() - start
    finally:
        await sandbox.aclose()
    return {
        "runs_per_s": runs / seconds,
        "p50_s": statistics.median(taken),
        "p95_s": statistics.quantiles(taken, n=20)[-1],
    }


def main(argv: list[str]) -> None:
    del argv
    rows = []
    for workers in _WORKERS.value:
        warm = asyncio.run(measure(PACKAGES, workers, _RUNS.value))
        cold = asyncio.run(measure((), workers, max(2, _RUNS.value // 10)))
        ratio = warm["runs_per_s"] / cold["runs_per_s"]
        rows.append({"workers": workers, "warm": warm, "cold": cold, "ratio": ratio})
        print(
            f"{workers} workers: warm {warm['runs_per_s']:.1f} runs/s "
            f"(p50 {1000 * warm['p50_s']:.0f} ms), cold {cold['runs_per_s']:.2f} "
            f"runs/s (p50 {1000 * cold['p50_s']:.0f} ms): {ratio:.0f} times"
        )
    if _JSON.value:
        limits = dataclasses.asdict(SandboxConfig())
        text = json.dumps({"rows": rows, "default_limits": limits}, indent=1)
        Path(_JSON.value).write_text(text + "\n")


if __name__ == "__main__":
    app.run(main)
