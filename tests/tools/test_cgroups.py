"""Control groups, where this host lets us make them."""

import asyncio
import subprocess
import sys

import pytest

from mappa_jax.config import SandboxConfig
from mappa_jax.tools import cgroups, make_sandbox

PLACES = cgroups.find_places()
needs = {
    kind: pytest.mark.skipif(
        kind not in PLACES, reason=f"no control group for {kind} can be made here"
    )
    for kind in ("memory", "pids")
}


def run_in_group(code, **limits):
    """(the exit status of a program in a group, whether the kernel killed in it)."""

    async def main():
        places = {kind: PLACES[kind] for kind in limits}
        async with cgroups.group(places, limits) as group:
            joined = f"import os\nfor fd in {group.fds}: os.write(fd, b'0')\n"
            done = subprocess.run(
                [sys.executable, "-c", joined + code], pass_fds=group.fds
            )
            return done.returncode, group.killed_for_memory(), group.folders

    status, killed, folders = asyncio.run(main())
    assert not any(place.folder.exists() for place in folders.values())
    return status, killed


@needs["memory"]
def test_memory_is_counted_over_all_processes():
    greedy = "x = bytearray(b'x') * (40 * 2**20)\nimport time; time.sleep({})"
    one = greedy.format(0)
    several = "import os\nfor _ in range(4): os.fork()\n" + greedy.format(0.5)
    assert run_in_group(one, memory=96 * 2**20) == (0, False)
    assert run_in_group(several, memory=96 * 2**20)[1]


@needs["pids"]
def test_processes_are_counted():
    bomb = """
import os, time
made = 0
try:
    while made < 50:
        if not os.fork(): time.sleep(0.5); os._exit(0)
        made += 1
except OSError:
    raise SystemExit(made)
"""
    assert run_in_group(bomb, pids=8) == (7, False)


@needs["pids"]
def test_programs_of_the_sandbox_are_in_a_group_of_their_own():
    async def main():
        sandbox = make_sandbox(SandboxConfig(preload=()))
        try:
            async with sandbox.workspace() as workspace:
                return await workspace.run("print(open('/proc/self/cgroup').read())")
        finally:
            await sandbox.aclose()

    assert "mappa-" in asyncio.run(main()).stdout


def test_where_none_can_be_made_there_are_no_places(monkeypatch):
    monkeypatch.setattr(cgroups, "_mounts", lambda: {})
    assert cgroups.find_places() == {}


def test_a_group_of_nothing_limits_nothing():
    async def main():
        async with cgroups.group({}, {}) as group:
            return group.fds, group.killed_for_memory()

    assert asyncio.run(main()) == ((), False)
