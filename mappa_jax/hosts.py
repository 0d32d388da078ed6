"""How the hosts of a run keep in step.

Every host runs the same program. What one of them alone knows (which actions its
episodes ask for, what its judge said, that it was told to stop) is gathered, so that
all decide alike; the arrays are JAX's concern.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
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


TOLD_EVERY = 0.5  # seconds in which hosts that wait hear of one another


async def finish(hosts: Hosts, pending: Iterable[asyncio.Future[Any]]) -> None:
    """Returns when all hosts' `pending` are done.

    Collective. Where it raises, this host's are cancelled.

    Raises:
      Stopped, HostLost: as `Hosts.gather`, at most TOLD_EVERY seconds after the fact.
      Exception: the first that one of `pending` raises, at once.
    """
    left = set(pending)
    timeout = TOLD_EVERY if hosts.count > 1 else None
    try:
        while any(await hosts.gather(bool(left))):
            if not left:
                await asyncio.sleep(TOLD_EVERY)
                continue
            done, left = await asyncio.wait(
                left, timeout=timeout, return_when=asyncio.FIRST_EXCEPTION
            )
            failed = [e for future in done if (e := future.exception()) is not None]
            if failed:
                raise failed[0]
    except BaseException:
        for future in left:
            future.cancel()
        raise


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
