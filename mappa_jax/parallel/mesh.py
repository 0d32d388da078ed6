"""The device mesh, and the rules that place every array on it.

An array's logical axes follow from its name (first matching rule wins), and its
sharding follows from its logical axes. One device is the mesh of size one.
"""

from __future__ import annotations

import dataclasses
import math
import re
import threading
from collections.abc import Callable, Sequence
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


def shared_by_threads(mesh: Mesh) -> bool:
    """Whether two threads may have programs run on a mesh at once, each by `start`.

    Not over several processes: each might start the programs in an order of its own,
    and collectives would wait for one another for ever. Nor over several devices that
    are one CPU, where programs that wait take the threads of those they wait for.
    """
    devices = list(mesh.devices.flat)
    if len({d.process_index for d in devices}) > 1:
        return False
    return len(devices) == 1 or devices[0].platform != "cpu"


_STARTING = threading.Lock()


def start(program: jax.stages.Compiled, *args: Any) -> Any:
    """`program(*args)`, while no other thread starts one: programs with collectives
    have to reach all devices in one order. Waits for none of them to end."""
    with _STARTING:
        return program(*args)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the weights and the rows of some agents lie on a mesh.

    Attributes:
      mesh: the mesh; None stands for one device.
      apart: agents have weights of their own, and slices of the mesh for them. Without
        that the axis "agent" spreads rows, as "data" does.
    """

    mesh: Mesh | None = None
    apart: bool = True

    def _size(self, *axes: str) -> int:
        return math.prod(self.mesh.shape[a] for a in axes) if self.mesh else 1

    @property
    def agent_axis(self) -> str | None:
        """The logical axis of a stack of weights."""
        return "agent" if self.apart else None

    @property
    def row_axes(self) -> tuple[str, ...]:
        """The mesh axes that rows are spread over."""
        return ("data", "fsdp") if self.apart else ("agent", "data", "fsdp")

    @property
    def slices(self) -> int:
        """How many parts of the mesh the agents are divided over."""
        return self._size("agent") if self.apart else 1

    @property
    def ways(self) -> int:
        """How many parts the rows of a slice are divided into."""
        return self._size(*self.row_axes)

    @property
    def tensor(self) -> int:
        return self._size("tensor")

    def sharding(self, *axes: str | tuple[str, ...] | None) -> NamedSharding:
        """Of mesh axes, one entry per dimension."""
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def constrain(self, x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
        """Says in the middle of a program how an array lies."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        return jax.lax.with_sharding_constraint(x, self.sharding(*axes))

    def over_agents(self, function: Callable, in_axes: Any = 0) -> Callable:
        """vmap over an axis of slices, or of agents that lie on them."""
        return _vmap(function, in_axes, "agent" if self.apart else None)

    def over_ways(self, function: Callable, in_axes: Any = 0) -> Callable:
        """vmap over the parts that the rows of a slice are divided into."""
        return _vmap(function, in_axes, self.row_axes)


def _vmap(function: Callable, in_axes: Any, name: Any) -> Callable:
    """vmap along a mesh axis, each argument's axis 0 or None. An axis of size one is
    taken off and put back instead: XLA on a CPU makes slower products of batches of
    one."""
    mapped = jax.vmap(function, in_axes, spmd_axis_name=name)

    def over(*args):
        axes = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
        pairs = list(zip(axes, args, strict=True))
        leaves = jax.tree.leaves([arg for axis, arg in pairs if axis is not None])
        if {x.shape[0] for x in leaves} != {1}:
            return mapped(*args)
        only = [
            arg if axis is None else jax.tree.map(lambda x: x[0], arg)
            for axis, arg in pairs
        ]
        return jax.tree.map(lambda x: x[None], function(*only))

    return over


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


def param_shardings(mesh: Mesh, shapes: Any, lead: tuple[str | None, ...] = ()) -> Any:
    """A NamedSharding for every leaf of a parameter tree.

    Args:
      mesh: the mesh.
      shapes: a tree of arrays or ShapeDtypeStructs.
      lead: the logical axes that every leaf has before its own: ("agent",) for a stack
        of agents' weights.

    Raises:
      ConfigError: a dimension does not divide its mesh axes; named.
    """

    def one(path, leaf):
        axes = (*lead, *param_axes(path_name(path)))
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


def place(value: Any, sharding: NamedSharding) -> jax.Array:
    """A host's array as one array on the mesh, also on a mesh of several hosts: all of
    them must hold the same `value`. The one way in which the hot loops move something
    to the devices: an explicit transfer, which `jax.transfer_guard` lets pass."""
    value = np.asarray(value)
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(value.shape, sharding, value.__getitem__)


def shapes_of(tree: Any) -> Any:
    """Arrays as ShapeDtypeStructs that keep where they lie."""

    def one(x: Any) -> jax.ShapeDtypeStruct:
        where = getattr(x, "sharding", None)
        return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=where)

    return jax.tree.map(one, tree)
