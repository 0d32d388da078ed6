"""What the sandbox promises, and how to find out whether it keeps its word here.

`check_promises` attacks a sandbox with every program of hostile.py, from a host that
has been prepared so that each attack would succeed if a wall were missing: there is a
secret to read, a server to reach, a process to kill. launch/doctor.py prints what came
of it; the tests hold the same list.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mappa_jax.config import SandboxConfig
from mappa_jax.tools.base import Sandbox, SandboxError, Workspace
from mappa_jax.tools.bubblewrap import Bubblewrap
from mappa_jax.tools.hostile import ATTACKS, BREACH, HELD, Attack, program
from mappa_jax.tools.walled import WalledSandbox
from mappa_jax.types import Observation

NAMESPACES = (
    "as an ordinary user: `sysctl kernel.unprivileged_userns_clone=1` (Debian), or "
    "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`, or an AppArmor profile "
    "that grants `userns` to bwrap (Ubuntu 24.04); in a container: `docker run "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --cap-add "
    "SYS_ADMIN`"
)
LOADED = (
    "if wall_time ended a program for cpu_time, the machine is too busy to tell: "
    "try again when it is idle; else report it as a bug"
)
SECCOMP = "`pip install pyseccomp`, `apt install libseccomp2`"
SMALL = SandboxConfig(
    wall_seconds=6.0,  # above what the processor's second takes where cores are shared
    cpu_seconds=1,
    memory_mb=256,
    processes=16,
    file_mb=1,
    disk_mb=8,
    files=500,
    output_bytes=8192,
    workers=max(2, min(4, os.cpu_count() or 1)),
)
REPEATS = 20  # runs that are timed
NEIGHBOUR = "739399999"


@dataclasses.dataclass(frozen=True)
class Promise:
    """What holds for every program, and what to do where it does not."""

    number: int
    text: str
    remedy: str


PROMISES = (
    Promise(1, "no network of any kind", NAMESPACES),
    Promise(2, "no file outside the allow list can be read", NAMESPACES),
    Promise(3, "nothing can be written outside the work folder", NAMESPACES),
    Promise(4, "the environment holds nothing of ours", NAMESPACES),
    Promise(5, "limits are enforced and named", LOADED),
    Promise(6, "no process survives its program", NAMESPACES),
    Promise(7, "no privilege can be gained", SECCOMP),
    Promise(8, "no output deadlocks", "report it as a bug"),
    Promise(9, "episodes cannot see each other", NAMESPACES),
    Promise(10, "the same program has the same result", "report it as a bug"),
    Promise(11, "a failure of the sandbox is not a program's", "report it as a bug"),
    Promise(12, "without its walls the sandbox refuses to start", "report it as a bug"),
    Promise(13, "what agents leave is unpickled inside only", "report it as a bug"),
    Promise(14, "answers and metrics are out of reach", NAMESPACES),
    Promise(15, "a short program costs no imports", "see sandbox.preload"),
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Whether a promise is kept: what was tried, and what went wrong."""

    promise: Promise
    tried: str
    faults: tuple[str, ...]

    @property
    def kept(self) -> bool:
        return not self.faults


# -- a host worth attacking ---------------------------------------------------


@contextlib.contextmanager
def canaries() -> Iterator[Mapping[str, Any]]:
    """Puts up what attacks aim at, and yields the facts that they are told."""
    mark = secrets.token_hex(8)
    # Not below /tmp: a program has a /tmp of its own, in which it may write.
    places = (pathlib.Path.home(), pathlib.Path("/var/tmp"))
    place = next(
        p for p in places if os.access(p, os.W_OK) and not p.is_relative_to("/tmp")
    )
    folder = pathlib.Path(tempfile.mkdtemp(prefix=".mappa-canary-", dir=place))
    folder.chmod(0o777)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        for name in ("secret", ".env", "canary.csv", f"answers-{mark}.csv"):
            (folder / name).write_text(mark)
            (folder / name).chmod(0o666)
        tcp = stack.enter_context(_listener(socket.AF_INET, ("0.0.0.0", 0)))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        abstract = f"mappa-canary-{mark}"
        stack.enter_context(_listener(socket.AF_UNIX, "\0" + abstract))
        stack.enter_context(_listener(socket.AF_UNIX, str(folder / "socket")))
        os.chmod(folder / "socket", 0o777)
        process = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)", mark],
            env={"MAPPA_CANARY": mark},
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        yield {
            "MARK": mark,
            "HOME": str(folder.parent),
            "FOLDER": str(folder),
            "SECRET": str(folder / "secret"),
            "SECRET_NAME": folder.name,
            "SOCKET": str(folder / "socket"),
            "ABSTRACT": abstract,
            "PORT": tcp.getsockname()[1],
            "UDP_PORT": udp.getsockname()[1],
            "ADDRESS": _own_address(),
            "PID": process.pid,
            "REPOSITORY_FILE": os.path.realpath(__file__),
            "METRIC_FILE": str(
                pathlib.Path(__file__).parents[1] / "tabular/metrics.py"
            ),
            "ANSWERS": str(folder / f"answers-{mark}.csv"),
            "ANSWERS_NAME": f"answers-{mark}.csv",
            "NEIGHBOUR": NEIGHBOUR,
        }


def _listener(family: int, address: Any) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen()
    return listener


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return "127.0.0.1"  # a host without a network
        return probe.getsockname()[0]


# -- attacks ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Attempt:
    """An attack and what came of it; `fault` says how it succeeded, or is ""."""

    attack: Attack
    observation: Observation
    fault: str


async def attempt(
    sandbox: Sandbox, attack: Attack, facts: Mapping[str, Any], slots: asyncio.Semaphore
) -> Attempt:
    """Runs an attack in an episode of its own.

    Args:
      sandbox: to be attacked.
      attack: the program.
      facts: from `canaries`, which are up.
      slots: attempts that may be under way together.
    """
    files = {"canary.csv": os.path.join(facts["FOLDER"], "canary.csv")}
    async with slots:
        try:
            async with sandbox.workspace(files) as workspace:
                seen = await workspace.run(program(attack, facts))
        except SandboxError as error:
            said = f"its failure passed for the sandbox's: {error}"
            return Attempt(attack, Observation(), said)
    return Attempt(attack, seen, _fault(attack, seen, facts))


def _fault(attack: Attack, seen: Observation, facts: Mapping[str, Any]) -> str:
    folder = pathlib.Path(facts["FOLDER"])
    mark = facts["MARK"]
    if BREACH in seen.stdout:
        return f"it broke through: {seen.stdout[-200:]}"
    if any(p.read_text() != mark for p in folder.glob("*.csv")):
        return "it has changed a file of the host"
    if (folder / "intruder").exists() or (folder / "x").exists():
        return "it has left a file on the host"
    if attack.survivor and _running(attack.survivor):
        return "a process has survived"
    if attack.limits:
        return "" if seen.limit in attack.limits else f"ended by {seen.limit}: {seen}"
    if seen.limit == "output" and attack.promise == 8:
        return ""
    # An attack that never came to try proves nothing.
    killed = attack.survivor and seen.exit_status == -9
    tried = HELD in seen.stdout or killed or seen.limit == "wall_time"
    return "" if tried else f"it did not run as meant: {seen}"


def _running(mark: str) -> bool:
    """Whether a process of this host, one that has ended but for its burial left out,
    has `mark` among its arguments."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended while we looked
            if mark.encode() in path.read_bytes().split(b"\0"):
                return True
    return False


async def _with_neighbour(
    sandbox: Sandbox, attacks: Sequence[Attack], facts: Mapping[str, Any]
) -> list[Attempt]:
    """Runs attacks while another episode holds what they look for."""
    code = f"""
import ctypes, os, socket, subprocess, time
for folder in ("/work", "/tmp", "/dev/shm"):
    open(folder + "/neighbour", "w").write("x")
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0{NEIGHBOUR}")
listener.listen()
libc = ctypes.CDLL(None)
libc.shmget(7394, 4096, 0o1666)
libc.msgget(7394, 0o1666)
child = subprocess.Popen(["sleep", "{NEIGHBOUR}"])
open("ready", "w").close()
time.sleep(1.5)
child.kill()
"""
    slots = asyncio.Semaphore(2)
    async with sandbox.workspace() as workspace:
        other = asyncio.create_task(workspace.run(code))
        await asyncio.sleep(0.5)
        tried = [await attempt(sandbox, attack, facts, slots) for attack in attacks]
        seen = await other
    if not seen.ok:
        raise SandboxError(f"the neighbour did not run as meant: {seen}")
    return tried


async def attack_all(
    sandbox: Sandbox, facts: Mapping[str, Any], workers: int
) -> list[Attempt]:
    """Every attack of hostile.py, in its order."""
    alone = [a for a in ATTACKS if a.promise != 9]
    slots = asyncio.Semaphore(workers)
    async with asyncio.TaskGroup() as group:
        tries = [group.create_task(attempt(sandbox, a, facts, slots)) for a in alone]
    beside = [a for a in ATTACKS if a.promise == 9]
    return [
        *(tried.result() for tried in tries),
        *await _with_neighbour(sandbox, beside, facts),
    ]


# -- the other promises -------------------------------------------------------

_SAME = """
import os, random, socket, sys
print(os.getpid(), os.getppid(), os.getcwd(), socket.gethostname(), sorted(os.environ))
print(random.random(), hash("text"), {"a", "b", "c", "d"}, os.cpu_count())
try:
    import numpy
    print(numpy.random.rand(3))
except ImportError:
    pass
"""
_PICKLE = """
import pickle
class Trap:
    def __reduce__(self):
        import os
        return os.system, ("touch {folder}/unpickled; touch /work/unpickled",)
pickle.dump(Trap(), open("model.pkl", "wb"))
"""


async def _same_result(sandbox: Sandbox) -> list[str]:
    seen = []
    for _ in range(3):
        async with sandbox.workspace() as workspace:
            seen.append((await workspace.run(_SAME)).stdout)
    return [] if len(set(seen)) == 1 and seen[0] else [f"it printed {seen}"]


async def _typed_failure(sandbox: WalledSandbox) -> list[str]:
    async with sandbox.workspace() as workspace:
        run = asyncio.create_task(workspace.run("import time\ntime.sleep(60)"))
        await asyncio.sleep(0.3)
        sandbox.kill()
        try:
            seen = await run
        except SandboxError:
            pass
        else:
            return [f"a dead interpreter gave an observation: {seen}"]
    async with sandbox.workspace() as workspace:
        seen = await workspace.run("print(1)")
    return [] if seen.stdout == "1\n" else ["it does not recover"]


async def _refusal(config: SandboxConfig) -> list[str]:
    nothing = Bubblewrap("/nonexistent/bwrap", config.processes, os.geteuid() == 0)
    sandbox = WalledSandbox(config, nothing)
    try:
        await sandbox.check()
    except SandboxError:
        return []
    finally:
        await sandbox.aclose()
    return ["it started without bwrap"]


async def _unpickling(sandbox: Sandbox, facts: Mapping[str, Any]) -> list[str]:
    async with sandbox.workspace() as workspace:
        await workspace.run(_PICKLE.format(folder=facts["FOLDER"]))
        left = await workspace.read("model.pkl", 10_000)
        if left is None:
            return ["the pickle cannot be read"]
        if (pathlib.Path(facts["FOLDER"]) / "unpickled").exists():
            return ["reading it out here has run it"]
        load = "import pickle\npickle.load(open('model.pkl', 'rb'))"
        seen = await workspace.run(load)
    if "unpickled" not in seen.files:
        return [f"the trap did not spring inside: {seen}"]
    if (pathlib.Path(facts["FOLDER"]) / "unpickled").exists():
        return ["unpickling inside has reached the host"]
    return []


async def time_runs(workspace: Workspace, code: str, repeats: int) -> list[float]:
    """Seconds of each of so many runs of a program, one after another."""
    out = []
    for _ in range(repeats):
        start = time.perf_counter()
        seen = await workspace.run(code)
        out.append(time.perf_counter() - start)
        if not seen.ok:
            raise SandboxError(f"a program that must run did not: {seen}")
    return out


async def _throughput(sandbox: Sandbox, config: SandboxConfig) -> tuple[str, list[str]]:
    imports = "".join(f"import {name}\n" for name in config.preload)
    cold = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {imports!r}], check=True)"
    )
    async with sandbox.workspace() as workspace:
        warm = statistics.median(await time_runs(workspace, imports, REPEATS))
        whole = statistics.median(await time_runs(workspace, cold, 3))
    said = (
        f"{1000 * warm:.0f} ms for a program that imports {', '.join(config.preload)}; "
        f"{1000 * whole:.0f} ms in an interpreter of its own"
    )
    return said, [] if warm < whole else ["it is no faster"]


async def check_promises(
    sandbox: WalledSandbox, config: SandboxConfig
) -> list[Finding]:
    """Tries every promise on this host.

    Args:
      sandbox: of `config`, checked.
      config: small limits, so that the attacks on them end soon.
    """
    with canaries() as facts:
        tried = await attack_all(sandbox, facts, config.workers)
        other: dict[int, tuple[str, list[str]]] = {
            10: ("3 runs of one program", await _same_result(sandbox)),
            12: ("a sandbox without bwrap", await _refusal(config)),
            13: ("a pickle that runs code", await _unpickling(sandbox, facts)),
            15: await _throughput(sandbox, config),
            11: ("an interpreter that is killed", await _typed_failure(sandbox)),
        }
    findings = []
    for promise in PROMISES:
        said, faults = other.get(promise.number, ("", []))
        if mine := [t for t in tried if t.attack.promise == promise.number]:
            said = f"{len(mine)} attacks" + (f", {said}" if said else "")
            faults = [
                *faults,
                *(f"{t.attack.name}: {t.fault}" for t in mine if t.fault),
            ]
        findings.append(Finding(promise, said, tuple(faults)))
    return findings
