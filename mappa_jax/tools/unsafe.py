"""No walls: a plain subprocess with limits, for machines that can build none.

An agent's program can read and write whatever our own user can, and reach the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence

from mappa_jax.config import SandboxConfig
from mappa_jax.timeline import span
from mappa_jax.tools.base import (
    MAX_LISTED_FILES,
    MIB,
    Listing,
    SandboxError,
    check_names,
    observation,
)
from mappa_jax.tools.bubblewrap import ENVIRONMENT, INSIDE, INTERPRETER_FLAGS
from mappa_jax.tools.inside.files import list_files
from mappa_jax.tools.process import READ_BYTES, Pipe, kill_group, limit_behind
from mappa_jax.types import FileTooLarge, Observation

# How long the pipes may stay open after the process has gone (only a process that
# escaped its group can hold them longer).
DRAIN_SECONDS = 1.0
READY_SECONDS = 30.0


class UnsafeSubprocess:
    """See `Sandbox`. Holds time, memory, file size and output within limits, and
    nothing else: not the number of processes, not the disk."""

    def __init__(self, config: SandboxConfig):
        self._config = config
        self._slots = asyncio.Semaphore(config.workers)

    async def check(self) -> None:
        """There is no wall that could be missing; a program must run, though."""
        async with self.workspace() as workspace:
            await workspace.run("pass")

    @contextlib.asynccontextmanager
    async def workspace(
        self, files: Mapping[str, str] = {}, first: Sequence[str] = ()
    ) -> AsyncIterator[UnsafeWorkspace]:
        """See `Sandbox.workspace`."""
        check_names(files)
        folder = pathlib.Path(await asyncio.to_thread(tempfile.mkdtemp, "", "mappa-"))
        try:
            for name, path in files.items():
                if not os.access(path, os.R_OK):
                    raise SandboxError(f"task file {path}: it cannot be read")
                (folder / name).symlink_to(os.path.abspath(path))
            yield UnsafeWorkspace(self._config, self._slots, folder, tuple(first))
        finally:
            await asyncio.to_thread(_remove, folder)

    async def forget(self, files: Mapping[str, str]) -> None:
        """Nothing is kept: a work folder has links to its input files."""

    async def aclose(self) -> None:
        """Nothing is held between runs."""


class UnsafeWorkspace:
    """One episode's folder. Made by `UnsafeSubprocess.workspace`."""

    def __init__(self, config, slots, folder: pathlib.Path, first: tuple[str, ...]):
        self._config, self._slots = config, slots
        self._folder, self._first = folder, first
        self._one_at_a_time = asyncio.Lock()

    async def run(self, code: str) -> Observation:
        """See `Workspace.run`. Programs of one work folder run one after another."""
        async with self._one_at_a_time, self._slots:
            with span("sandbox", "program"):
                return await self._run(code)

    async def read(self, name: str, most: int) -> bytes | None:
        """See `Workspace.read`."""
        path = self._folder / name
        async with self._one_at_a_time:
            if path.is_symlink() or not path.is_file():
                return None
            if path.stat().st_size > most:
                raise FileTooLarge(f"{name} has more than {most} bytes")
            return await asyncio.to_thread(path.read_bytes)

    async def _run(self, code: str) -> Observation:
        config = self._config
        before = await self._list()
        stdout, stderr = Pipe(config.output_bytes), Pipe(config.output_bytes)
        status = Pipe(READ_BYTES)
        pipes = (stdout, stderr, status)
        try:
            for pipe in pipes:
                await pipe.connect()
            process = await self._spawn(code, pipes)
            try:
                await _await_ready(process, status, stderr)
                started = time.monotonic()
                limit = await _watch(process, pipes, config.wall_seconds)
                seconds = time.monotonic() - started
            finally:
                kill_group(process)
                returncode = await process.wait()
        finally:
            for pipe in pipes:
                pipe.close()
        after = await self._list()
        return observation(
            stdout=bytes(stdout.data),
            stderr=bytes(stderr.data),
            exit_status=returncode,
            limit=_reported_limit(bytes(status.data))
            or limit
            or limit_behind(returncode, seconds, config.cpu_seconds),
            before=before,
            after=after,
            seconds=seconds,
        )

    async def _list(self) -> Listing:
        return await asyncio.to_thread(
            list_files, self._folder, MAX_LISTED_FILES, self._first
        )

    async def _spawn(self, code, pipes) -> asyncio.subprocess.Process:
        stdout, stderr, status = pipes
        try:
            # A file and not a pipe: a long program would fill a pipe before it is read.
            with tempfile.TemporaryFile() as program:
                program.write(code.encode("utf-8", errors="replace"))
                program.seek(0)
                return await asyncio.create_subprocess_exec(
                    *self._command(program.fileno(), status.write_fd),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=stdout.write_fd,
                    stderr=stderr.write_fd,
                    pass_fds=(program.fileno(), status.write_fd),
                    env=ENVIRONMENT | {"HOME": str(self._folder)},
                    cwd=str(self._folder),
                    start_new_session=True,
                )
        except OSError as error:
            raise SandboxError(f"no program could be started: {error}") from error
        finally:
            for pipe in pipes:
                pipe.close_writer()

    def _command(self, code_fd: int, status_fd: int) -> list[str]:
        config = self._config
        # No limit on processes: it would count all those of our user, so that any
        # value stops the program, or us, depending on what else is running.
        limits = (config.cpu_seconds, config.memory_mb * MIB, -1, config.file_mb * MIB)
        numbers = map(str, (code_fd, status_fd, *limits))
        interpreter = os.path.realpath(sys.executable)
        scheme = sysconfig.get_paths()
        paths = dict.fromkeys(scheme[kind] for kind in ("purelib", "platlib"))
        script = str(INSIDE / "plain.py")
        return [interpreter, *INTERPRETER_FLAGS, script, *numbers, *paths]


async def _await_ready(process, status, stderr) -> None:
    try:
        line = await asyncio.wait_for(status.reader.readline(), READY_SECONDS)
    except TimeoutError:
        raise SandboxError(f"no program started in {READY_SECONDS} s") from None
    if line == b"ready\n":
        return
    kill_group(process)
    await process.wait()
    with contextlib.suppress(asyncio.TimeoutError):  # what has come will do
        await asyncio.wait_for(stderr.drain(), DRAIN_SECONDS)
    said = stderr.data.decode(errors="replace").strip()
    raise SandboxError(f"no program could be started: {said or 'it said nothing'}")


async def _watch(process, pipes, wall_seconds: float) -> str | None:
    drains = [asyncio.create_task(pipe.drain()) for pipe in pipes]
    exited = asyncio.create_task(process.wait())
    overflows = [asyncio.create_task(pipe.overflow.wait()) for pipe in pipes[:2]]
    try:
        await asyncio.wait(
            {exited, *overflows},
            timeout=wall_seconds,
            return_when=asyncio.FIRST_COMPLETED,
        )
        timed_out = not exited.done()
        kill_group(process)
        await exited
        await asyncio.wait(drains, timeout=DRAIN_SECONDS)
    finally:
        for task in (*drains, exited, *overflows):
            task.cancel()
    if any(pipe.overflow.is_set() for pipe in pipes[:2]):
        return "output"
    return "wall_time" if timed_out else None


def _reported_limit(status: bytes) -> str | None:
    known = ("memory", "processes", "file_size", "disk")
    lines = status.decode(errors="replace").splitlines()
    return next((kind for kind in known if kind in lines), None)


def _remove(folder: pathlib.Path) -> None:
    os.chmod(folder, 0o700)  # a program may have locked it
    try:
        shutil.rmtree(folder)
        return
    except PermissionError:
        pass  # it has locked a folder inside
    for base, folders, _ in os.walk(folder):
        for name in folders:
            path = os.path.join(base, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(folder)
