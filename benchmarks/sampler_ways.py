"""Rollouts with the sampler set up in several ways: seconds, and what precision costs.

python benchmarks/sampler_ways.py --config=configs/quickstart.py --compare=turns
python benchmarks/sampler_ways.py --config=configs/quickstart.py --compare=precision

"turns": agents' caches made anew for every turn, and kept from turn to turn.
"precision": the KV cache and the weights in fewer bits.

The same tasks, weights and seed for each, in turn, a constant judge. Seconds are
medians; the ratio is the median of the pairs' with the first. Agreement is between the
log-probabilities that were sampled from and the trainer's of the same tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from mappa_jax.commands import common

common.prepare_environment()

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402
from pairs import ratios  # noqa: E402

WAYS = {
    "turns": {"anew": {"sampler.extend_buckets": ()}, "kept": {}},
    "precision": {
        "as trained": {},
        "cache bfloat16": {"sampler.kv_dtype": "bfloat16"},
        "cache float8_e4m3fn": {"sampler.kv_dtype": "float8_e4m3fn"},
        "cache int8": {"sampler.kv_dtype": "int8"},
        "weights int8": {"sampler.weights": "int8"},
        "cache and weights int8": {
            "sampler.kv_dtype": "int8",
            "sampler.weights": "int8",
        },
    },
}
_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.")
_COMPARE = flags.DEFINE_enum("compare", "turns", [*WAYS], "Which ways.")
_CACHE = flags.DEFINE_string("cache_dir", common.CACHE, "Weights and data.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rollouts of each way.")
_OUT = flags.DEFINE_string("out", "", "Where to write the numbers as JSON.")
flags.mark_flags_as_required(["config"])


async def roll(run: Any, state: Any) -> tuple[Any, Any]:
    """The first step's tasks: trajectories, and the sampler's statistics."""
    from mappa_jax.rollout import rollout
    from mappa_jax.testing import ScriptedJudge

    stage = dataclasses.replace(run.stage, judge=ScriptedJudge(), ledger=None)
    async with stage.engine.running(state.trainable, run.frozen):
        rolling = await rollout(
            stage,
            run.data.train.batch(0),
            samples=run.config.data.samples_per_prompt,
            step=1,
            evaluation=False,
            on_done=lambda: None,
        )
    return (await rolling.close()).trajectories, stage.engine.take_stats()


def gaps(run: Any, state: Any, trajectories: Any) -> dict[str, float]:
    """Of the sampler's and the trainer's log-probabilities; and the share of tokens
    whose importance weight is cut."""
    import numpy as np

    from mappa_jax.learning import batch as batches

    config = run.config
    packed = batches.pack(
        trajectories,
        list(config.agents),
        run.learner.shape,
        reward=config.reward,
        objective=config.objective,
        actions_per_update=config.optimizer.actions_per_update,
        rng=np.random.default_rng(0),
    )
    packed = run.learner.assign_credit(state, run.frozen, packed)
    parts = [p.batch for step in packed.minibatches for p in step if p is not None]
    found = np.concatenate([(b.old - b.behaviour)[b.mask > 0] for b in parts])
    size = np.abs(found)
    most = np.log(config.objective.is_truncation)
    return {
        "tokens": int(size.size),
        "mean": float(size.mean()),
        "percentile_99": float(np.percentile(size, 99)),
        "largest": float(size.max()),
        "cut": float((found > most).mean()),
    }


async def measure(config: Any, cache: Path, name: str, rounds: int) -> dict[str, Any]:
    """By way: its changes of the config, tokens, seconds and agreement."""
    from mappa_jax.commands.assembly import assemble
    from mappa_jax.config import changed
    from mappa_jax.testing import Silent

    common_to_all = {
        "objective.old_logprobs": "recompute",
        "objective.mask_truncated": False,
    }
    stats: dict[str, list[Any]] = {way: [] for way in WAYS[name]}
    agreement = {}
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = {}
        for way, changes in WAYS[name].items():
            own = changed(config, common_to_all | changes)
            entered = assemble(own, folder / way, cache, Silent())
            run, state, _ = await stack.enter_async_context(entered)
            runs[way] = (run, state)
            trajectories, _ = await roll(run, state)
            agreement[way] = gaps(run, state, trajectories)
        for _ in range(rounds):
            for way, run in runs.items():
                stats[way].append((await roll(*run))[1])
    first = next(iter(stats))

    def against_first(way: str, seconds: Any) -> dict[str, float]:
        both = {"first": stats[first], "other": stats[way]}
        found = ratios({name: [*map(seconds, rows)] for name, rows in both.items()})
        return {"seconds": found.seconds["other"], "times_as_fast": found.times_as_fast}

    return {
        way: {
            "changes": changes,
            "prompt_tokens": stats[way][-1].prompt_tokens,
            "computed_tokens": stats[way][-1].prefilled_tokens,
            "new_tokens": stats[way][-1].new_tokens,
            "prefill": against_first(way, lambda s: s.prefill_seconds),
            "decode_a_token": against_first(
                way, lambda s: s.decode_seconds / s.new_tokens
            ),
            "agreement": agreement[way],
        }
        for way, changes in WAYS[name].items()
    }


def tell(found: dict[str, Any]) -> None:
    print("                         prefill s   decode ms   mean |gap|   99 %   cut")
    for way, row in found.items():
        gap = row["agreement"]
        print(
            f"{way:24} {row['prefill']['seconds']:8.2f} "
            f"({row['prefill']['times_as_fast']:.2f}x) "
            f"{1e3 * row['decode_a_token']['seconds']:8.1f} "
            f"({row['decode_a_token']['times_as_fast']:.2f}x) "
            f"{gap['mean']:.1e} {gap['percentile_99']:.1e} {gap['cut']:.2%}"
        )


def main(argv: list[str]) -> None:
    common.begin(argv)
    from mappa_jax.assemble import seat_agents

    config = seat_agents(common.resolve_flag(_CONFIG.value))
    cache = Path(_CACHE.value).expanduser()
    found = asyncio.run(measure(config, cache, _COMPARE.value, _ROUNDS.value))
    tell(found)
    if _OUT.value:
        Path(_OUT.value).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    common.run_app(main)
