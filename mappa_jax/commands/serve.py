"""Serves a trained team behind an OpenAI-compatible HTTP endpoint.

  python launch/serve.py --workdir=runs/quickstart
  python launch/serve.py --team=exported --port=8001
  MAPPA_SERVE_KEY=... python launch/serve.py --workdir=runs/quickstart --host=0.0.0.0

Models are `team`, the whole workflow with its tools in the sandbox, and each agent
alone. Routes: /v1/models, /v1/chat/completions (also streamed), /health; what is
honoured, docs/serving.md says. It listens on this machine only, unless --host says
otherwise and MAPPA_SERVE_KEY holds a key that clients must show. Ctrl-C or SIGTERM:
what is being answered is finished, within --grace_seconds.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from absl import flags

from mappa_jax.commands import common, opening

KEY = "MAPPA_SERVE_KEY"

_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = flags.DEFINE_integer(
    *("port", 8000, "0: any that is free."), lower_bound=0, upper_bound=65535
)
_RUNNING = flags.DEFINE_integer(
    "max_running", 0, "Answers at a time; 0: twice sampler.slots.", lower_bound=0
)
_WAITING = flags.DEFINE_integer(
    "max_waiting", 256, "Answers that may wait besides.", lower_bound=0
)
_SECONDS = flags.DEFINE_float(
    "time_limit", 300.0, "Seconds for a request, waiting included.", lower_bound=0.1
)
_BYTES = flags.DEFINE_integer(
    "max_body_bytes", 1 << 20, "Of a request.", lower_bound=1024
)
_CHOICES = flags.DEFINE_integer(
    "max_choices", 16, "Answers to one request (n).", lower_bound=1
)
_GRACE = flags.DEFINE_float(
    "grace_seconds", 30.0, "For finishing what is being answered.", lower_bound=0.0
)


flags.adopt_module_key_flags(opening)


def main(argv: list[str]) -> None:
    common.begin(argv)
    key = _read_key()
    source = opening.read_source()
    common.run_until_interrupted(_serve(source, key), stopped="stopped")


def _read_key() -> str | None:
    """The key of clients, from the environment.

    Raises:
      ConfigError: others than this machine could ask without one, or no client could
        send it.
    """
    from mappa_jax.config import ConfigError
    from mappa_jax.loopback import is_loopback

    key = os.environ.get(KEY) or None
    if key is None and not is_loopback(_HOST.value):
        raise ConfigError(
            f"--host={_HOST.value}: others than this machine could ask; set {KEY} to a "
            "key that clients must show"
        )
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{KEY}: only printable ASCII without spaces can be sent")
    return key


def _limits(config: Any) -> Any:
    from mappa_jax.serving.limits import Limits

    return Limits(
        body_bytes=_BYTES.value,
        read_seconds=min(30.0, _SECONDS.value),
        seconds=_SECONDS.value,
        running=_RUNNING.value or 2 * config.sampler.slots,
        waiting=_WAITING.value,
        choices=_CHOICES.value,
    )


async def _serve(source: opening.Source, key: str | None) -> None:
    """Listens at once, so that /health can tell that it starts, and answers once the
    team is there; runs until it is cancelled."""
    from aiohttp import web

    from mappa_jax.serving.app import Service, make_app

    service = Service(_limits(source.config), key)
    app = make_app(service)
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0
    )
    await runner.setup()
    try:
        url = await _listen(runner)
        print(f"starting on {url}", file=sys.stderr, flush=True)
        async with opening.open_team(source) as served:
            service.served = served
            names = ", ".join(served.names)
            print(f"{url}/v1 serves {names} (step {served.step})", flush=True)
            try:
                await asyncio.Event().wait()
            finally:
                await service.finish(_GRACE.value)
                await runner.cleanup()
    finally:
        await runner.cleanup()


async def _listen(runner: Any) -> str:
    from aiohttp import web

    from mappa_jax.config import ConfigError

    try:
        await web.TCPSite(runner, _HOST.value, _PORT.value).start()
    except OSError as e:
        raise ConfigError(
            f"--host={_HOST.value} --port={_PORT.value}: cannot listen there "
            f"({e.strerror or e})"
        ) from e
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
