"""An agent's program, in this very interpreter: its limits, then its source.

What the program must not see (our frames and names) is taken away first. The limit that
Python meets as an exception is told to `hint_fd`; the program could write there too,
which would only mislabel its own end.
"""

import atexit
import contextlib
import errno
import gc
import io
import linecache
import os
import random
import resource
import site
import sys
import threading
import types

NAME = "program.py"  # in tracebacks
OPEN_FILES = 512


def set_limits(cpu_seconds, memory_bytes, processes, file_bytes):
    """Limits of the kernel on this process; -1 leaves one as it is.

    The memory is what may be mapped beyond what is mapped now.
    """
    if memory_bytes >= 0:
        with open("/proc/self/statm") as file:
            memory_bytes += int(file.read().split()[0]) * resource.getpagesize()
    wanted = {
        resource.RLIMIT_AS: (memory_bytes, memory_bytes),
        resource.RLIMIT_NPROC: (processes, processes),
        resource.RLIMIT_FSIZE: (file_bytes, file_bytes),
        # SIGXCPU at the soft limit tells the cause; SIGKILL follows if it is ignored.
        resource.RLIMIT_CPU: (cpu_seconds, cpu_seconds + 1),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NOFILE: (OPEN_FILES, OPEN_FILES),
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
    if error.errno == errno.EFBIG:
        return "file_size"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk"
    if error.errno == errno.EAGAIN:
        # Non-blocking I/O raises this too: look at what the last frame called.
        while trace.tb_next is not None:
            trace = trace.tb_next
        names = trace.tb_frame.f_code.co_names
        if any("fork" in name or "spawn" in name for name in names):
            return "processes"
    return None


def _make_hook(hint_fd, ours):
    def hook(kind, error, trace):
        limit = _limit_behind(error, trace)
        if limit is not None:
            os.write(hint_fd, f"{limit}\n".encode())
        import traceback  # late: it would cost every start-up some milliseconds

        while trace is not None and trace.tb_frame.f_code.co_filename in ours:
            trace = trace.tb_next
        traceback.print_exception(kind, error, trace)

    return hook


def execute(source, hint_fd, paths, ours, ready=lambda: None):
    """Runs `source` as `__main__`, from the top of this interpreter.

    Args:
      source: Python source.
      hint_fd: open for writing.
      paths: to be put on sys.path. The work folder comes last: helpers in it can be
        imported, but a file called random.py does not hide the standard library.
      ours: names of the files whose frames are left out of tracebacks.
      ready: called last of all before the program.
    """
    os.set_inheritable(hint_fd, False)
    sys.path += [*paths, os.getcwd()]
    sys.argv = [NAME]
    sys.excepthook = _make_hook(hint_fd, {*ours, __file__})
    site.setquit()  # exit() and quit(), which -S leaves out
    # Same program, same result: what it draws without a seed of its own is seeded.
    random.seed(0)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(0)
    # The module and not only its globals: pickle looks classes up by module name.
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    lines = source.splitlines(keepends=True)
    # Lets tracebacks quote the program, which is in no file.
    linecache.cache[NAME] = (sum(map(len, lines)), None, lines, NAME)
    ready()
    status = _run(source, module.__dict__)
    _end(module.__dict__)
    os._exit(status)


def _run(source, names):
    """The exit status that Python would give."""
    try:
        exec(compile(source, NAME, "exec"), names)
    except SystemExit as exit:
        return _status_of(exit)
    except BaseException as error:
        _show(error)
        return 1
    return 0


def _status_of(exit):
    """The exit status that Python gives for a SystemExit."""
    try:
        if exit.code is None:
            return 0
        if isinstance(exit.code, int):
            # As C's long: what does not fit is -1.
            return exit.code & 0xFF if -(2**63) <= exit.code < 2**63 else 0xFF
        print(exit.code, file=sys.stderr)
    except BaseException as error:
        _show(error)
    return 1


def _show(error):
    """The traceback, by the program's own hook if it has set one that works."""
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except BaseException:
        print(f"{type(error).__name__}", file=sys.__stderr__)


def _end(names):
    """What Python does at its end, but for tearing down every module: those that were
    imported before the fork are large, and each page touched would be copied."""
    threading._shutdown()  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    names.clear()
    gc.collect()
    for thing in gc.get_objects():
        if issubclass(type(thing), io.IOBase):
            with contextlib.suppress(BaseException):  # closed, or a flush of its own
                thing.flush()
