"""Where agents' programs run."""

from __future__ import annotations

import logging
import os

from mappa_jax.config import SandboxConfig
from mappa_jax.tools.base import Sandbox, SandboxError, Workspace
from mappa_jax.tools.bubblewrap import Bubblewrap, find_bwrap
from mappa_jax.tools.unsafe import UnsafeSubprocess
from mappa_jax.tools.walled import WalledSandbox

__all__ = ["Sandbox", "SandboxError", "Workspace", "make_sandbox"]


def make_sandbox(config: SandboxConfig, bwrap: str | None = None) -> Sandbox:
    """The sandbox that `config` asks for. Call its `check` before the first run.

    With `config.unsafe` the walls are tried here (a process is started, which takes
    some ten milliseconds), and a plain subprocess takes their place, with a warning,
    only if they cannot be built.

    Args:
      config: backend, limits and whether to do without walls.
      bwrap: path of the bwrap executable; None looks for one.

    Raises:
      SandboxError: sandbox.backend="unsafe_subprocess" without sandbox.unsafe.
    """
    if config.backend == "sandbox_fusion":
        from mappa_jax.tools.fusion import FusionSandbox

        return FusionSandbox(config)
    if config.backend == "unsafe_subprocess":
        if not config.unsafe:
            raise SandboxError(
                "sandbox.backend='unsafe_subprocess' runs agents' programs without "
                "walls; say sandbox.unsafe=True too if this machine may be lost"
            )
        return _without_walls(config, "sandbox.backend='unsafe_subprocess' says so")
    walls = Bubblewrap(
        bwrap=find_bwrap(bwrap),
        processes=config.processes,
        as_root=os.geteuid() == 0,
    )
    if not config.unsafe or (fault := walls.fault()) is None:
        return WalledSandbox(config, walls)
    return _without_walls(config, fault)


def _without_walls(config: SandboxConfig, why: str) -> Sandbox:
    logging.getLogger(__name__).warning(
        "sandbox.unsafe is set: agents' programs run WITHOUT WALLS on this machine, "
        "with its files and network in reach, because %s",
        why,
    )
    return UnsafeSubprocess(config)
