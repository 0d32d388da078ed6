"""The sandbox's promises, each against programs that would break it."""

import asyncio
import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest

from mappa_jax.tools import make_sandbox
from mappa_jax.tools.hostile import ATTACKS, BREACH, program
from mappa_jax.tools.promises import (
    PROMISES,
    SMALL,
    attack_all,
    canaries,
    check_promises,
)
from mappa_jax.tools.unsafe import UnsafeSubprocess

ROOT = pathlib.Path(__file__).parents[2]
KEY = [f"{attack.promise}: {attack.name}" for attack in ATTACKS]


async def _attack_all(sandbox):
    try:
        with canaries() as facts:
            tried = await attack_all(sandbox, facts, SMALL.workers)
    finally:
        await sandbox.aclose()
    return {f"{t.attack.promise}: {t.attack.name}": t for t in tried}


@pytest.fixture(scope="module")
def attempts():
    return asyncio.run(_attack_all(make_sandbox(SMALL)))


def test_there_are_at_least_eighty_attacks_each_with_a_name_of_its_own():
    assert len(set(KEY)) == len(KEY) >= 80


@pytest.mark.parametrize("key", KEY)
def test_no_attack_succeeds(attempts, key):
    assert attempts[key].fault == "", attempts[key].observation


def test_an_ordinary_user_has_the_same_walls(tmp_path):
    """The other way in: user namespaces instead of root's rights."""
    if os.geteuid() != 0:
        pytest.skip("the tests above have gone this way")
    nobody = {"user": 65534, "group": 65534, "extra_groups": []}
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == 0 and folder.name.startswith("pytest"):
            folder.chmod(0o755)
    doctor = ROOT / "launch" / "doctor.py"
    try:
        subprocess.run([sys.executable, "-c", f"open({str(doctor)!r})"], **nobody)
    except PermissionError:
        pytest.skip(f"another user may not run {sys.executable}")
    done = subprocess.run(
        [sys.executable, "-B", str(doctor)],
        **nobody,
        env={"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("pass") == len(PROMISES)


# Harmless on a machine without walls. What they break through there, the walls hold.
HARMLESS = """
1: TCP to the host's loopback|1: TCP to the host's own address
1: UDP to the host's loopback|1: listening for the host
1: an abstract unix socket of the host|1: a unix socket in the host's files
1: a netlink socket|2: a secret by its absolute name|2: a secret by a relative name
2: a secret through a symbolic link|2: a secret by a program of the system
2: the home folder|2: an .env file|2: the repository|2: users of the host
2: a process of the host|3: an absolute name|3: a name with ..|3: a symbolic link
3: a tar archive's absolute member|3: an input file|14: the reference answers
14: the metric's code, by its file
"""


def test_the_attacks_succeed_where_there_are_no_walls():
    chosen = [line for line in HARMLESS.replace("\n", "|").split("|") if line]
    attacks = [ATTACKS[KEY.index(key)] for key in chosen]
    config = dataclasses.replace(SMALL, cpu_seconds=5, wall_seconds=10.0)

    async def all_of_them():
        sandbox = UnsafeSubprocess(config)
        seen = {}
        for attack in attacks:
            with canaries() as facts:
                files = {"canary.csv": os.path.join(facts["FOLDER"], "canary.csv")}
                async with sandbox.workspace(files) as workspace:
                    said = await workspace.run(program(attack, facts))
                seen[attack.name] = said.stdout.strip() or said.stderr
        return seen

    seen = asyncio.run(all_of_them())
    intruder = os.path.join(os.environ.get("TMPDIR", "/tmp"), "intruder")
    if os.path.exists(intruder):
        os.remove(intruder)
    assert {name: said for name, said in seen.items() if BREACH not in said} == {}


def test_every_promise_is_tried_and_kept():
    config = dataclasses.replace(SMALL, preload=("numpy",))
    alone = tuple(a for a in ATTACKS if a.promise == 4)

    async def examine(monkeypatch):
        sandbox = make_sandbox(config)
        try:
            monkeypatch.setattr("mappa_jax.tools.promises.ATTACKS", alone)
            return await check_promises(sandbox, config)
        finally:
            await sandbox.aclose()

    with pytest.MonkeyPatch.context() as monkeypatch:
        findings = asyncio.run(examine(monkeypatch))
    assert [f.promise for f in findings] == list(PROMISES)
    assert [f.faults for f in findings if not f.kept] == []
