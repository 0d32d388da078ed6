"""How the hosts of a run keep in step.

Every host runs the same program. What one of them alone knows (which actions its
episodes ask for, what its judge said, that it was told to stop) is gathered, so that
all decide alike; the arrays are JAX's concern.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """A host was told to stop, and all of them stop at the same point."""


class HostLost(RuntimeError):
    """Another host has gone; this one cannot go on alone."""


class Hosts(Protocol):
    """The hosts of a run.

    Attributes:
      index, count: which of how many this is; the host 0 writes the run's files.
      stopping: set where this host was told to stop.
    """

    index: int
    count: int
    stopping: bool

    async def gather(self, value: T) -> Sequence[T]:
        """Every host's value, in the order of the hosts.

        Collective: all hosts must call it the same number of times, in the same order
        relative to every other program that spans them.

        Raises:
          Stopped: some host is `stopping`; on all of them.
          HostLost: another host has gone.
        """
        ...


class OneHost:
    """A run on one host: nothing to gather, and it is interrupted without ado."""

    index = 0
    count = 1
    stopping = False

    async def gather(self, value: Any) -> Sequence[Any]:
        return [value]


def share(items: Sequence[T], hosts: Hosts, together: int = 1) -> list[tuple[int, T]]:
    """This host's part of `items`, each with its number.

    So many that follow one another stay `together` on a host, unless that would leave
    hosts without any.
    """
    unit = together if len(items) // together >= hosts.count else 1
    return [
        (number, item)
        for number, item in enumerate(items)
        if number // unit % hosts.count == hosts.index
    ]
