"""Hosts that JAX joins: `jax.distributed`, and nothing else."""

from __future__ import annotations

import asyncio
import pickle
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mappa_jax.hosts import HostLost, Stopped

FIRST = 1 << 12  # bytes of a message that go in the first round


class JaxHosts:
    """The processes of a `jax.distributed` run; see `hosts.Hosts`."""

    def __init__(self):
        self.index = jax.process_index()
        self.count = jax.process_count()
        self.stopping = False

    async def gather(self, value: Any) -> Sequence[Any]:
        # The hosts of a run trust one another: they run the same code.
        message = pickle.dumps((self.stopping, value))
        try:
            found = await asyncio.to_thread(_gather_bytes, message)
        except jax.errors.JaxRuntimeError as e:
            raise lost(e) from e
        stopping, values = zip(*map(pickle.loads, found), strict=True)
        if any(stopping):
            where = [i for i, told in enumerate(stopping) if told]
            raise Stopped(f"host {where[0]} was told to stop")
        return values


def is_lost(error: Exception) -> bool:
    """Whether an error of the runtime says that another process cannot be reached; it
    may as well be this host's own, such as a lack of memory."""
    return re.search(_LOST, str(error), re.IGNORECASE) is not None


_LOST = (
    "unavailable|aborted|cancelled|deadline|gloo|connection|socket|peer|heartbeat"
    "|coordination|barrier"
)


def lost(error: Exception) -> HostLost:
    """What a program that spans hosts raises when one of them has gone."""
    said = str(error).splitlines()[0][:300]
    return HostLost(
        f"another host has gone, or cannot be reached ({said}). Start the same command "
        "again on all hosts: it goes on from the last checkpoint"
    )


def _gather_bytes(message: bytes) -> list[bytes]:
    """Every host's message. The second round is as long as the longest needs, rounded
    up to a power of two, so that few shapes are ever compiled."""
    head = np.zeros(FIRST + 8, np.uint8)
    head[:8] = np.frombuffer(np.int64(len(message)).tobytes(), np.uint8)
    head[8 : 8 + len(message)] = np.frombuffer(message[:FIRST], np.uint8)
    heads = multihost_utils.process_allgather(head)
    sizes = [int(np.frombuffer(h[:8].tobytes(), np.int64)[0]) for h in heads]
    longest = max(sizes)
    if longest <= FIRST:
        return [h[8 : 8 + n].tobytes() for h, n in zip(heads, sizes, strict=True)]
    rest = np.zeros(1 << (longest - FIRST - 1).bit_length(), np.uint8)
    if len(message) > FIRST:
        rest[: len(message) - FIRST] = np.frombuffer(message[FIRST:], np.uint8)
    rests = multihost_utils.process_allgather(rest)
    return [
        (h[8:].tobytes() + r.tobytes())[:n]
        for h, r, n in zip(heads, rests, sizes, strict=True)
    ]
