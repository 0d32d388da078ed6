"""The least time that counted work can take on a slice.

After Williams et al. 2009 (doi 10.1145/1498765.1498785): a program takes at least as
long as its matrix products at the chip's peak, as its main-memory traffic at full
bandwidth, and as its collectives at the bandwidth of the links along each mesh axis.
With perfect overlap it takes the largest of these; latencies, vector arithmetic and
scheduling are not in the model, so the figure is a lower bound.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from mappa_jax.plan.chips import Chip, Slice
from mappa_jax.plan.count import Collective, Cost
from mappa_jax.plan.groups import axes_of


@dataclasses.dataclass(frozen=True)
class Traffic:
    """One kind of collective along some axes: bytes a chip sends, and seconds."""

    kind: str
    axes: str
    bytes: float
    seconds: float
    calls: float


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Seconds that each part would take alone.

    Attributes:
      compute: matrix products.
      memory: main memory.
      links: mesh axis -> its collectives; one along several axes counts for each.
    """

    compute: float
    memory: float
    links: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, *self.links.values(), 0.0)

    @property
    def name(self) -> str:
        """Which bound it is: "compute", "memory" or "interconnect:fsdp"."""
        parts = {"compute": self.compute, "memory": self.memory}
        parts |= {f"interconnect:{axis}": s for axis, s in self.links.items()}
        return max(parts, key=lambda name: parts[name])


@dataclasses.dataclass(frozen=True, eq=False)
class Fabric:
    """The devices of a mesh and where they stand.

    Attributes:
      chip: their kind.
      mesh: axis -> size, in order.
      places: [devices, dimensions] coordinates in the slice, in the mesh's order; None
        where all are joined by one switch.
      slice: None likewise.
    """

    chip: Chip
    mesh: Mapping[str, int]
    places: np.ndarray | None = None
    slice: Slice | None = None

    def seconds(self, collective: Collective, sent: float) -> float:
        """Seconds to send so many bytes from every chip of a collective's groups."""
        if self.places is None or self.slice is None:
            return sent / self.chip.link
        width, longest = _width(self.places[list(collective.members)], self.slice)
        far = longest / 4 if collective.kind == "all-to-all" else 1.0
        return sent * max(far, 1.0) / (width * self.chip.link)


def _width(places: np.ndarray, slice_: Slice) -> tuple[float, int]:
    """(links out of a chip that a group can use at once, its longest side).

    A group that fills a box uses one link per dimension and, where the dimension closes
    into a ring and the group goes round it, both directions. Members that stand apart
    share the links between them with the groups in the gaps. A group of another form
    uses one link.
    """
    links, longest, volume = 0.0, 1, 1
    for axis in range(places.shape[1]):
        where = np.unique(places[:, axis])
        if len(where) < 2:
            continue
        gaps = np.diff(where)
        apart = float(gaps.max())
        round_ = slice_.ring(axis) and len(where) * apart == slice_.shape[axis]
        links += (2 if round_ else 1) / apart
        longest, volume = max(longest, len(where)), volume * len(where)
    if volume != len(places):  # not a box
        return min(1.0, links), longest
    return links, longest


def traffic(cost: Cost, fabric: Fabric) -> list[Traffic]:
    """The collectives by kind and mesh axes, the most bytes first."""
    table: dict[tuple[str, str], list[float]] = {}
    for collective, sent in cost.sent.items():
        key = (collective.kind, axes_of(collective.members, fabric.mesh))
        row = table.setdefault(key, [0.0, 0.0, 0.0])
        row[0] += sent
        row[1] += fabric.seconds(collective, sent)
        row[2] += cost.calls[collective]
    rows = [Traffic(*key, *values) for key, values in table.items()]
    return sorted(rows, key=lambda row: -row.bytes)


def bounds(cost: Cost, fabric: Fabric) -> Bounds:
    """What each part would take alone, in seconds."""
    chip = fabric.chip
    links: dict[str, float] = {}
    for row in traffic(cost, fabric):
        for axis in row.axes.split("+"):
            axis = axis.partition("/")[0]
            links[axis] = links.get(axis, 0.0) + row.seconds
    return Bounds(
        compute=sum(flops / chip.peak(kind) for kind, flops in cost.matmul.items()),
        memory=cost.bytes / chip.bandwidth,
        links=links,
    )


def intensity(cost: Cost) -> float:
    """Operations per byte of main memory."""
    return cost.flops / cost.bytes if cost.bytes else math.inf
