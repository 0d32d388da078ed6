"""The report of a run that goes on, served to this machine only.

The page asks every few seconds for the version of what lies in the folder, and reads
the blocks anew when it has changed; what the reader has open stays open.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

from aiohttp import web

from mappa_jax.config import ConfigError
from mappa_jax.loopback import asks_loopback
from mappa_jax.records import RecordError
from mappa_jax.report.build import Builder, Report, stamps
from mappa_jax.report.page import parts

HOST = "127.0.0.1"


class Live:
    """A folder's report, built again when a file has changed.

    Args:
      builder: of the folder's reports.
      report: the first.
    """

    def __init__(self, builder: Builder, report: Report):
        self._builder = builder
        self._report = report
        self._page = "".join(parts(builder.folder.resolve().name, None))
        self._blocks = dict(report.blocks())
        self._building = asyncio.Lock()

    async def page(self, request: web.Request) -> web.Response:
        return web.Response(text=self._page, content_type="text/html")

    async def version(self, request: web.Request) -> web.Response:
        """{"version", "error"}: the error, where a file is damaged just now."""
        async with self._building:
            error = await self._refresh()
        name = hashlib.sha256(repr(self._report.version).encode()).hexdigest()[:16]
        return web.json_response({"version": name, "error": error})

    async def _refresh(self) -> str:
        now = await asyncio.to_thread(stamps, self._builder.folder)
        if now == self._report.version:
            return ""
        try:
            self._report = await asyncio.to_thread(self._builder.build)
        except (ConfigError, RecordError) as e:
            return str(e)
        self._blocks = dict(self._report.blocks())
        return ""

    async def block(self, request: web.Request) -> web.Response:
        """A block as it would stand in the file."""
        found = self._blocks.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound(text="no such block")
        return web.Response(body=found, content_type="application/octet-stream")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def own_names_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses a request that came under another name: a page elsewhere whose name has
    been pointed at this machine."""
    if not asks_loopback(request.host):
        raise web.HTTPForbidden(text="served to this machine only")
    response = await handler(request)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def application(live: Live) -> web.Application:
    app = web.Application(middlewares=[own_names_only])
    app.router.add_get("/", live.page)
    app.router.add_get("/version", live.version)
    app.router.add_get("/block/{name:.+}", live.block)
    return app


async def serve(builder: Builder, port: int, started: Callable[[str], None]) -> None:
    """Serves until it is cancelled.

    Args:
      builder: of the folder's reports.
      port: to listen on; 0 takes a free one.
      started: told the address.

    Raises:
      ConfigError: there is nothing to show, or the port is taken.
      RecordError: a file is damaged.
    """
    report = await asyncio.to_thread(builder.build)
    runner = web.AppRunner(application(Live(builder, report)))
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as e:
            raise ConfigError(
                f"--serve={port}: {e.strerror}; choose another port"
            ) from e
        started(f"http://{HOST}:{runner.addresses[0][1]}/")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
