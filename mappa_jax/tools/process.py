"""Runs one process to its end: bounded time, bounded output, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

from mappa_jax.tools.base import SandboxError

READ_BYTES = 65536
# How long the pipes may stay open after the process has gone (only a process that
# escaped its group, which real walls do not allow, can hold them longer).
DRAIN_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Finished:
    """How a process ended.

    Attributes:
      stdout: at most the allowed number of bytes.
      stderr: likewise.
      returncode: as of `asyncio.subprocess.Process`.
      limit: the limit that ended it, as in `Observation.limit`.
      seconds: wall time from the start of the program.
    """

    stdout: bytes
    stderr: bytes
    returncode: int
    limit: str | None
    seconds: float


class _Pipe:
    """A pipe whose read end belongs to the event loop. Keeps what fits, drops the rest.

    It always reads on to the end, so that the writer never blocks on a full pipe.
    """

    def __init__(self, keep: int):
        self.keep = keep
        self.data = bytearray()
        self.overflow = asyncio.Event()
        self._read_fd, self.write_fd = os.pipe()
        self._transport: asyncio.ReadTransport | None = None
        self.reader = asyncio.StreamReader()

    async def connect(self) -> None:
        protocol = asyncio.StreamReaderProtocol(self.reader)
        loop = asyncio.get_running_loop()
        read_end = os.fdopen(self._read_fd, "rb", buffering=0)
        self._transport, _ = await loop.connect_read_pipe(lambda: protocol, read_end)

    async def drain(self) -> None:
        while chunk := await self.reader.read(READ_BYTES):
            room = self.keep - len(self.data)
            self.data += chunk[:room]
            if len(chunk) > room:
                self.overflow.set()

    def close_writer(self) -> None:
        os.close(self.write_fd)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def run_process(
    command: Callable[[int, int], Sequence[str]],
    *,
    code: str,
    env: Mapping[str, str],
    cwd: str,
    wall_seconds: float,
    output_bytes: int,
) -> Finished:
    """Runs `launcher.py`, behind whatever walls `command` builds, on a program.

    Args:
      command: (code_fd, status_fd) -> the command line.
      code: the program's source.
      env: the whole environment of the command.
      cwd: its working directory.
      wall_seconds: for the start, and again for the program.
      output_bytes: kept of stdout and of stderr, each; more ends the process.

    Raises:
      SandboxError: if the launcher never came to run the program.
    """
    stdout, stderr, status = _Pipe(output_bytes), _Pipe(output_bytes), _Pipe(READ_BYTES)
    pipes = (stdout, stderr, status)
    try:
        for pipe in pipes:
            await pipe.connect()
        process = await _spawn(command, code, env, cwd, pipes)
        try:
            await _await_ready(process, status, stderr, wall_seconds)
            started = time.monotonic()
            limit = await _watch(process, pipes, wall_seconds)
            seconds = time.monotonic() - started
        finally:
            _kill_group(process)
            returncode = await process.wait()
    finally:
        for pipe in pipes:
            pipe.close()
    return Finished(
        stdout=bytes(stdout.data),
        stderr=bytes(stderr.data),
        returncode=returncode,
        # What the program ran into first explains it better than how it was ended.
        limit=_reported_limit(bytes(status.data)) or limit,
        seconds=seconds,
    )


async def _spawn(command, code, env, cwd, pipes) -> asyncio.subprocess.Process:
    stdout, stderr, status = pipes
    try:
        # A file and not a pipe: a long program would fill a pipe before it is read.
        with tempfile.TemporaryFile() as program:
            program.write(code.encode("utf-8", errors="replace"))
            program.seek(0)
            argv = command(program.fileno(), status.write_fd)
            return await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout.write_fd,
                stderr=stderr.write_fd,
                pass_fds=(program.fileno(), status.write_fd),
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )
    except OSError as error:
        raise SandboxError(f"the sandbox could not be started: {error}") from error
    finally:
        for pipe in pipes:
            pipe.close_writer()


async def _await_ready(process, status, stderr, seconds: float) -> None:
    try:
        line = await asyncio.wait_for(status.reader.readline(), seconds)
    except TimeoutError:
        raise SandboxError(f"the sandbox did not start in {seconds} s") from None
    if line == b"ready\n":
        return
    _kill_group(process)
    await process.wait()
    with contextlib.suppress(asyncio.TimeoutError):  # what has come will do
        await asyncio.wait_for(stderr.drain(), DRAIN_SECONDS)
    said = stderr.data.decode(errors="replace").strip()
    raise SandboxError(f"the sandbox did not start: {said or 'it said nothing'}")


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
        _kill_group(process)
        await exited
        await asyncio.wait(drains, timeout=DRAIN_SECONDS)
    finally:
        for task in (*drains, exited, *overflows):
            task.cancel()
    if any(pipe.overflow.is_set() for pipe in pipes[:2]):
        return "output"
    return "wall_time" if timed_out else None


def _kill_group(process) -> None:
    with contextlib.suppress(ProcessLookupError):  # gone already, which is the aim
        os.killpg(process.pid, signal.SIGKILL)


def _reported_limit(status: bytes) -> str | None:
    known = ("memory", "processes", "file_size")
    lines = status.decode(errors="replace").splitlines()
    return next((kind for kind in known if f"limit:{kind}" in lines), None)
