"""A server that speaks SandboxFusion's POST /run_code: runs Python in a fresh folder,
writes the files that came, gives back those that are asked for. It can be told to
fail."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from aiohttp import web


class FusionServer:
    """Attributes:
    calls: bodies that came, in order.
    busy, most_busy: runs under way, now and at most.
    fault: (number of the call) -> a response to give instead, or None.
    """

    def __init__(self, fault: Callable[[int], web.Response | None] = lambda n: None):
        self.calls: list[dict[str, Any]] = []
        self.busy = self.most_busy = 0
        self.fault = fault

    async def run_code(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.calls.append(body)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            response = self.fault(len(self.calls))
            return response or web.json_response(await _run(body))
        finally:
            self.busy -= 1

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Serves; yields the base URL."""
        app = web.Application(client_max_size=2**28)
        app.router.add_post("/run_code", self.run_code)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            await runner.cleanup()


async def _run(body: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in body["files"].items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(content))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", body["code"]),
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"]},
        )
        try:
            said = await asyncio.wait_for(process.communicate(), body["run_timeout"])
        except TimeoutError:
            process.kill()
            await process.wait()
            result = {"status": "TimeLimitExceeded", "stdout": "", "stderr": ""}
        else:
            stdout, stderr = (text.decode(errors="replace") for text in said)
            result = {
                "status": "Finished",
                "return_code": process.returncode,
                "stdout": stdout,
                "stderr": stderr,
                "execution_time": 0.1,
            }
        found = {}
        for name in body["fetch_files"]:
            if Path(folder, name).is_file():
                content = Path(folder, name).read_bytes()
                found[name] = base64.b64encode(content).decode()
    done = result.get("return_code") == 0
    return {
        "status": "Success" if done else "Failed",
        "message": "",
        "compile_result": None,
        "run_result": result,
        "executor_pod_name": None,
        "files": found,
    }
