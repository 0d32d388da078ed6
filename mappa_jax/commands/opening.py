"""A trained team, of a workdir or of an export, ready to be asked."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from absl import flags

from mappa_jax.commands import common

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.")
_TEAM = flags.DEFINE_string(
    "team", None, "Instead of it, a folder that launch/export.py has written."
)
_TRUST = flags.DEFINE_bool(
    *("trust_team", False),
    "Let --team run a workflow of its own, and choose a sandbox without walls.",
)
_STEP = flags.DEFINE_string(
    "step", "", "Of a run, which checkpoint: a number, or best; empty: the latest."
)
_CACHE = flags.DEFINE_string(
    "cache_dir", common.CACHE, "Weights, prepared data and compiled programs."
)
_MESH = flags.DEFINE_list(
    "mesh", None, "Sizes of agent, data, fsdp, tensor, on other devices: 1,1,4,1."
)
_SLOTS = flags.DEFINE_integer(
    "slots", None, "sampler.slots: actions that are sampled at a time.", lower_bound=1
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a team is taken from, and its config."""

    config: Any
    workdir: Any | None
    exported: Any | None
    cache: Path


def read_source() -> Source:
    """What the flags name.

    Raises:
      ConfigError: not one of --workdir and --team, or nothing of use lies there.
    """
    from mappa_jax.assemble import seat_agents
    from mappa_jax.config import ConfigError, changed
    from mappa_jax.team_file import read_team

    if (_WORKDIR.value is None) == (_TEAM.value is None):
        raise ConfigError("give --workdir, or --team (an export), and not both")
    if _TEAM.value is not None and _STEP.value:
        raise ConfigError("--step is for --workdir; an export has one step")
    if _TRUST.value and _TEAM.value is None:
        raise ConfigError("--trust_team is for --team")
    cache = Path(_CACHE.value).expanduser()
    workdir = exported = None
    if _TEAM.value is not None:
        folder = Path(_TEAM.value).expanduser()
        exported = read_team(folder, trusted=_TRUST.value)
        config = exported.config
    else:
        workdir = common.open_workdir(_WORKDIR.value, cache)
        config = common.read_config(workdir.local)
    config = common.with_mesh(config, _MESH.value)
    if _SLOTS.value is not None:
        config = changed(config, {"sampler.slots": _SLOTS.value})
    # Rows of other widths round otherwise: an answer may not depend on its company.
    config = changed(config, {"sampler.widths": ()})
    return Source(seat_agents(config), workdir, exported, cache)


@contextlib.asynccontextmanager
async def open_team(source: Source) -> AsyncIterator[Any]:
    """Yields a `serving.episodes.Served` whose engine runs. What takes long is done
    beside the event loop.

    Raises:
      ConfigError, CheckpointError, ModelError, SandboxError: what is missing, named.
    """
    from mappa_jax import assemble as parts
    from mappa_jax.commands.assembly import stages
    from mappa_jax.hosts import OneHost
    from mappa_jax.serving.episodes import Served
    from mappa_jax.team_file import config_digest

    config = source.config
    parts.enable_compilation_cache(source.cache / "xla")
    models = await asyncio.to_thread(parts.load_models, config, source.cache)
    opened = stages(config, models, source.cache, workdir=None, hosts=OneHost())
    async with opened as (stage, _):
        weights, step = await asyncio.to_thread(_weights, source, models)
        await asyncio.to_thread(stage.engine.warm_up, *weights)
        async with stage.engine.running(*weights):
            yield Served(
                stage=stage,
                context=config.sampler.context,
                step=step,
                fingerprint=f"{config_digest(config)[:12]}-{step}",
            )


def _weights(source: Source, models: Any) -> tuple[Any, int]:
    from mappa_jax.commands.assembly import restore
    from mappa_jax.export import load_weights

    if source.exported is not None:
        exported = dataclasses.replace(source.exported, config=source.config)
        return load_weights(exported, models), exported.step
    weights = models.init_weights(source.config)
    return restore(source.config, models, source.workdir, weights, _STEP.value)
