"""What a workflow may ask of a sandbox, and how a sandbox may fail it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from mappa_jax.types import Observation, ToolFault

MIB = 1024 * 1024
MAX_LISTED_FILES = 1000  # a program may leave any number
# Bytes and time of change of a file, and which file it is; by name.
Listing = Mapping[str, tuple[int, int, int]]


class SandboxError(ToolFault):
    """The sandbox itself failed. Never the fault of the program or its agent."""


class Workspace(Protocol):
    """The work folder of one episode. Files stay between its runs."""

    async def run(self, code: str) -> Observation:
        """Runs a Python program in the work folder, within the limits.

        Whatever the program does, a crash or a limit included, is an observation.

        Args:
          code: Python source; it runs as `__main__`, with an empty standard input.

        Raises:
          SandboxError: if the program could not be started at all.
        """

    async def read(self, name: str, most: int) -> bytes | None:
        """A regular file of the work folder; None if there is none of that name.

        It was left by a program: never unpickle or execute it out here.

        Args:
          name: relative to the work folder.
          most: bytes.

        Raises:
          FileTooLarge: it has more than `most` bytes.
          SandboxError: the work folder cannot be reached.
        """


class Sandbox(Protocol):
    """Runs the programs that agents write."""

    async def check(self) -> None:
        """Proves that the walls stand, before the first program is run.

        Raises:
          SandboxError: naming the wall that is missing and the remedy.
        """

    def workspace(
        self, files: Mapping[str, str] = {}, first: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[Workspace]:
        """A fresh work folder, removed with all it holds when the context ends.

        Args:
          files: input files, name -> path on the host. Programs read them by their
            names; they are not among the files that an observation lists.
          first: names that an observation lists in any case, whatever else there is.

        Raises:
          SandboxError: an input file cannot be read, or has no plain name.
        """

    async def forget(self, files: Mapping[str, str]) -> None:
        """Frees what is kept of input files for the next work folder that is given the
        same ones. Until then they may be kept, as they are in training.

        Args:
          files: as `workspace` was given them; none of its work folders is open.
        """

    async def aclose(self) -> None:
        """Releases what the sandbox holds. No workspace may be open."""


def observation(
    *,
    stdout: bytes,
    stderr: bytes,
    exit_status: int,
    limit: str | None,
    before: Listing,
    after: Listing,
    seconds: float,
) -> Observation:
    """What is seen of a run, from the listings of its folder before and after."""
    changed = [name for name in after if name in before and after[name] != before[name]]
    return Observation(
        stdout=stdout.decode("utf-8", errors="replace"),
        stderr=stderr.decode("utf-8", errors="replace"),
        exit_status=exit_status,
        limit=limit,
        files=tuple(sorted(after)),
        files_before=tuple(sorted(before)),
        changed=tuple(sorted(changed)),
        empty=tuple(sorted(name for name, seen in after.items() if not seen[0])),
        seconds=seconds,
    )


def check_names(files: Mapping[str, str]) -> None:
    """Raises SandboxError for an input file that is not called by a plain name."""
    for name in files:
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise SandboxError(f"task file {name!r}: a plain file name is needed")
