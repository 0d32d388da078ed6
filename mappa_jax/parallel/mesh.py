"""The device mesh, and the rules that place every array on it.

An array's logical axes follow from its name (first matching rule wins), and its
sharding follows from its logical axes. One device is the mesh of size one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mappa_jax.config import ConfigError, MeshConfig

AXES = ("agent", "data", "fsdp", "tensor")

# Logical axis -> mesh axes.
LOGICAL: dict[str | None, str | tuple[str, ...] | None] = {
    "agent": "agent",
    "batch": ("data", "fsdp"),
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "layers": None,
    "rank": None,
    None: None,
}

# Parameter name -> logical axes, without the agent axis.
PARAM_RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"^(embed|head)$", ("vocab", "embed")),
    (r"^layers/[qkv]/kernel$", ("layers", "embed", "heads")),
    (r"^layers/o/kernel$", ("layers", "heads", "embed")),
    (r"^layers/(gate|up)/kernel$", ("layers", "embed", "mlp")),
    (r"^layers/down/kernel$", ("layers", "mlp", "embed")),
    (r"^layers/[qkv]/bias$", ("layers", "heads")),
    (r"^layers/(gate|up)/bias$", ("layers", "mlp")),
    (r"^layers/(o|down)/bias$", ("layers", None)),
    (r"^layers/\w+_norm/weight$", ("layers", None)),
    (r"^final_norm/weight$", (None,)),
    (r"^[qkv]/a$|^(gate|up)/a$", ("layers", "embed", "rank")),
    (r"^[qkv]/b$", ("layers", "rank", "heads")),
    (r"^(gate|up)/b$", ("layers", "rank", "mlp")),
    (r"^o/a$", ("layers", "heads", "rank")),
    (r"^down/a$", ("layers", "mlp", "rank")),
    (r"^(o|down)/b$", ("layers", "rank", "embed")),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all) with the sizes of the config.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    fixed = math.prod(s for s in sizes if s != -1)
    if len(devices) % fixed or (fixed != len(devices) and -1 not in sizes):
        raise ConfigError(
            f"mesh: sizes {dict(zip(AXES, sizes, strict=True))} do not fit "
            f"{len(devices)} devices; set mesh.data=-1 to take what is left"
        )
    sizes = [len(devices) // fixed if s == -1 else s for s in sizes]
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def path_name(path: tuple[Any, ...]) -> str:
    """A pytree key path as "layers/q/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """Logical axes -> PartitionSpec."""
    return PartitionSpec(*(LOGICAL[axis] for axis in axes))


def param_axes(name: str) -> tuple[str | None, ...]:
    """The logical axes of a parameter.

    Raises:
      KeyError: no rule matches; a new parameter needs a rule.
    """
    for pattern, axes in PARAM_RULES:
        if re.search(pattern, name):
            return axes
    raise KeyError(f"no sharding rule for parameter {name!r}; add one to PARAM_RULES")


def param_shardings(mesh: Mesh, shapes: Any, *, agent_axis: bool) -> Any:
    """A NamedSharding for every leaf of a parameter tree.

    Args:
      mesh: the mesh.
      shapes: a tree of arrays or ShapeDtypeStructs.
      agent_axis: whether every leaf has a leading agent axis.

    Raises:
      ConfigError: a dimension does not divide its mesh axes; named.
    """

    def one(path, leaf):
        axes = param_axes(path_name(path))
        axes = ("agent", *axes) if agent_axis else axes
        check_divides(mesh, path_name(path), leaf.shape, axes)
        return NamedSharding(mesh, spec(axes))

    return jax.tree_util.tree_map_with_path(one, shapes)


def check_divides(
    mesh: Mesh, name: str, shape: Sequence[int], axes: Sequence[str | None]
) -> None:
    """Raises ConfigError, naming array, dimension and mesh axis, if one is uneven."""
    for i, (size, axis) in enumerate(zip(shape, axes, strict=True)):
        names = LOGICAL[axis] or ()
        names = (names,) if isinstance(names, str) else names
        ways = math.prod(mesh.shape[n] for n in names)
        if size % ways:
            raise ConfigError(
                f"{name}: dimension {i} ({axis}, size {size}) does not divide the "
                f"mesh axes {names} of size {ways}; choose another mesh"
            )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, *, agent_axis: bool, rows_axis: int) -> NamedSharding:
    """Rows over the data axes, agents over theirs; `rows_axis` counts from 0."""
    axes: list[str | None] = [None] * (rows_axis + 1)
    axes[rows_axis] = "batch"
    if agent_axis:
        axes[0] = "agent"
    return NamedSharding(mesh, spec(axes))
