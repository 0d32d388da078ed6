"""The devices of this host as chips whose figures are measured, not published."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mappa_jax.plan.chips import Chip

SIDE = {"cpu": 1024, "gpu": 8192}  # of the matrices that are multiplied
ELEMENTS = {"cpu": 2**24, "gpu": 2**28}  # float32 that are copied


def measured(devices: Sequence[Any]) -> Chip:
    """What one of these devices does while all of them work: seconds of real runs."""
    mesh = Mesh(np.asarray(devices), ("all",))
    kind = "cpu" if devices[0].platform == "cpu" else "gpu"
    memory = _memory(devices)
    rates = {
        name: _product(mesh, SIDE[kind], dtype)
        for name, dtype in (("bf16", jnp.bfloat16), ("f32", jnp.float32))
    }
    elements = ELEMENTS[kind]
    copied = _seconds(lambda x: x + 1, _on(mesh, (len(devices), elements)))
    return Chip(
        name=devices[0].device_kind.replace(" ", "-").lower(),
        memory=memory,
        usable=memory,
        bandwidth=2 * 4 * elements / copied,
        flops=rates,
        link=_link(mesh, elements // 16),
        axes=1,
        ring=1,
        per_host=len(devices),
        measured=True,
    )


def _memory(devices: Sequence[Any]) -> float:
    """Bytes that each device may use; CPU devices share the host's."""
    stats = devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return float(whole) / len(devices)


def _on(mesh: Mesh, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    where = NamedSharding(mesh, PartitionSpec("all"))
    return jax.jit(lambda: jnp.ones(shape, dtype), out_shardings=where)()


def _product(mesh: Mesh, side: int, dtype: Any) -> float:
    x = _on(mesh, (mesh.size, side, side), dtype)
    return 2 * side**3 / _seconds(lambda a: a @ a, x)


def _link(mesh: Mesh, elements: int) -> float:
    """Bytes a second that a device sends in an all-gather."""
    if mesh.size == 1:
        return float("inf")
    whole = NamedSharding(mesh, PartitionSpec())
    x = _on(mesh, (mesh.size, elements))
    seconds = _seconds(lambda a: a, x, out_shardings=whole)
    return 4 * elements * (mesh.size - 1) / seconds


def _seconds(function: Callable, x: jax.Array, **how: Any) -> float:
    """The quickest of three runs after the first."""
    run = jax.jit(function, **how)
    run(x).block_until_ready()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)
