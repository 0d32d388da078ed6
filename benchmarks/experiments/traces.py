"""Traces of a scripted, imperfect MathChat team on sums, in the real sandbox.

  python benchmarks/experiments/traces.py --config=configs/bytes.py --out=traces.jsonl

Every agent commits each of its faults at --fault of its actions, so that what imitates
the team is imperfect too. The problems are the config's training problems. Of each
fault it prints how many actions were taken, and how often the team was right.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mappa_jax.commands import common  # noqa: E402

common.prepare_environment()

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "The team's config file.")
_OUT = flags.DEFINE_string("out", None, "The JSON-lines file to write.")
_COUNT = flags.DEFINE_integer("problems", 2000, "How many problems.", lower_bound=1)
_FAULT = flags.DEFINE_float("fault", 0.15, "How often each fault is made.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the faults.")
flags.mark_flags_as_required(["config", "out"])


def main(argv: list[str]) -> None:
    common.begin(argv)
    import teams

    from mappa_jax.answers import Grader
    from mappa_jax.assemble import seat_agents
    from mappa_jax.config import ConfigError
    from mappa_jax.data import load_data
    from mappa_jax.rollout import success
    from mappa_jax.traces import Trace, write_traces

    config = seat_agents(common.resolve_flag(_CONFIG.value))
    tasks = load_data(config.data).train.tasks[: _COUNT.value]
    if len(tasks) < _COUNT.value:
        raise ConfigError(
            f"--problems={_COUNT.value}: config.data has {len(tasks)} training problems"
        )
    rates = dict.fromkeys(teams.MATH_FAULTS, _FAULT.value)
    scripts = teams.math_scripts(teams.MathFaults(**rates))

    async def run():
        grader = Grader(workers=1, seconds=config.data.grade_seconds)
        try:
            return await teams.play(
                config.workflow.name,
                tasks,
                scripts,
                grader=grader,
                sandbox=config.sandbox,
                seed=_SEED.value,
                config=config,
            )
        finally:
            await grader.aclose()

    trajectories = asyncio.run(run())
    actions = [action for t in trajectories for action in t.actions]
    write_traces(_OUT.value, [Trace(a.agent, a.messages, a.content) for a in actions])
    right = success(trajectories)["success"]
    print(f"{len(actions)} actions; {right:.3f} of {len(tasks)} answers were right")


if __name__ == "__main__":
    common.run_app(main)
