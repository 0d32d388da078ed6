"""What is known of the chips that a run may be planned for, with dates and sources.

Figures of the hardware are Google's ([v4], [v5e], [v5p], [v6e] below; "GB" there is
2**30 bytes of memory, and 10**9 bytes a second of bandwidth) and, for single links, for
which rings close and for v5p's memory (95 in [v5p], less than libtpu hands out), those
of [book]. What of the
memory a program may use is what libtpu 0.0.42.1 answers to a program that is too large
for each chip. Raised precision multiplies several times in bfloat16 [passes].

[v4]     https://docs.cloud.google.com/tpu/docs/v4
[v5e]    https://docs.cloud.google.com/tpu/docs/v5e
[v5p]    https://docs.cloud.google.com/tpu/docs/v5p
[v6e]    https://docs.cloud.google.com/tpu/docs/v6e
[book]   https://jax-ml.github.io/scaling-book/tpus
[passes] https://docs.jax.dev/en/latest/jax.lax.html#jax.lax.Precision

Prices are of one chip for one hour in US dollars, as listed (no commitment, no
discount), from the rows tpu-*-8 to tpu-*-64 of SkyPilot's catalogue of Google's price
list, https://github.com/skypilot-org/skypilot-catalog, catalogs/v8/gcp/vms.csv at
commit 006059e0f18acb1341e22a27751e9f80df6ba92f, read on 2026-11-23. Spot prices move;
https://cloud.google.com/tpu/pricing has today's.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

from mappa_jax.config import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Price:
    """US dollars for one chip and hour, and where and when that was listed."""

    on_demand: float
    spot: float
    region: str
    read: str = "2026-11-23"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: "v5e".
      memory: bytes of main memory (HBM).
      usable: bytes of it that a program may use.
      bandwidth: of main memory, bytes a second.
      flops: operations a second of matrix products by type of the factors; "f32" is
        at default precision.
      link: bytes a second of one link in one direction, to a neighbour.
      axes: dimensions of the torus.
      ring: a dimension of the slice closes into a ring if it is a multiple of this.
      per_host: chips of one host.
      numbering: what the slice's name counts per chip: "v5p-8" has 8 cores, 4 chips.
      family: how the accelerator type starts, "v5litepod".
      price: None where nothing is rented.
      options: of `get_topology_desc`.
      measured: whether the figures were measured here rather than published.
    """

    name: str
    memory: float
    usable: float
    bandwidth: float
    flops: Mapping[str, float]
    link: float
    axes: int
    ring: int
    per_host: int
    numbering: int = 1
    family: str = ""
    price: Price | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    measured: bool = False

    def peak(self, factors: str) -> float:
        """Operations a second of products of this type ("bf16", "f32:highest").

        A type without a figure of its own runs as bfloat16 does.
        """
        return self.flops.get(factors) or self.flops["bf16"]


def _tpu_flops(bf16: float) -> dict[str, float]:
    return {"bf16": bf16, "f32": bf16, "f32:high": bf16 / 3, "f32:highest": bf16 / 6}


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4",
            memory=32 * GIB,
            usable=30.75 * GIB,
            bandwidth=1.2e12,
            flops=_tpu_flops(275e12),
            link=4.5e10,
            axes=3,
            ring=4,
            per_host=4,
            numbering=2,
            family="v4",
            price=Price(3.22, 0.9215, "us-central2"),
            options={"chip_config_name": "megacore"},  # two cores as one device
        ),
        Chip(
            "v5e",
            memory=16 * GIB,
            usable=15.75 * GIB,
            bandwidth=8.19e11,
            flops=_tpu_flops(197e12),
            link=5e10,
            axes=2,
            ring=16,
            per_host=8,
            family="v5litepod",
            price=Price(1.20, 0.60, "us-east5"),
        ),
        Chip(
            "v5p",
            memory=96 * GIB,
            usable=95.74 * GIB,
            bandwidth=2.765e12,
            flops=_tpu_flops(459e12),
            link=1e11,
            axes=3,
            ring=4,
            per_host=4,
            numbering=2,
            family="v5p",
            price=Price(4.20, 1.68, "us-east5"),
        ),
        Chip(
            "v6e",
            memory=32 * GIB,
            usable=31.25 * GIB,
            bandwidth=1.6e12,
            flops=_tpu_flops(918e12),
            link=1e11,
            axes=2,
            ring=16,
            per_host=8,
            family="v6e",
            price=Price(2.70, 1.215, "us-east5"),
        ),
    )
}

# Usual shapes of slices, by chips.
_SHAPES = {
    2: {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8)}
    | {128: (8, 16), 256: (16, 16)},
    3: {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4)}
    | {128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8)},
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips joined in a mesh or torus.

    Attributes:
      chip: their kind.
      shape: chips along each dimension.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """As JAX and GKE write it, "v5e:4x4"."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def accelerator_type(self) -> str:
        """As the Cloud TPU API calls it, "v5litepod-16"."""
        return f"{self.chip.family}-{self.chips * self.chip.numbering}"

    def ring(self, axis: int) -> bool:
        """Whether a dimension closes into a ring."""
        size = self.shape[axis]
        return size > 2 and size % self.chip.ring == 0


def parse_slice(text: str) -> Slice:
    """ "v5e:4x4", or "v5e-16" for the usual shape of that name.

    Raises:
      ConfigError: no such chip or shape.
    """
    found = re.fullmatch(r"(v\d+\w*)(?::(\d+(?:x\d+)*)|-(\d+))", text)
    if not found or found[1] not in CHIPS:
        raise ConfigError(
            f"--topology={text}: expected {', '.join(CHIPS)} with a shape or a size, "
            "for example v5e:4x4, v5p:2x2x2 or v6e-8; or local, cpu:8"
        )
    chip = CHIPS[found[1]]
    if found[2]:
        shape = tuple(int(side) for side in found[2].split("x"))
    else:
        usual = {n * chip.numbering: s for n, s in _SHAPES[chip.axes].items()}
        if int(found[3]) not in usual:
            raise ConfigError(
                f"--topology={text}: the usual sizes of {chip.name} are "
                f"{', '.join(f'{chip.name}-{n}' for n in usual)}; or write a shape, "
                f"{chip.name}:{'x'.join(['4'] * chip.axes)}"
            )
        shape = usual[int(found[3])]
    if len(shape) != chip.axes:
        raise ConfigError(
            f"--topology={text}: {chip.name} has {chip.axes} dimensions, for example "
            f"{chip.name}:{'x'.join(['4'] * chip.axes)}"
        )
    return Slice(chip, shape)
