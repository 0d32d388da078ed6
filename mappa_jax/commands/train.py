"""Trains a team.

  python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart

Any key may be overridden: --config.steps=8 --config.agents.solver.temperature=0.8.
Called again with the same workdir it goes on where it stopped. Ctrl-C saves and
exits with 130; the same command then goes on.

On several hosts the same command runs on each, with --distributed on Cloud TPU, GKE and
SLURM (docs/scaling.md); they must see the same workdir.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mappa_jax.commands import common, joining
from mappa_jax.commands.console import ConsoleProgress
from mappa_jax.commands.joining import join_hosts
from mappa_jax.commands.tables import print_summary

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder of the run; may be gs://bucket/folder."
)
_CACHE = flags.DEFINE_string(
    "cache_dir", common.CACHE, "Weights, prepared data and compiled programs."
)
_PROFILE = flags.DEFINE_string(
    "profile_steps",
    "",
    "Iterations that are traced into WORKDIR/profile, for XProf and Perfetto: 3:5.",
)
flags.adopt_module_key_flags(joining)
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    common.begin(argv)
    from mappa_jax.assemble import seat_agents
    from mappa_jax.config import ConfigError

    config = seat_agents(common.resolve_flag(_CONFIG.value))
    if config.objective.loss != "surrogate":
        raise ConfigError(
            "config.objective.loss='likelihood' is launch/sft.py's, which learns from "
            "traces; a team is trained with 'surrogate'"
        )
    cache = Path(_CACHE.value).expanduser()
    steps = _PROFILE.value
    profile = common.parse_steps("profile_steps", steps) if steps else range(0)
    if profile and profile[0] > config.steps:
        raise ConfigError(f"--profile_steps={steps}: config.steps={config.steps}")
    hosts = join_hosts()
    where = common.open_workdir(_WORKDIR.value, cache)
    workdir = where.local
    with common.progress(config, hosts) as progress:
        complete = common.run_until_interrupted(
            _train(config, where, cache, progress, hosts, profile), hosts=hosts
        )
    if hosts.index:
        return
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    if complete:
        progress.console.print(f"this run is complete ({config.steps} iterations)")
    print_summary(progress.console, json.loads(lines[-1]), workdir)


async def _train(
    config,
    where,
    cache: Path,
    progress: ConsoleProgress,
    hosts,
    profile: range = range(0),
) -> bool:
    """Assembles the run and trains; returns whether there was nothing left to do."""
    from mappa_jax.commands.assembly import assemble

    workdir = where.local
    if hosts.index == 0:
        common.claim_workdir(workdir, config)
    await common.agree(hosts, "config", config, workdir / "config.json")
    if hosts.index:
        common.claim_workdir(workdir, config, write=False)
    try:
        opened = assemble(config, where, cache, progress, hosts)
        async with opened as (run, state, start):
            from mappa_jax.train import owes_evaluation, together, train
            from mappa_jax.versions import note_start

            run = dataclasses.replace(run, profile=profile)

            owed = owes_evaluation(config, workdir, start)
            await common.agree(hosts, "last step", (start, owed))
            if start >= config.steps and not owed:
                return True
            if hosts.index == 0:
                devices = run.learner.mesh.devices.flat
                kind = devices[0].device_kind
                note_start(workdir, start, kind, len(devices), hosts.count)
            try:
                await train(run, state, start)
            except Exception as e:
                if together(hosts, e):
                    raise
                common.push_or_say(where)  # judge calls that are paid for
                common.leave(e)  # to close what is open would take the other hosts
            return False
    finally:
        where.push()  # what was on its way to the judge is on record now, too


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
