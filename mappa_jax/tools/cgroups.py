"""Limits that the kernel counts over all processes of a program, where it lets us.

Control groups can be made by root, or below a group that was handed over to a user.
Where they cannot, the supervisor of inside/server.py still counts by itself; with them
no moment is left between two of its looks. Both versions of the interface are known.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import pathlib
import secrets
from collections.abc import AsyncIterator, Mapping

log = logging.getLogger(__name__)

# By version: the file that holds the limit, and that which counts kills for memory.
_LIMIT = {
    "memory": {1: "memory.limit_in_bytes", 2: "memory.max"},
    "pids": {1: "pids.max", 2: "pids.max"},
}
_EVENTS = {1: "memory.oom_control", 2: "memory.events"}
_TRIES, _PAUSE_S = 100, 0.01  # until a group is empty


@dataclasses.dataclass(frozen=True)
class Place:
    """A group in which we may make others, of version 1 or 2 of the interface."""

    folder: pathlib.Path
    version: int


def find_places() -> dict[str, Place]:
    """Where groups can be made, by what they limit: "memory", "pids", or neither."""
    mounts = _mounts()
    found = {}
    try:
        lines = pathlib.Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return {}  # a kernel without them
    for line in lines:
        _, names, path = line.split(":", 2)
        version = 1 if names else 2
        for kind in _LIMIT:
            mount = mounts.get(kind if names else "")
            if mount is None or (names and kind not in names.split(",")):
                continue
            place = Place(mount / path.lstrip("/"), version)
            if kind not in found and _may_make(place, kind):
                found[kind] = place
    return found


def _mounts() -> dict[str, pathlib.Path]:
    """Controller (version 1) or "" (version 2) -> where its hierarchy is mounted."""
    found = {}
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        where = pathlib.Path(before.split(" ")[4])
        if kind == "cgroup2":
            found.setdefault("", where)
        elif kind == "cgroup":
            found |= dict.fromkeys(options.split(","), where)
    return found


def _may_make(place: Place, kind: str) -> bool:
    probe = place.folder / f"mappa-probe-{secrets.token_hex(8)}"
    try:
        probe.mkdir()
    except OSError:
        return False  # not ours: the usual case
    writable = os.access(probe / _LIMIT[kind][place.version], os.W_OK)
    probe.rmdir()
    return writable


@dataclasses.dataclass(frozen=True)
class Group:
    """A group per kind of limit, for one program.

    Attributes:
      folders: by kind.
      fds: of their lists of processes; one that writes "0" there joins.
    """

    folders: Mapping[str, Place]
    fds: tuple[int, ...]

    def killed_for_memory(self) -> bool:
        """Whether the kernel has killed a process of the group for its memory."""
        place = self.folders.get("memory")
        if place is None:
            return False
        for line in (place.folder / _EVENTS[place.version]).read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count) > 0
        return False


@contextlib.asynccontextmanager
async def group(
    places: Mapping[str, Place], limits: Mapping[str, int]
) -> AsyncIterator[Group]:
    """A group with `limits` (bytes of memory, number of processes), by kind."""
    name = f"mappa-{secrets.token_hex(8)}"
    made: dict[str, Place] = {}
    fds: list[int] = []
    try:
        for kind, place in places.items():
            folder = place.folder / name
            folder.mkdir()
            made[kind] = Place(folder, place.version)
            limit_file = folder / _LIMIT[kind][place.version]
            limit_file.write_text(str(limits[kind]))
            fds.append(os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
        yield Group(made, tuple(fds))
    finally:
        for fd in fds:
            os.close(fd)
        for place in made.values():
            await _remove(place.folder)


async def _remove(folder: pathlib.Path) -> None:
    for _ in range(_TRIES):
        try:
            folder.rmdir()
            return
        except OSError as error:
            last = error
        await asyncio.sleep(_PAUSE_S)  # its last process is about to end
    log.warning("%s cannot be removed: %s", folder, last)
