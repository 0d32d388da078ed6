"""Talks to a trained team in the terminal, each agent's action shown as it happens.

  python launch/chat.py --workdir=runs/quickstart
  python launch/chat.py --team=exported
  python launch/chat.py --workdir=runs/quickstart --who=solver

Every line is a task of its own for the team; an agent alone (--who) remembers what was
said. /help, /agents, /trace, /quit; Ctrl-C stops an answer, Ctrl-D leaves. Programs of
agents run in the sandbox.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from typing import Any

from absl import flags

from mappa_jax.commands import common, opening

_WHO = flags.DEFINE_string("who", "team", "The team, or the name of one agent.")


flags.adopt_module_key_flags(opening)


def main(argv: list[str]) -> None:
    common.begin(argv)
    from mappa_jax.config import ConfigError

    source = opening.read_source()
    names = ["team", *source.config.agents]
    if _WHO.value not in names:
        raise ConfigError(f"--who={_WHO.value}: not one of {', '.join(names)}")
    common.run_until_interrupted(_chat(source), stopped="stopped")


async def _chat(source: Any) -> None:
    from rich.console import Console

    from mappa_jax.serving.terminal import Terminal

    loop = asyncio.get_running_loop()
    console = Console(highlight=False)
    status = console.status("loading the team ...")
    status.start()
    try:
        async with opening.open_team(source) as served:
            status.stop()
            lines = _read_lines(loop)
            terminal = Terminal(served, console, lines.get, _WHO.value)
            # In place of what run_until_interrupted does, which is to leave.
            loop.add_signal_handler(signal.SIGINT, terminal.interrupt)
            await terminal.run()
    finally:
        status.stop()


def _read_lines(loop: asyncio.AbstractEventLoop) -> asyncio.Queue[str | None]:
    """Lines of standard input, then None. They are read by a thread that nothing waits
    for: no signal ends a read."""
    lines: asyncio.Queue[str | None] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, name="stdin", daemon=True).start()
    return lines


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
