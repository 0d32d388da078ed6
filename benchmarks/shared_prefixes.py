"""What it saves to hold shared prefixes once: a recorded batch updated both ways.

python benchmarks/shared_prefixes.py --workdir=runs/quickstart --step=1

Alternates the two; seconds are medians, the ratio is the median of the pairs'.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from mappa_jax.commands import common

common.prepare_environment()

from absl import flags  # noqa: E402
from pairs import alternate  # noqa: E402

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run.")
_STEP = flags.DEFINE_integer("step", 1, "The iteration whose batch is taken.")
_PAIRS = flags.DEFINE_integer("pairs", 3, "Times that the two are compared.")
flags.mark_flags_as_required(["workdir"])


def measure(workdir: Path, step: int, pairs: int) -> dict[str, Any]:
    """Tokens that are computed, and seconds of credit and update together."""
    import numpy as np

    from mappa_jax import assemble as parts
    from mappa_jax import records
    from mappa_jax.learning import batch as batches
    from mappa_jax.learning.update import Learner, init_state

    config = parts.seat_agents(common.read_config(workdir))
    cache = Path(common.CACHE).expanduser()
    parts.enable_compilation_cache(cache / "xla")
    models = parts.load_models(config, cache)
    trainable, frozen = models.init_weights(config)
    state = init_state(trainable, models.team, config, models.mesh)
    learner = Learner(models.team, config, models.mesh)
    learner.warm_up(state, frozen)
    trajectories = records.read_trajectories(records.training_path(workdir, step))

    def pack(share: bool) -> batches.Packed:
        packing = dataclasses.replace(config.packing, share_prefixes=share)
        return batches.pack(
            trajectories,
            list(config.agents),
            dataclasses.replace(learner.shape, packing=packing),
            reward=config.reward,
            objective=config.objective,
            actions_per_update=config.optimizer.actions_per_update,
            rng=np.random.default_rng(0),
        )

    packed = {"apart": pack(False), "shared": pack(True)}

    def learn(rows: batches.Packed) -> None:
        nonlocal state
        filled = learner.assign_credit(state, frozen, rows)
        state, _ = learner.update(state, frozen, filled)

    ways = {name: functools.partial(learn, rows) for name, rows in packed.items()}
    found = alternate(ways, pairs)
    tokens = {
        name: int(
            sum(
                (part.batch.ends > 0).sum()
                for step in rows.minibatches
                for part in step
                if part is not None
            )
        )
        for name, rows in packed.items()
    }
    return {
        "tokens": tokens,
        "seconds": {name: round(s, 1) for name, s in found.seconds.items()},
        "ratio": round(found.times_as_fast, 2),
    }


def main(argv: list[str]) -> None:
    common.begin(argv)
    found = measure(Path(_WORKDIR.value), _STEP.value, _PAIRS.value)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    common.run_app(main)
