"""A warm interpreter behind walls, from which every program is forked.

Three kinds of process, each forked from the one before:

- the server, started by bubblewrap with nothing in reach but a read-only system. It
  imports the numerical packages once and then waits for episodes.
- one holder per episode, in a mount namespace of its own: /work is a file system in
  memory, as large as the episode's disk limit, and lives as long as the holder;
  /input shows the episode's input files, read-only.
- per program a supervisor, process 1 of new namespaces (processes, network, messages,
  mounts), which enforces what the kernel does not count by itself, and the program.

The three speak only with the process that started them. The program holds no
descriptor, no capability and no memory of any other episode.

Messages are JSON with descriptors beside them (SCM_RIGHTS), one a packet:

    to the server   {"episode": {...}} + [the holder's socket]
    to a holder     {"run": {...}} + [source, stdout, stderr, reply, groups to join...]
                    {"read": {...}} + [reply]
                    {"kill": {}} while a program runs
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import stat
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(__file__))
import files  # noqa: E402
import kernel  # noqa: E402
import program  # noqa: E402

del sys.path[0]

MESSAGE_BYTES = 65536
POLL_SECONDS = 0.05  # between two looks at what a program uses, at least ...
POLL_COST = 20  # ... and so many times as long as a look takes, ...
MOST_SECONDS = 0.5  # ... but at most
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
INSIDE_UID = 1000
WRITABLE = ("/work", "/tmp", "/dev/shm", "/dev/null")


def receive(control):
    """(message, descriptors), or (None, []) where the other side has gone."""
    data, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 8)
    return (json.loads(data), list(fds)) if data else (None, [])


def send_all(fd, value):
    """Writes `value` as JSON and closes; whoever asked may have gone meanwhile."""
    with contextlib.suppress(BrokenPipeError), open(fd, "wb") as file:
        file.write(json.dumps(value).encode())


def serve(control, settings):
    """Waits for episodes. Returns in a program's process only, with what to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # holders are nobody's to bury
    while True:
        data, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 8)
        if not data:
            os._exit(0)
        try:
            child = os.fork()
        except OSError as error:  # too many processes: this episode cannot be had
            traceback.print_exception(error)
            child = -1
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            holder = socket.socket(fileno=fds[0])
            return hold(holder, settings, json.loads(data)["episode"])
        for fd in fds:
            os.close(fd)


# -- the holder ---------------------------------------------------------------


def hold(control, settings, episode):
    """Builds an episode's walls and runs its programs, one after another."""
    try:
        _build_walls(settings, episode)
    except OSError as error:
        control.send(json.dumps({"fault": str(error)}).encode())
        os._exit(1)
    control.send(b"{}")
    while True:
        message, fds = receive(control)
        if message is None:
            os._exit(0)
        ((what, details),) = message.items()
        if what == "run":
            prepared = _run(control, settings, episode, details, fds)
            if prepared is not None:
                return prepared
        elif what == "read":
            _read(fds[0], details["name"], details["most"])
        else:  # a kill that comes after the end
            for fd in fds:
                os.close(fd)


def _build_walls(settings, episode):
    uid = episode["uid"]
    if uid < 0:  # an ordinary user: a user namespace gives the right to mount
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{INSIDE_UID} {INSIDE_UID} 1"),
            ("gid_map", f"{INSIDE_UID} {INSIDE_UID} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        uid = INSIDE_UID
    else:
        kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    calm = kernel.MS_NOSUID | kernel.MS_NODEV
    if episode["input"]:
        kernel.mount(f"/inputs/{episode['input']}", "/input", flags=kernel.MS_BIND)
        again = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | calm
        kernel.mount(None, "/input", flags=again)
    cover = "size=4k,nr_inodes=1,mode=0"
    kernel.mount("none", "/inputs", "tmpfs", calm | kernel.MS_RDONLY, cover)
    own = f"mode=0700,uid={uid},gid={uid}"
    size = f"size={settings['disk_bytes']},nr_inodes={settings['files']}"
    kernel.mount("none", "/work", "tmpfs", calm, f"{size},{own}")
    for name in episode["files"]:
        os.symlink(f"/input/{name}", f"/work/{name}")


def _read(reply, name, most):
    """Tells in one byte what came of it, and gives the bytes of a regular file."""
    with contextlib.suppress(BrokenPipeError), open(reply, "wb") as out:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(os.path.join("/work", name), flags)
        except OSError:
            out.write(b"-")
            return
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode):
            os.close(fd)
            out.write(b"-")
            return
        with open(fd, "rb") as file:
            out.write(b">" if seen.st_size > most else b"+" + file.read(most))


def _run(control, settings, episode, details, fds):
    """One program; its end goes to the fourth of `fds`."""
    source_fd, stdout, stderr, reply, *groups = fds
    before = files.list_files("/work", details["most"], episode["first"])
    result, result_end = os.pipe()
    lifeline, lifeline_end = os.pipe()
    child = os.fork()
    if child == 0:
        for fd in (result, lifeline_end, reply):
            os.close(fd)
        control.close()
        try:
            return _supervise_in_namespaces(
                settings,
                episode,
                details,
                (*groups, source_fd, stdout, stderr),
                result_end,
                lifeline,
            )
        except OSError as error:
            send_all(result_end, {"fault": str(error)})
            os._exit(1)
    for fd in (*groups, source_fd, stdout, stderr, result_end, lifeline):
        os.close(fd)
    os.waitpid(child, 0)
    ended = _await_end(control, result, lifeline_end)
    after = files.list_files("/work", details["most"], episode["first"])
    send_all(reply, {**ended, "before": before, "files": after})
    return None


def _await_end(control, result, lifeline_end):
    """What the supervisor says of the end; a message on `control` hastens it."""
    poll = select.poll()
    poll.register(result, select.POLLIN)
    poll.register(control, select.POLLIN)
    told = b""
    while True:
        ready = dict(poll.poll())
        if control.fileno() in ready:
            message, fds = receive(control)
            if message is None:
                os._exit(0)  # and the supervisor sees its lifeline cut
            for fd in fds:  # a host that does not wait for its turn gets no answer
                os.close(fd)
            if "kill" in message and lifeline_end >= 0:
                os.close(lifeline_end)
                lifeline_end = -1
        if result in ready:
            chunk = os.read(result, MESSAGE_BYTES)
            if not chunk:
                break
            told += chunk
    os.close(result)
    if lifeline_end >= 0:
        os.close(lifeline_end)
    return json.loads(told) if told else {"fault": "the supervisor died"}


# -- the supervisor -----------------------------------------------------------


def _supervise_in_namespaces(settings, episode, details, fds, result, lifeline):
    kernel.unshare(kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.APART)
    if os.fork():
        os._exit(0)
    return _supervise(settings, episode, details, fds, result, lifeline)


def _supervise(settings, episode, details, fds, result, lifeline):
    """Process 1 of the program's namespaces. Returns in the program's process."""
    # Waited for below, and not to be lost between two looks.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    try:
        kernel.set_host_name("sandbox")
        calm = kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("proc", "/proc", "proc", calm | kernel.MS_NOEXEC)
        for place in ("/tmp", "/dev/shm"):
            size = f"mode=1777,size={settings['scratch_bytes']},nr_inodes=10000"
            kernel.mount("none", place, "tmpfs", calm, size)
        hint, hint_end = os.pipe()
        setup, setup_end = os.pipe()
        child = os.fork()
        if child == 0:
            return Prepared(settings, episode, (*fds, hint_end, setup_end))
        for fd in (*fds, hint_end, setup_end):
            os.close(fd)
        with open(setup, "rb") as file:
            if (fault := file.read()) != b"done":
                raise OSError(fault.decode() or "the program's process died early")
        started = time.monotonic()
    except OSError as error:
        send_all(result, {"fault": str(error)})
        os._exit(0)
    try:
        limit, status = _watch(child, lifeline, started, settings, details)
        met = _told(hint)
    except Exception as error:  # see _watch
        traceback.print_exception(error)
        limit, status, met = "supervision", -signal.SIGKILL, None
    end = {"status": status, "limit": limit, "met": met}
    end["seconds"] = time.monotonic() - started
    send_all(result, end)
    os._exit(0)  # and the kernel kills whatever is left in here


def _told(hint):
    """The limit that the program has met as an exception, or None."""
    with open(hint, "rb") as file:
        hints = file.read(4096).decode(errors="replace").split()
    known = ("memory", "processes", "file_size", "disk")
    return next((name for name in hints if name in known), None)


def _watch(child, lifeline, started, settings, details):
    """(the limit that ended the program or None, its exit status).

    Returns when no process but this one is left. Whatever goes wrong in looking at the
    program is the program's doing, and ends it: it must not pass for a fault of ours.
    """
    poll = select.poll()
    poll.register(lifeline, 0)
    limit, status, look = None, None, Look(settings)
    while True:
        ended, alone = _reap(child)
        status = status if ended is None else ended
        if alone:
            return limit, status
        began, pause = time.monotonic(), POLL_SECONDS
        if limit is None and status is None:
            left = details["wall_seconds"] - (began - started)
            if poll.poll(0):
                limit = "killed"
            elif left <= 0:
                limit = "wall_time"
            else:
                limit = look.passed()
                cost = POLL_COST * (time.monotonic() - began)
                pause = min(max(POLL_SECONDS, cost), MOST_SECONDS, max(left, 0.001))
        if limit is not None or status is not None:
            with contextlib.suppress(ProcessLookupError):  # all are gone already
                os.kill(-1, signal.SIGKILL)
        signal.sigtimedwait([signal.SIGCHLD], pause)


def _reap(child):
    """(the child's exit status if it has ended, whether none is left to bury)."""
    status = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status, True
        if pid == 0:
            return status, False
        if pid == child:
            status = os.waitstatus_to_exitcode(ended)


class Look:
    """What all processes of a program use together, from one look to the next."""

    def __init__(self, settings):
        self._settings = settings
        self._ticks = {}  # of every process, its own when it was seen last

    def passed(self):
        """The name of a limit that is passed, or None."""
        memory, count, inherited = 0, 0, 0
        for name in os.listdir("/proc"):
            if not name.isdigit() or name == "1":
                continue
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                memory += _own_memory(name)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
            self._ticks[name] = int(fields[11]) + int(fields[12])
            inherited += self._ticks[name] + int(fields[13]) + int(fields[14])
            count += int(fields[17])  # threads
        if memory > self._settings["memory_bytes"]:
            return "memory"
        # Two counts, as a process may wait for its children or not, and each misses
        # some: of all that were ever seen; of those alive with what they waited for,
        # and of those that were buried here.
        buried = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = max(
            sum(self._ticks.values()) / TICKS,
            inherited / TICKS + buried.ru_utime + buried.ru_stime,
        )
        if spent > self._settings["cpu_seconds"] + 0.5:  # the kernel's limit goes first
            return "cpu_time"
        return "processes" if count > self._settings["processes"] else None


def _own_memory(pid):
    """Bytes that a process holds; shared pages count in part to each that shares."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            lines = file.read().splitlines()
    except PermissionError:  # it has made itself opaque: all that is not of a file
        with open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared = map(int, file.read().split()[:3])
        return (resident - shared) * PAGE
    held = (line.split() for line in lines)
    return 1024 * sum(int(f[1]) for f in held if f[0] in (b"Pss_Anon:", b"Pss_Shmem:"))


# -- the program --------------------------------------------------------------


class Prepared:
    """A program about to run, handed up to the top of the interpreter.

    Args:
      settings, episode: as the host has sent them.
      fds: of control groups to join, then of source, stdout, stderr, where hints go,
        and where the setup's end is told. The last is closed before the program
        starts, so that it cannot pass its own failure off as ours.
    """

    HINT, SETUP = 3, 4

    def __init__(self, settings, episode, fds):
        self.paths = settings["paths"]
        *groups, source_fd, stdout, stderr, hint, setup = fds
        with open(source_fd, "rb") as file:
            self.source = file.read().decode("utf-8")
        try:
            for fd in groups:
                os.write(fd, b"0")
        except OSError as error:
            os.write(setup, f"joining a control group: {error}".encode())
            os._exit(1)
        null = os.open("/dev/null", os.O_RDWR)
        _place([null, stdout, stderr, hint, setup])
        try:
            os.setsid()
            os.chdir("/work")
            os.umask(0o022)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            _shut_in(settings, episode["uid"])
            os.write(self.SETUP, b"done")
        except OSError as error:
            os.write(self.SETUP, str(error).encode())
            os._exit(1)
        os.close(self.SETUP)


def _place(fds):
    """Makes `fds` the descriptors 0, 1, 2, ... and closes all others."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in fds]
    for place, fd in enumerate(high):
        os.dup2(fd, place)
    os.closerange(len(fds), os.sysconf("SC_OPEN_MAX"))


def _shut_in(settings, uid):
    """Gives up every right that the program must not have, the last ones last."""
    kernel.drop_bounding_set()
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    program.set_limits(
        settings["cpu_seconds"],
        settings["memory_bytes"],
        settings["process_limit"],
        settings["file_bytes"],
    )
    kernel.drop_capabilities()
    if settings["landlock"]:
        kernel.landlock(WRITABLE, settings["landlock"])
    kernel.filter_system_calls(bytes.fromhex(settings["seccomp"]))


def main():
    control = socket.socket(fileno=int(sys.argv[1]))
    settings, _ = receive(control)
    started = time.monotonic()
    sys.path += settings["paths"]
    for name in settings["preload"]:
        importlib.import_module(name)
    if "numpy" in sys.modules:
        importlib.import_module("numpy.random")
    threads = len(os.listdir("/proc/self/task"))
    settings["landlock"] = kernel.landlock_version()
    gc.collect()
    gc.freeze()  # a collection would copy every page that is shared
    ready = {
        "seconds": time.monotonic() - started,
        "threads": threads,
        "landlock": settings["landlock"],
    }
    control.send(json.dumps(ready).encode())
    prepared = serve(control, settings)
    del sys.path[len(sys.path) - len(settings["paths"]) :]
    return prepared


prepared = main()
for name in ("files", "kernel", "program"):
    del sys.modules[name]
program.execute(prepared.source, Prepared.HINT, prepared.paths, {__file__})
