"""Starts one program without walls: limits only.

    python plain.py CODE_FD STATUS_FD CPU_S MEMORY_B PROCESSES FILE_B [PATH...]

The program is read from CODE_FD. STATUS_FD gets "ready" once the limits hold, so that
the outside can tell a start that failed from a program that failed, and then the name
of a limit that the program has met as an exception.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
import program  # noqa: E402

del sys.path[0]
code_fd, status_fd, *limits = map(int, sys.argv[1:7])
with open(code_fd, "rb") as source_file:
    source = source_file.read().decode("utf-8")
program.set_limits(*limits)
program.execute(
    source,
    status_fd,
    sys.argv[7:],
    {__file__},
    ready=lambda: os.write(status_fd, b"ready\n"),
)
