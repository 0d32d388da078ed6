"""No walls: a plain subprocess with limits, for machines that can build none.

An agent's program can read and write whatever our own user can, and reach the network.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
import sysconfig
from collections.abc import Mapping

from mappa_jax.tools.local import ENVIRONMENT, INTERPRETER_FLAGS, LAUNCHER


@dataclasses.dataclass(frozen=True)
class NoWalls:
    """Limits on time, memory, file size and output; none on processes.

    RLIMIT_NPROC counts all processes of the user, ours included, so that any useful
    value would stop the program, or us, depending on what else is running.
    """

    @property
    def env(self) -> Mapping[str, str]:
        return ENVIRONMENT

    def fault(self) -> str | None:
        return None

    def probe(self) -> str:
        return "pass"

    def give(self, folder: pathlib.Path) -> int:
        return -1

    def argv(self, folder: pathlib.Path) -> list[str]:
        interpreter = os.path.realpath(sys.executable)
        return [interpreter, *INTERPRETER_FLAGS, str(LAUNCHER)]

    def process_limit(self, processes: int) -> int:
        return -1

    def package_paths(self) -> list[str]:
        scheme = sysconfig.get_paths()
        return list(dict.fromkeys(scheme[kind] for kind in ("purelib", "platlib")))
