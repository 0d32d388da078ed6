"""Tries on this host every promise that the sandbox makes.

  python launch/doctor.py
  python launch/doctor.py --preload=numpy,pandas,sklearn.ensemble

More than a hundred hostile programs are run behind the walls, against a secret, a
server and a process that are put up for them. Prints pass or fail for each promise,
with the remedy, and exits with 1 if one is broken.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys

from absl import flags

from mappa_jax.commands import common

_PRELOAD = flags.DEFINE_list(
    "preload", ["numpy"], "Packages that the warm interpreter imports."
)


def main(argv: list[str]) -> None:
    common.begin(argv)
    findings = asyncio.run(_examine(tuple(_PRELOAD.value)))
    broken = [finding for finding in findings if not finding.kept]
    _print(findings)
    sys.exit(1 if broken else 0)


async def _examine(preload: tuple[str, ...]):
    from mappa_jax.tools import make_sandbox
    from mappa_jax.tools.promises import SMALL, check_promises

    config = dataclasses.replace(SMALL, preload=preload)
    sandbox = make_sandbox(config)
    try:
        await sandbox.check()
        return await check_promises(sandbox, config)
    finally:
        await sandbox.aclose()


def _print(findings) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="the sandbox on this host")
    for column in ("", "promise", "tried", ""):
        table.add_column(column)
    for f in findings:
        kept = "[green]pass[/]" if f.kept else "[red]FAIL[/]"
        table.add_row(str(f.promise.number), f.promise.text, f.tried, kept)
    console = Console()
    console.print(table)
    for f in findings:
        for fault in f.faults:
            console.print(f"{f.promise.number}: {fault}", markup=False)
        if not f.kept:
            console.print(f"   remedy: {f.promise.remedy}", markup=False)


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
