"""What a workflow may ask of a sandbox, and how a sandbox may fail it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from mappa_jax.types import Observation, ToolFault


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


class Sandbox(Protocol):
    """Runs the programs that agents write."""

    async def check(self) -> None:
        """Proves that the walls stand, before the first program is run.

        Raises:
          SandboxError: naming the wall that is missing and the remedy.
        """

    def workspace(self) -> AbstractAsyncContextManager[Workspace]:
        """A fresh work folder, removed with all it holds when the context ends."""

    async def aclose(self) -> None:
        """Releases what the sandbox holds. No workspace may be open."""
