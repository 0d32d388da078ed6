"""What it saves to keep an agent's cache between its turns: rollouts both ways.

python benchmarks/turns.py --config=configs/quickstart.py

The same tasks, weights and seed, without a judge, with `sampler.extend_buckets` as the
config has it and without. Alternates the two; seconds are medians, ratios are medians
of the pairs'.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "launch"))

import common  # noqa: E402

common.prepare_environment()

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402
from pairs import ratios  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.")
_CACHE = flags.DEFINE_string("cache_dir", common.CACHE, "Weights and data.")
_PAIRS = flags.DEFINE_integer("pairs", 5, "Times that the two are compared.")
_OUT = flags.DEFINE_string("out", "", "Where to write the numbers as JSON.")
flags.mark_flags_as_required(["config"])


async def measure(config: Any, cache: Path, pairs: int) -> dict[str, Any]:
    """Tokens of prompts, those that were computed, and seconds, both ways."""
    from assembly import assemble
    from mappa_jax.config import changed
    from mappa_jax.rollout import rollout
    from mappa_jax.testing import Silent

    async def once(run: Any, state: Any) -> Any:
        stage = dataclasses.replace(run.stage, judge=None)
        async with stage.engine.running(state.trainable, run.frozen):
            await rollout(
                stage,
                run.data.train.batch(0),
                samples=config.data.samples_per_prompt,
                step=1,
                evaluation=False,
                on_done=lambda: None,
            )
        return stage.engine.take_stats()

    ways = {"anew": {"sampler.extend_buckets": ()}, "kept": {}}
    found: dict[str, list[Any]] = {name: [] for name in ways}
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = {}
        for name, changes in ways.items():
            own = assemble(changed(config, changes), folder / name, cache, Silent())
            runs[name] = (await stack.enter_async_context(own))[:2]
            await once(*runs[name])
        for _ in range(pairs):
            for name, run in runs.items():
                found[name].append(await once(*run))
    last = {name: stats[-1] for name, stats in found.items()}
    return {
        "prompt_tokens": {name: s.prompt_tokens for name, s in last.items()},
        "computed": {name: s.prefilled_tokens for name, s in last.items()},
        "prefill": ratios(
            {n: [s.prefill_seconds for s in f] for n, f in found.items()}
        ),
        "sampling": ratios(
            {
                n: [s.prefill_seconds + s.decode_seconds for s in f]
                for n, f in found.items()
            }
        ),
    }


def main(argv: list[str]) -> None:
    common.begin(argv)
    from mappa_jax.assemble import seat_agents

    config = seat_agents(common.resolve_flag(_CONFIG.value))
    found = asyncio.run(measure(config, Path(_CACHE.value).expanduser(), _PAIRS.value))
    print(json.dumps(found, indent=1))
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    common.run_app(main)
