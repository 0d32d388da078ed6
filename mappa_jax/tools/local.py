"""A sandbox on this machine: work folders, and one process per program.

What stands between the process and the machine is a `Walls`: real ones in
bubblewrap.py, none in unsafe.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import shutil
import signal
import stat
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from mappa_jax.config import SandboxConfig
from mappa_jax.tools.base import SandboxError
from mappa_jax.tools.process import Finished, run_process
from mappa_jax.types import Observation

LAUNCHER = pathlib.Path(__file__).with_name("launcher.py")
# -s -S -P: no site-packages and no script folder on the path but what we put there;
# -B: nothing to write; -u: what was printed before a limit struck is not lost.
INTERPRETER_FLAGS = ("-s", "-S", "-P", "-B", "-u", "-X", "utf8")
MAX_LISTED_FILES = 1000  # a program may leave any number
MIB = 1024 * 1024

# The whole environment of a program. One thread per numerical library: their pools
# are sized by the machine's cores and would run into the limits on a large host. A
# fixed hash seed makes the same program print the same sets.
ENVIRONMENT = {
    "HOME": "/work",
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class Walls(Protocol):
    """How a process is shut in."""

    @property
    def env(self) -> Mapping[str, str]:
        """The whole environment of the command that builds the walls."""

    def fault(self) -> str | None:
        """The wall that cannot be built and the remedy, or None. Blocks briefly."""

    def probe(self) -> str:
        """A program that prints a line per wall that it finds missing."""

    def give(self, folder: pathlib.Path) -> int:
        """Makes the work folder the program's; its user id, or -1 for our own."""

    def argv(self, folder: pathlib.Path) -> Sequence[str]:
        """The command that runs the launcher, up to the launcher's arguments."""

    def process_limit(self, processes: int) -> int:
        """RLIMIT_NPROC that allows so many processes, or -1 if it cannot be used."""

    def package_paths(self) -> Sequence[str]:
        """Import paths, as the program sees them."""


class LocalSandbox:
    """Runs up to `config.workers` programs at once, each behind `walls`."""

    def __init__(self, config: SandboxConfig, walls: Walls):
        self._config = config
        self._walls = walls
        self._slots = asyncio.Semaphore(config.workers)

    async def check(self) -> None:
        """Builds the walls once and lets a program push against each of them.

        Raises:
          SandboxError: naming the wall and the remedy.
        """
        fault = await asyncio.to_thread(self._walls.fault)
        if fault is not None:
            raise SandboxError(fault)
        async with self.workspace() as workspace:
            seen = await workspace.run(self._walls.probe())
        if not seen.ok or seen.stdout:
            raise SandboxError(
                "the sandbox was built but does not hold "
                f"({seen.limit or 'no limit hit'}): {seen.stdout}{seen.stderr}"
            )

    @contextlib.asynccontextmanager
    async def workspace(self) -> AsyncIterator[LocalWorkspace]:
        folder = pathlib.Path(await asyncio.to_thread(tempfile.mkdtemp, "", "mappa-"))
        try:
            uid = self._walls.give(folder)
            yield LocalWorkspace(self._config, self._walls, self._slots, folder, uid)
        finally:
            await asyncio.to_thread(_remove, folder)

    async def aclose(self) -> None:
        """Nothing is held between runs."""


class LocalWorkspace:
    """One episode's folder. Made by `LocalSandbox.workspace`."""

    def __init__(self, config, walls, slots, folder: pathlib.Path, uid: int):
        self._config, self._walls, self._slots = config, walls, slots
        self._folder, self._uid = folder, uid

    async def run(self, code: str) -> Observation:
        """See `Workspace.run`."""
        config = self._config
        async with self._slots:
            before = await asyncio.to_thread(_list_files, self._folder)
            finished = await run_process(
                self._command,
                code=code,
                env=self._walls.env,
                cwd=str(self._folder),
                wall_seconds=config.wall_seconds,
                output_bytes=config.output_bytes,
            )
            files = await asyncio.to_thread(_list_files, self._folder)
        exit_status = _exit_status(finished.returncode)
        return Observation(
            stdout=finished.stdout.decode("utf-8", errors="replace"),
            stderr=finished.stderr.decode("utf-8", errors="replace"),
            exit_status=exit_status,
            limit=_limit(finished, exit_status, config.cpu_seconds),
            files=files,
            files_before=before,
            seconds=finished.seconds,
        )

    def _command(self, code_fd: int, status_fd: int) -> list[str]:
        config = self._config
        numbers = (
            code_fd,
            status_fd,
            self._uid,
            config.cpu_seconds,
            config.memory_mb * MIB,
            self._walls.process_limit(config.processes),
            config.file_mb * MIB,
        )
        return [
            *self._walls.argv(self._folder),
            *map(str, numbers),
            *self._walls.package_paths(),
        ]


def _exit_status(returncode: int) -> int:
    """Undoes the shell's convention (128 + signal) that a wrapper may have used."""
    if 128 < returncode <= 128 + signal.SIGRTMAX:
        return 128 - returncode
    return returncode


def _limit(finished: Finished, exit_status: int, cpu_seconds: int) -> str | None:
    if finished.limit is not None:
        return finished.limit
    if exit_status == -signal.SIGXCPU:
        return "cpu_time"
    # SIGXCPU was ignored, and a second later the kernel insisted.
    if exit_status == -signal.SIGKILL and finished.seconds >= cpu_seconds:
        return "cpu_time"
    return "file_size" if exit_status == -signal.SIGXFSZ else None


def _list_files(folder: pathlib.Path) -> tuple[str, ...]:
    """Regular files under `folder`, relative, sorted; links are not followed."""
    names: list[str] = []
    for base, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(base, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                names.append(os.path.relpath(path, folder))
            if len(names) == MAX_LISTED_FILES:
                return tuple(sorted(names))
    return tuple(sorted(names))


def _remove(folder: pathlib.Path) -> None:
    os.chmod(folder, 0o700)  # a program may have locked it
    for base, folders, _ in os.walk(folder):
        for name in folders:
            path = os.path.join(base, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(folder)
