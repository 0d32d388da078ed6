"""The sandbox: programs behind walls, forked from a warm interpreter.

Out here is the host's half: it starts the interpreter of inside/server.py in a
container that bubblewrap builds, asks it for a holder per episode, and turns a run's
pipes into an observation. What a program can reach is decided in there and in
bubblewrap.py; what it may ask of the kernel, in seccomp.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from mappa_jax.config import SandboxConfig
from mappa_jax.timeline import span
from mappa_jax.tools import cgroups, seccomp
from mappa_jax.tools.base import (
    MAX_LISTED_FILES,
    MIB,
    Listing,
    SandboxError,
    check_names,
    observation,
)
from mappa_jax.tools.bubblewrap import Bubblewrap
from mappa_jax.tools.process import Pipe, kill_group, limit_behind
from mappa_jax.types import FileTooLarge, Observation

log = logging.getLogger(__name__)

START_SECONDS = 60.0  # for the interpreter with all its packages, on a slow machine
# A holder that says nothing for so long after a program's time is up is given up.
GRACE_SECONDS = 30.0
REPLY_BYTES = 8 * MIB  # above what two listings can have
MESSAGE_BYTES = 65536  # as in inside/server.py
SAID_BYTES = 4000  # of a dying interpreter's last words


class WalledSandbox:
    """See `Sandbox`. Up to `config.workers` programs run at once."""

    def __init__(self, config: SandboxConfig, walls: Bubblewrap):
        self._config = config
        self._walls = walls
        self._slots = asyncio.Semaphore(config.workers)
        self._starting = asyncio.Lock()
        self._server: _Server | None = None

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
    async def workspace(
        self, files: Mapping[str, str] = {}, first: Sequence[str] = ()
    ) -> AsyncIterator[WalledWorkspace]:
        """See `Sandbox.workspace`."""
        check_names(files)
        server = await self._running()
        holder = await server.episode(files, first)
        try:
            yield WalledWorkspace(self._config, self._slots, server, holder)
        finally:
            holder.close()

    async def forget(self, files: Mapping[str, str]) -> None:
        """See `Sandbox.forget`."""
        if self._server is not None:
            await self._server.forget(files)

    async def aclose(self) -> None:
        """See `Sandbox.aclose`."""
        if self._server is not None:
            await self._server.aclose()
            self._server = None

    def kill(self) -> None:
        """Kills the interpreter and with it every program; another one is started for
        the next episode. For tests of what then happens."""
        if self._server is not None:
            self._server.kill()

    async def _running(self) -> _Server:
        async with self._starting:
            if self._server is not None and self._server.dead:
                log.warning("the sandbox's interpreter has died; starting another")
                await self.aclose()
            if self._server is None:
                self._server = await _Server.start(self._config, self._walls)
            return self._server


class _Server:
    """The warm interpreter, and the folder of input files that it can see."""

    def __init__(self, walls, process, control, folder, said):
        self._walls, self._process, self._control = walls, process, control
        self._folder, self._said = folder, said
        self.groups = cgroups.find_places()
        self._staged: dict[str, asyncio.Task[None]] = {}

    @classmethod
    async def start(cls, config: SandboxConfig, walls: Bubblewrap) -> _Server:
        folder = pathlib.Path(await asyncio.to_thread(tempfile.mkdtemp, "", "mappa-"))
        folder.chmod(0o711)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        said = tempfile.TemporaryFile()
        try:
            with theirs:
                process = await _spawn(walls, folder, theirs, said)
        except BaseException:
            ours.close()
            said.close()
            shutil.rmtree(folder)
            raise
        server = cls(walls, process, ours, folder, said)
        try:
            await server._prepare(config)
        except BaseException:
            await server.aclose()
            raise
        return server

    async def _prepare(self, config: SandboxConfig) -> None:
        """Sends the settings, and waits until all packages are imported."""
        settings = json.dumps(_settings(config, self._walls)).encode()
        try:
            await asyncio.get_running_loop().sock_sendall(self._control, settings)
            ready = await asyncio.wait_for(_receive(self._control), START_SECONDS)
        except ConnectionError:
            ready = None
        except TimeoutError:
            raise SandboxError(
                f"the sandbox did not start in {START_SECONDS} s (it imports "
                f"sandbox.preload={config.preload})"
            ) from None
        if ready is None:
            await self._process.wait()
            raise SandboxError(f"the sandbox did not start: {self.last_words()}")
        if ready["threads"] != 1:
            raise SandboxError(
                f"sandbox.preload={config.preload}: importing these starts "
                f"{ready['threads'] - 1} threads, which do not survive a fork; leave "
                "out the one that does"
            )

    @property
    def dead(self) -> bool:
        return self._process.returncode is not None

    def last_words(self) -> str:
        self._said.seek(0)
        said = self._said.read()[-SAID_BYTES:].decode(errors="replace").strip()
        return self._walls.explain(said) or "it said nothing"

    def kill(self) -> None:
        if not self.dead:
            kill_group(self._process)

    async def episode(
        self, files: Mapping[str, str], first: Sequence[str]
    ) -> socket.socket:
        """The socket of a new holder."""
        episode = {
            "uid": self._walls.new_uid(),
            "input": await self._stage(files) if files else "",
            "files": [*files],
            "first": [*first],
        }
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            with theirs:
                await _send(self._control, {"episode": episode}, [theirs.fileno()])
            said = await _receive(ours)
            if said is None:
                raise SandboxError(f"the sandbox has died: {self.last_words()}")
            if "fault" in said:
                raise SandboxError(self._walls.explain(said["fault"]))
        except BaseException:
            ours.close()
            raise
        return ours

    async def _stage(self, files: Mapping[str, str]) -> str:
        """The name of a folder under /inputs that holds `files`."""
        key = _key(files)
        if key not in self._staged:
            put = asyncio.to_thread(_put, self._folder / key, dict(files))
            self._staged[key] = asyncio.create_task(put)
        staging = self._staged[key]
        try:
            await asyncio.shield(staging)
        except OSError as error:
            if self._staged.get(key) is staging:  # others wait for the same
                del self._staged[key]
            raise SandboxError(
                f"task file {error.filename}: {error.strerror}"
            ) from error
        return key

    async def forget(self, files: Mapping[str, str]) -> None:
        """Removes the folder that `_stage` has made, if it has."""
        key = _key(files)
        staging = self._staged.pop(key, None)
        if staging is None:
            return
        await asyncio.wait([staging])  # it goes on where who asked for it was cancelled
        if staging.exception() is None:
            with contextlib.suppress(FileNotFoundError):  # by now the server was closed
                await asyncio.to_thread(shutil.rmtree, self._folder / key)

    async def aclose(self) -> None:
        self._control.close()
        self.kill()
        await self._process.wait()
        self._said.close()
        await asyncio.to_thread(shutil.rmtree, self._folder)


async def _spawn(walls, folder, theirs, said) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *walls.argv(folder, theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=said,
            pass_fds=(theirs.fileno(),),
            env={},
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"the sandbox could not be started: {error}") from error


def _settings(config: SandboxConfig, walls: Bubblewrap) -> dict[str, Any]:
    """What the server must know; see inside/server.py."""
    return {
        "paths": walls.package_paths(),
        "preload": list(config.preload),
        "seccomp": seccomp.filter_program().hex(),
        "cpu_seconds": config.cpu_seconds,
        "memory_bytes": config.memory_mb * MIB,
        "processes": config.processes,
        "process_limit": walls.process_limit(config.processes),
        "file_bytes": config.file_mb * MIB,
        "disk_bytes": config.disk_mb * MIB,
        "scratch_bytes": config.file_mb * MIB,
        "files": config.files,
    }


def _key(files: Mapping[str, str]) -> str:
    """A name for a folder that holds these: equal for equal names and paths."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def _put(folder: pathlib.Path, files: Mapping[str, str]) -> None:
    """Puts files into a folder that every user may read: by link where that will do."""
    part = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, suffix=".part"))
    try:
        _put_all(part, files)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part)
        raise


def _put_all(folder: pathlib.Path, files: Mapping[str, str]) -> None:
    folder.chmod(0o755)
    for name, path in files.items():
        place = folder / name
        if os.stat(path).st_mode & 0o004:
            with contextlib.suppress(OSError):  # another file system, or not ours
                os.link(os.path.realpath(path), place)
                continue
        shutil.copyfile(path, place)
        place.chmod(0o644)


async def _send(control: socket.socket, message: Any, fds: list[int]) -> None:
    data = json.dumps(message).encode()
    if len(data) > MESSAGE_BYTES:
        raise SandboxError(
            f"a message of {len(data)} bytes to the sandbox; use fewer input files, or "
            "shorter names"
        )
    while True:
        try:
            socket.send_fds(control, [data], fds)
            return
        except BlockingIOError:  # it has not read the last ones yet
            await asyncio.sleep(0.01)
        except OSError as error:
            raise SandboxError(f"the sandbox is gone: {error}") from error


async def _receive(control: socket.socket) -> Any:
    """The next message, or None where the other side has gone."""
    loop = asyncio.get_running_loop()
    try:
        data = await loop.sock_recv(control, MIB)
    except ConnectionError:
        return None
    return json.loads(data) if data else None


class WalledWorkspace:
    """One episode's work folder. Made by `WalledSandbox.workspace`."""

    def __init__(self, config, slots, server, holder: socket.socket):
        self._config, self._slots = config, slots
        self._server, self._holder = server, holder
        self._one_at_a_time = asyncio.Lock()

    async def run(self, code: str) -> Observation:
        """See `Workspace.run`. Programs of one work folder run one after another."""
        async with self._one_at_a_time, self._slots:
            with span("sandbox", "program"):
                return await self._run(code)

    async def read(self, name: str, most: int) -> bytes | None:
        """See `Workspace.read`."""
        async with self._one_at_a_time:
            return await self._read(name, most)

    async def _read(self, name: str, most: int) -> bytes | None:
        reply = Pipe(most + 1)
        try:
            await reply.connect()
            details = {"name": name, "most": most}
            await _send(self._holder, {"read": details}, [reply.write_fd])
            reply.close_writer()
            said = await self._within_grace(reply.drain(), 0)
        finally:
            reply.close()
        if said[:1] == b">":
            raise FileTooLarge(f"{name} has more than {most} bytes")
        if said[:1] not in (b"+", b"-"):
            raise SandboxError(f"the sandbox has died: {self._server.last_words()}")
        return said[1:] if said[:1] == b"+" else None

    async def _run(self, code: str) -> Observation:
        config = self._config
        limits = {
            # What it writes to file systems in memory is counted too.
            "memory": (config.memory_mb + config.disk_mb + 2 * config.file_mb) * MIB,
            "pids": config.processes,
        }
        async with cgroups.group(self._server.groups, limits) as group:
            return await self._run_in(group, code)

    async def _run_in(self, group: cgroups.Group, code: str) -> Observation:
        config = self._config
        stdout, stderr = Pipe(config.output_bytes), Pipe(config.output_bytes)
        reply = Pipe(REPLY_BYTES)
        pipes = (stdout, stderr, reply)
        try:
            for pipe in pipes:
                await pipe.connect()
            await self._start(code, pipes, group)
            ended = await self._watch(*pipes)
        finally:
            for pipe in pipes:
                pipe.close()
        if "fault" in ended:
            raise SandboxError(f"the program was not run: {ended['fault']}")
        status, seconds = ended["status"], ended["seconds"]
        limit = "output" if stdout.overflow.is_set() or stderr.overflow.is_set() else ""
        return observation(
            stdout=bytes(stdout.data),
            stderr=bytes(stderr.data),
            exit_status=status,
            # What the program ran into first explains it better than how it was ended.
            limit=ended["met"]
            or ("memory" if group.killed_for_memory() else limit)
            or ended["limit"]
            or limit_behind(status, seconds, config.cpu_seconds),
            before=_listing(ended["before"]),
            after=_listing(ended["files"]),
            seconds=seconds,
        )

    async def _start(
        self, code: str, pipes: tuple[Pipe, ...], group: cgroups.Group
    ) -> None:
        # In memory and not in a pipe: a long program would fill a pipe before it is
        # read.
        source = os.memfd_create("program")
        try:
            with open(source, "wb", closefd=False) as file:
                file.write(code.encode("utf-8", errors="replace"))
            os.lseek(source, 0, os.SEEK_SET)
            details = {
                "wall_seconds": self._config.wall_seconds,
                "most": MAX_LISTED_FILES,
            }
            fds = [source, *(pipe.write_fd for pipe in pipes), *group.fds]
            await _send(self._holder, {"run": details}, fds)
        finally:
            os.close(source)
            for pipe in pipes:
                pipe.close_writer()

    async def _watch(self, stdout: Pipe, stderr: Pipe, reply: Pipe) -> dict[str, Any]:
        """What the holder says of the program's end."""
        drains = [asyncio.create_task(p.drain()) for p in (stdout, stderr, reply)]
        full = [asyncio.create_task(p.overflow.wait()) for p in (stdout, stderr)]
        try:
            await self._within_grace(
                asyncio.wait({drains[-1], *full}, return_when="FIRST_COMPLETED"),
                self._config.wall_seconds,
            )
            if not drains[-1].done():
                await _send(self._holder, {"kill": {}}, [])
            await self._within_grace(asyncio.gather(*drains), 0)
        except BaseException:
            # Whoever waited has gone, or the holder has: it must not run on.
            with contextlib.suppress(OSError):
                self._holder.shutdown(socket.SHUT_RDWR)
            raise
        finally:
            for task in (*drains, *full):
                task.cancel()
        if not reply.data:
            raise SandboxError(f"the sandbox has died: {self._server.last_words()}")
        try:
            return json.loads(bytes(reply.data))
        except ValueError as error:
            raise SandboxError(f"the sandbox's reply is damaged: {error}") from error

    async def _within_grace(self, work: Any, seconds: float) -> Any:
        try:
            return await asyncio.wait_for(work, seconds + GRACE_SECONDS)
        except TimeoutError:
            raise SandboxError(
                f"the sandbox says nothing {GRACE_SECONDS} s after it should have"
            ) from None


def _listing(raw: Mapping[str, list[int]]) -> Listing:
    return {name: tuple(seen) for name, seen in raw.items()}
