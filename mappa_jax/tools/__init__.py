"""Where agents' programs run."""

from __future__ import annotations

import logging
import os

from mappa_jax.config import SandboxConfig
from mappa_jax.tools.base import Sandbox, SandboxError, Workspace
from mappa_jax.tools.bubblewrap import Bubblewrap, find_bwrap
from mappa_jax.tools.local import MIB, LocalSandbox
from mappa_jax.tools.unsafe import NoWalls

__all__ = ["Sandbox", "SandboxError", "Workspace", "make_sandbox"]


def make_sandbox(config: SandboxConfig, bwrap: str | None = None) -> Sandbox:
    """The sandbox that `config` asks for. Call its `check` before the first run.

    With `config.unsafe` the walls are tried here (a process is started, which takes
    some ten milliseconds), and a plain subprocess takes their place, with a warning,
    only if they cannot be built.

    Args:
      config: limits and whether to do without walls.
      bwrap: path of the bwrap executable; None looks for one.
    """
    walls = Bubblewrap(
        bwrap=find_bwrap(bwrap),
        processes=config.processes,
        scratch_bytes=config.file_mb * MIB,
        as_root=os.geteuid() == 0,
    )
    if not config.unsafe or (fault := walls.fault()) is None:
        return LocalSandbox(config, walls)
    logging.getLogger(__name__).warning(
        "sandbox.unsafe is set: agents' programs run WITHOUT WALLS on this machine, "
        "with its files and network in reach, because %s",
        fault,
    )
    return LocalSandbox(config, NoWalls())
