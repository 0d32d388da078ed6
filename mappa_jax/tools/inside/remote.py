"""Runs one program on a SandboxFusion server, whose runs share nothing, as if it ran
in a work folder that stays.

The server starts this script in a folder that holds the work folder's files, with the
program and its settings under MAPPA. When the program has ended, by itself or by its
time, the folder's files are packed for the way back.
"""

import sys

del sys.path[0]  # the work folder: an agent's json.py is not ours
import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import stat  # noqa: E402
import subprocess  # noqa: E402
import zipfile  # noqa: E402

MAPPA = ".mappa"


def main():
    with open(f"{MAPPA}/settings.json") as file:
        settings = json.load(file)
    with open(f"{MAPPA}/program.py", encoding="utf-8") as file:
        source = file.read()
    command = [sys.executable, "-u", "-X", "utf8", "-c", source]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, start_new_session=True
    )
    limit = None
    try:
        process.wait(settings["wall_seconds"])
    except subprocess.TimeoutExpired:
        limit = "wall_time"
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # nothing of it is left
    status = process.wait()
    first = settings["first"]
    names = [n for n in _regular_files() if n not in settings["inputs"]]
    names.sort(key=lambda name: (name not in first, name))
    if sum(os.path.getsize(name) for name in names) > settings["disk_bytes"]:
        limit, names = limit or "disk", []
    with _archive() as out:
        end = {"status": status, "limit": limit}
        out.writestr(f"{MAPPA}/end.json", json.dumps(end))
        for name in names[: settings["most"]]:
            # A name that is no UTF-8 cannot be kept under itself.
            shown = os.fsencode(name).decode("utf-8", errors="backslashreplace")
            out.write(name, shown)


def _archive():
    return zipfile.ZipFile(
        f"{MAPPA}/files.zip", "w", zipfile.ZIP_DEFLATED, strict_timestamps=False
    )


def _regular_files():
    found = []
    for base, folders, names in os.walk("."):
        folders[:] = sorted(f for f in folders if os.path.join(base, f) != f"./{MAPPA}")
        for name in sorted(names):
            path = os.path.relpath(os.path.join(base, name))
            if stat.S_ISREG(os.lstat(path).st_mode):
                found.append(path)
    return found


main()
