"""Programs on a SandboxFusion server (github.com/bytedance/SandboxFusion).

Its walls are the server's own, and so are its packages. It keeps nothing between runs:
a work folder lives out here, travels with every run, and comes back with it
(inside/remote.py). The protocol is one call, POST /run_code.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import io
import json
import pathlib
import time
import zipfile
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import aiohttp
import pydantic

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
from mappa_jax.tools.inside.files import hidden_name, printable
from mappa_jax.tools.process import limit_behind
from mappa_jax.types import FileTooLarge, Observation

SCRIPT = pathlib.Path(__file__).with_name("inside") / "remote.py"
MAPPA = ".mappa"  # as in inside/remote.py
# For the interpreter's start and the way there and back, beyond the program's time.
GRACE_SECONDS = 30.0
TRIES, FIRST_PAUSE_S = 4, 0.5  # a run that failed on the server's side is tried again
SHOWN_CHARS = 300


class _Command(pydantic.BaseModel):
    status: str
    return_code: int | None = None
    stdout: str | None = ""
    stderr: str | None = ""


class _Reply(pydantic.BaseModel):
    """What we read of the server's answer."""

    status: str
    message: str = ""
    run_result: _Command | None = None
    files: dict[str, str] = {}


class FusionSandbox:
    """See `Sandbox`.

    Of the limits, wall time, memory (as the server enforces it), output and disk hold;
    those on processor time, processes and single files are the server's.
    """

    def __init__(self, config: SandboxConfig):
        self._config = config
        self._url = config.base_url.rstrip("/") + "/run_code"
        self._slots = asyncio.Semaphore(config.workers)
        self._session: aiohttp.ClientSession | None = None

    async def check(self) -> None:
        """Runs a program on the server."""
        async with self.workspace() as workspace:
            seen = await workspace.run("open('kept', 'w').write('x')\nprint(6 * 7)")
        if seen.stdout != "42\n" or seen.files != ("kept",):
            raise SandboxError(
                f"sandbox.base_url={self._config.base_url!r} does not run programs "
                f"as a SandboxFusion server should: {seen}"
            )

    @contextlib.asynccontextmanager
    async def workspace(
        self, files: Mapping[str, str] = {}, first: Sequence[str] = ()
    ) -> AsyncIterator[FusionWorkspace]:
        """See `Sandbox.workspace`."""
        check_names(files)
        try:
            inputs = await asyncio.to_thread(_read_all, files)
        except OSError as error:
            raise SandboxError(
                f"task file {error.filename}: {error.strerror}"
            ) from error
        yield FusionWorkspace(self._config, self, inputs, first)

    async def forget(self, files: Mapping[str, str]) -> None:
        """Nothing is kept: a work folder has read its input files."""

    async def aclose(self) -> None:
        """See `Sandbox.aclose`."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(self, body: Mapping[str, Any]) -> _Reply:
        """One run on the server; what fails on its side is tried again.

        Raises:
          SandboxError: it cannot be had.
        """
        pause = FIRST_PAUSE_S
        async with self._slots:
            for left in reversed(range(TRIES)):
                try:
                    return await self._call_once(body)
                except SandboxError:
                    if not left:
                        raise
                await asyncio.sleep(pause)
                pause *= 2
        raise AssertionError("unreachable")

    async def _call_once(self, body: Mapping[str, Any]) -> _Reply:
        where = f"sandbox.base_url={self._config.base_url!r}"
        if self._session is None:  # made late, inside the event loop
            self._session = aiohttp.ClientSession()
        limit = aiohttp.ClientTimeout(body["run_timeout"] + GRACE_SECONDS)
        try:
            async with self._session.post(self._url, json=body, timeout=limit) as got:
                raw = await got.text(errors="replace")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise SandboxError(f"{where}: {error!r}") from error
        if got.status != 200:
            raise SandboxError(f"{where}: {got.status}: {raw[:SHOWN_CHARS]}")
        try:
            reply = _Reply.model_validate_json(raw)
        except pydantic.ValidationError as error:
            raise SandboxError(f"{where}: no answer of /run_code: {error}") from error
        if reply.status == "SandboxError" or reply.run_result is None:
            raise SandboxError(f"{where}: {reply.message[:SHOWN_CHARS]}")
        return reply


class FusionWorkspace:
    """One episode's files. Made by `FusionSandbox.workspace`."""

    def __init__(self, config, sandbox: FusionSandbox, inputs, first: Sequence[str]):
        self._config, self._sandbox = config, sandbox
        self._inputs: dict[str, bytes] = inputs
        self._first = [*first]
        self._one_at_a_time = asyncio.Lock()
        self._files: dict[str, bytes] = {}
        self._written: dict[str, int] = {}  # the run in which a file got its content
        self._runs = 0

    async def run(self, code: str) -> Observation:
        """See `Workspace.run`. Programs of one work folder run one after another."""
        async with self._one_at_a_time:
            with span("sandbox", "program"):
                return await self._run(code)

    async def _run(self, code: str) -> Observation:
        config = self._config
        started = time.monotonic()
        reply = await self._sandbox.call(self._request(code))
        seconds = time.monotonic() - started
        before = self._listing()
        result = reply.run_result
        packed = reply.files.get(f"{MAPPA}/files.zip")
        if packed is None:
            status, limit = -9, _limit_behind(result)
        else:
            end, files = await asyncio.to_thread(_unpack, packed, config)
            status, limit = end["status"], end["limit"]
            if limit != "disk":
                self._take(files)
        stdout, stderr = (
            (text or "").encode("utf-8", errors="replace")
            for text in (result.stdout, result.stderr)
        )
        if max(len(stdout), len(stderr)) > config.output_bytes:
            limit = limit or "output"
        return observation(
            stdout=stdout[: config.output_bytes],
            stderr=stderr[: config.output_bytes],
            exit_status=status,
            limit=limit or limit_behind(status, seconds, config.cpu_seconds),
            before=before,
            after=self._listing(),
            seconds=seconds,
        )

    async def read(self, name: str, most: int) -> bytes | None:
        """See `Workspace.read`."""
        content = self._files.get(name)
        if content is not None and len(content) > most:
            raise FileTooLarge(f"{name} has more than {most} bytes")
        return content

    def _request(self, code: str) -> dict[str, Any]:
        config = self._config
        settings = {
            "wall_seconds": config.wall_seconds,
            "disk_bytes": config.disk_mb * MIB,
            "most": MAX_LISTED_FILES,
            "inputs": [*self._inputs],
            "first": self._first,
        }
        files = self._inputs | self._files
        files[f"{MAPPA}/settings.json"] = json.dumps(settings).encode()
        files[f"{MAPPA}/program.py"] = code.encode("utf-8", errors="replace")
        return {
            "code": SCRIPT.read_text(encoding="utf-8"),
            "language": "python",
            "run_timeout": config.wall_seconds + GRACE_SECONDS / 2,
            "memory_limit_MB": config.memory_mb,
            "files": {n: base64.b64encode(c).decode() for n, c in files.items()},
            "fetch_files": [f"{MAPPA}/files.zip"],
        }

    def _take(self, files: dict[str, bytes]) -> None:
        self._runs += 1
        for name, content in files.items():
            if self._files.get(name) != content:
                self._written[name] = self._runs
        self._files = files

    def _listing(self) -> Listing:
        return {n: (len(c), self._written[n], 0) for n, c in self._files.items()}


def _limit_behind(result: _Command) -> str:
    """What ended the runner before it could pack anything.

    A server that runs programs at all has been checked; what kills the runner in the
    midst of one is that program, or a limit that it has met.
    """
    if result.status == "TimeLimitExceeded":
        return "wall_time"
    if result.return_code in (-9, 137) or "MemoryError" in (result.stderr or ""):
        return "memory"
    return "supervision"


def _read_all(files: Mapping[str, str]) -> dict[str, bytes]:
    return {name: pathlib.Path(path).read_bytes() for name, path in files.items()}


def _unpack(
    packed: str, config: SandboxConfig
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """(how the program ended, the files it left).

    The archive was made beside an agent's program: sizes and names are checked.

    Raises:
      SandboxError: it is not what the runner makes.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(packed, validate=True)))
        members = archive.infolist()
        whole = sum(member.file_size for member in members)
        if whole > config.disk_mb * MIB + MIB or len(members) > MAX_LISTED_FILES + 1:
            raise SandboxError(f"the files that came back are too large: {whole} bytes")
        content = {printable(m.filename): archive.read(m) for m in members}
        end = json.loads(content.pop(f"{MAPPA}/end.json"))
        known = {"status": int(end["status"]), "limit": end["limit"]}
    except (zipfile.BadZipFile, zlib.error, binascii.Error) as error:
        raise SandboxError(f"the files that came back are damaged: {error}") from error
    except (KeyError, TypeError, ValueError, EOFError, NotImplementedError) as error:
        raise SandboxError(f"the program's end is not told: {error!r}") from error
    if known["limit"] not in (None, "wall_time", "disk"):
        raise SandboxError(f"an unknown limit came back: {known['limit']!r}")
    return known, {n: c for n, c in content.items() if not hidden_name(n)}
