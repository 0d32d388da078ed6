"""What a work folder holds."""

import os
import stat

MAX_DEPTH = 64  # folders within folders; what lies deeper is not listed
MAX_NAME_BYTES = 400  # of a path below the folder


def printable(path):
    """A path as text that is safe to show: what is no printable character stands
    there as Python would escape it, and no name can look like two lines."""
    text = os.fsencode(path).decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def list_files(folder, most, first=()):
    """name -> [bytes, time of change in ns, inode] of the regular files below `folder`.

    Links are not followed, nor named. At most `most` files are listed: those called as
    in `first`, then the others in the order of their names within each folder, folder
    by folder. What lies too deep or has too long a path is passed over, and names are
    as `printable` gives them.
    """
    found = {}
    for name in first:
        _add(found, folder, name)
    waiting = [("", 0)]
    while waiting and len(found) < most:
        base, depth = waiting.pop()
        try:
            with os.scandir(os.path.join(folder, base)) as entries:
                inside = sorted(
                    (e.name, e.is_dir(follow_symlinks=False)) for e in entries
                )
        except OSError:
            continue  # it cannot be opened, as its path is longer than the kernel takes
        for name, is_folder in inside:
            path = os.path.join(base, name)
            if len(os.fsencode(path)) > MAX_NAME_BYTES:
                continue
            if not is_folder:
                _add(found, folder, path)
            elif depth < MAX_DEPTH:
                waiting.append((path, depth + 1))
            if len(found) >= most:
                break
    return found


def _add(found, folder, path):
    try:
        seen = os.lstat(os.path.join(folder, path))
    except OSError:
        return  # it is not there, or not any more
    if stat.S_ISREG(seen.st_mode):
        found[printable(path)] = [seen.st_size, seen.st_ctime_ns, seen.st_ino]


def hidden_name(name):
    """Whether a relative name leads out of its folder, or is not a plain path."""
    parts = name.split("/")
    return not name or name.startswith("/") or "\0" in name or ".." in parts
