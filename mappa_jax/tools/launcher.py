"""The first thing that runs behind the walls: sets limits, then becomes the program.

A script and not a module: the sandbox starts it as

    python launcher.py CODE_FD STATUS_FD UID CPU_S MEMORY_B PROCESSES FILE_B [PATH...]

where -1 leaves a limit (or the user) as it is and each PATH is put on sys.path. The
program is read from CODE_FD. STATUS_FD gets "ready" once the limits hold, so that the
outside can tell a sandbox that did not start from a program that failed, and
"limit:KIND" when the program dies of a limit that Python sees as an exception. The
program could write there too: that would only mislabel its own end.

The program runs in this very interpreter, as a second one would double the start-up
time; what it must not see (these arguments, this file's frames) is taken away first.
"""

import errno
import os
import resource
import site
import sys
import types

PROGRAM = "program.py"  # the name in tracebacks


def _drop_user(uid):
    # The kernel exempts the host's root from RLIMIT_NPROC, hence another user.
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _set_limits(cpu_seconds, memory_bytes, processes, file_bytes):
    wanted = {
        resource.RLIMIT_AS: (memory_bytes, memory_bytes),
        resource.RLIMIT_NPROC: (processes, processes),
        resource.RLIMIT_FSIZE: (file_bytes, file_bytes),
        # SIGXCPU at the soft limit tells the cause; SIGKILL follows if it is ignored.
        resource.RLIMIT_CPU: (cpu_seconds, cpu_seconds + 1),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, (soft, hard) in wanted.items():
        if soft < 0:
            continue
        inherited = resource.getrlimit(kind)[1]
        if inherited != resource.RLIM_INFINITY:
            soft, hard = min(soft, inherited), min(hard, inherited)
        resource.setrlimit(kind, (soft, hard))


def _limit_behind(error, trace):
    """The limit that made Python raise `error`, or None."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "processes"
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENOMEM:
        return "memory"
    if error.errno in (errno.EFBIG, errno.ENOSPC):
        return "file_size"
    if error.errno == errno.EAGAIN:
        # Non-blocking I/O raises this too: look at what the last frame called.
        while trace.tb_next is not None:
            trace = trace.tb_next
        names = trace.tb_frame.f_code.co_names
        if any("fork" in name or "spawn" in name for name in names):
            return "processes"
    return None


def _make_hook(status_fd):
    def hook(kind, error, trace):
        limit = _limit_behind(error, trace)
        if limit is not None:
            os.write(status_fd, f"limit:{limit}\n".encode())
        import traceback  # late: it would cost every start-up some milliseconds

        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        traceback.print_exception(kind, error, trace)

    return hook


def main(argv):
    code_fd, status_fd, uid, *limits = map(int, argv[1:8])
    with open(code_fd, "rb") as source_file:
        source = source_file.read().decode("utf-8")
    if uid >= 0:
        _drop_user(uid)
    _set_limits(*limits)
    os.set_inheritable(status_fd, False)

    # The work folder comes last: helpers in it can be imported, but a file called
    # random.py does not hide the standard library.
    sys.path += [*argv[8:], os.getcwd()]
    sys.argv = [PROGRAM]
    sys.excepthook = _make_hook(status_fd)
    site.setquit()  # exit() and quit(), which -S leaves out

    # The module and not only its globals: pickle looks classes up by module name.
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    lines = source.splitlines(keepends=True)
    _show_source(lines)
    os.write(status_fd, b"ready\n")
    exec(compile(source, PROGRAM, "exec"), module.__dict__)


def _show_source(lines):
    """Lets tracebacks quote the program, which is in no file."""
    import linecache

    linecache.cache[PROGRAM] = (sum(map(len, lines)), None, lines, PROGRAM)


main(sys.argv)
