"""Pipes that keep what fits, and the ways in which a process ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

READ_BYTES = 65536


class Pipe:
    """A pipe whose read end belongs to the event loop. Keeps what fits, drops the rest.

    It always reads on to the end, so that the writer never blocks on a full pipe.

    Attributes:
      keep: bytes that fit.
      data: what came, as far as it fits.
      overflow: set once more has come.
      write_fd: to be given away and closed with `close_writer`.
    """

    def __init__(self, keep: int):
        self.keep = keep
        self.data = bytearray()
        self.overflow = asyncio.Event()
        read_fd, self.write_fd = os.pipe()
        self._read_end = os.fdopen(read_fd, "rb", buffering=0)
        self._transport: asyncio.ReadTransport | None = None
        self.reader = asyncio.StreamReader()

    async def connect(self) -> None:
        protocol = asyncio.StreamReaderProtocol(self.reader)
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.connect_read_pipe(
            lambda: protocol, self._read_end
        )

    async def drain(self) -> bytes:
        """Reads to the end; returns what was kept."""
        while chunk := await self.reader.read(READ_BYTES):
            room = self.keep - len(self.data)
            self.data += chunk[:room]
            if len(chunk) > room:
                self.overflow.set()
        return bytes(self.data)

    def close_writer(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def close(self) -> None:
        self.close_writer()
        if self._transport is not None:
            self._transport.close()
        else:
            self._read_end.close()


def limit_behind(exit_status: int, seconds: float, cpu_seconds: int) -> str | None:
    """The kernel's limit behind an exit status (negative: a signal), or None.

    Args:
      exit_status: of the program.
      seconds: wall time that it ran.
      cpu_seconds: its limit.
    """
    if exit_status == -signal.SIGXCPU:
        return "cpu_time"
    # SIGXCPU was ignored, and a second later the kernel insisted.
    if exit_status == -signal.SIGKILL and seconds >= cpu_seconds:
        return "cpu_time"
    return "file_size" if exit_status == -signal.SIGXFSZ else None


def kill_group(process: asyncio.subprocess.Process) -> None:
    """Kills a process that leads a session, and those of its group.

    Not `process.kill()`, which looks first whether it has ended and so takes its exit
    status from the event loop's own watcher.
    """
    with contextlib.suppress(ProcessLookupError):  # gone already, which is the aim
        os.killpg(process.pid, signal.SIGKILL)
