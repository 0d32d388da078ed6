"""Whole iterations with the next batch sampled after the update, before it, beside it.

python benchmarks/staleness.py --config=configs/quickstart.py

"after" is staleness=0; the others are staleness=1, where every batch but the first is
sampled with weights that are one update old. Seconds are of `--steps` iterations, in
turn, medians; the ratio is the median of the pairs' with "after". Nothing is evaluated.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from mappa_jax.commands import common

common.prepare_environment()

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402
from pairs import ratios  # noqa: E402

WAYS = {"after": (0, False), "before": (1, False), "beside": (1, True)}
_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.")
_CACHE = flags.DEFINE_string("cache_dir", common.CACHE, "Weights and data.")
_STEPS = flags.DEFINE_integer("steps", 3, "Iterations of a run.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Runs of each way.")
_OUT = flags.DEFINE_string("out", "", "Where to write the numbers as JSON.")
flags.mark_flags_as_required(["config"])


async def timed(run: Any, state: Any, workdir: Path) -> float:
    """Seconds of a run from this state into an empty folder, without its end."""
    from mappa_jax.checkpoints import Checkpoints
    from mappa_jax.train import train

    workdir.mkdir()
    saved = Checkpoints(workdir / "checkpoints", run.config.checkpoint)
    with contextlib.closing(saved):
        run = dataclasses.replace(run, workdir=workdir, checkpoints=saved, writer=None)
        start = time.perf_counter()
        await train(run, state, 0)
        return time.perf_counter() - start


async def measure(config: Any, cache: Path, steps: int, rounds: int) -> dict[str, Any]:
    import jax

    from mappa_jax.commands.assembly import assemble
    from mappa_jax.config import changed
    from mappa_jax.testing import Silent

    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = {}
        for way, (staleness, beside) in WAYS.items():
            own = changed(
                config,
                {
                    "steps": steps,
                    "staleness": staleness,
                    "objective.old_logprobs": "recompute",
                    "eval.every": 0,
                    "eval.at_start": False,
                    "eval.at_end": False,
                    "checkpoint.every": steps,
                },
            )
            entered = assemble(own, folder / way, cache, Silent())
            run, state, _ = await stack.enter_async_context(entered)
            if run.stage.engine.beside < beside:
                raise RuntimeError("nothing can run beside an update on these devices")
            run.stage.engine.beside = beside
            where = jax.tree.map(lambda x: x.sharding, state)
            runs[way] = (run, jax.device_get(state), where)
        for number in range(-1, rounds):  # one to warm up
            for way, (run, state, where) in runs.items():
                fresh = jax.device_put(state, where)
                took = await timed(run, fresh, folder / f"{way}.{number}")
                if number >= 0:
                    seconds[way].append(took)
    found = {
        way: ratios({"after": seconds["after"], way: s})
        for way, s in seconds.items()
        if way != "after"
    }
    return {
        "steps": steps,
        "seconds": seconds,
        "times_as_fast": {way: one.times_as_fast for way, one in found.items()},
    }


def main(argv: list[str]) -> None:
    common.begin(argv)
    from mappa_jax.assemble import seat_agents

    config = seat_agents(common.resolve_flag(_CONFIG.value))
    cache = Path(_CACHE.value).expanduser()
    found = asyncio.run(measure(config, cache, _STEPS.value, _ROUNDS.value))
    print(json.dumps(found, indent=1))
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    common.run_app(main)
