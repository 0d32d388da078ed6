"""Trains a team.

  python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart

Any key may be overridden: --config.steps=8 --config.agents.solver.temperature=0.8.
Called again with the same workdir it goes on where it stopped. Ctrl-C saves and
exits with 130; the same command then goes on.
"""

from __future__ import annotations

import json
from pathlib import Path

import common

common.prepare_environment()

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from console import ConsoleProgress, print_summary  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.")
_CACHE = flags.DEFINE_string(
    "cache_dir", common.CACHE, "Weights, prepared data and compiled programs."
)
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    common.begin(argv)
    from mappa_jax.assemble import seat_agents

    config = seat_agents(common.resolve_flag(_CONFIG.value))
    workdir, cache = Path(_WORKDIR.value), Path(_CACHE.value).expanduser()
    common.claim_workdir(workdir, config)
    with ConsoleProgress(config.steps) as progress:
        complete = common.run_until_interrupted(
            _train(config, workdir, cache, progress)
        )
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    if complete:
        progress.console.print(f"this run is complete ({config.steps} iterations)")
    print_summary(progress.console, json.loads(lines[-1]), workdir)


async def _train(config, workdir: Path, cache: Path, progress: ConsoleProgress) -> bool:
    """Assembles the run and trains; returns whether there was nothing left to do."""
    from assembly import assemble

    async with assemble(config, workdir, cache, progress) as (run, state, start):
        from mappa_jax.train import owes_evaluation, train

        if start >= config.steps and not owes_evaluation(config, workdir, start):
            return True
        await train(run, state, start)
        return False


if __name__ == "__main__":
    common.run_app(main)
