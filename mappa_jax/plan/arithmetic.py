"""Operations of one instruction."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from mappa_jax.plan.hlo import Array, Computation, HloError, Instruction

# One operation per element of the result; XLA counts the second half apart.
ELEMENTWISE = {
    *"add subtract multiply divide maximum minimum remainder".split(),
    *"abs negate sign floor ceil round-nearest-afz round-nearest-even".split(),
    *"clamp select compare and or xor not popcnt count-leading-zeros".split(),
    *"shift-left shift-right-logical shift-right-arithmetic is-finite".split(),
    "convert",
}
TRANSCENDENTAL = {
    *"exponential exponential-minus-one log log-plus-one logistic tanh erf".split(),
    *"sine cosine tan sqrt rsqrt cbrt power atan2".split(),
}
# Custom calls that compute nothing.
MARKERS = {
    *"AllocateBuffer AssumeGatherIndicesInBound ConcatBitcast Sharding".split(),
    *"GatherScatterIndicesBitpacked annotate_device_placement".split(),
    *"SPMDFullToShardShape SPMDShardToFullShape LayoutConstraint".split(),
    *"AsyncCollectiveStart AsyncCollectiveDone".split(),
}
PRODUCTS = ("__cublas$gemm", "__cublas$lt$matmul", "__onednn$matmul")


class Operations(NamedTuple):
    """Operations of one instruction.

    Attributes:
      matmul: of matrix products, by type of the factors.
      other: of arithmetic by element.
      transcendental: elements of exp, log, sin and the like.
      unknown: a custom call whose work cannot be seen.
    """

    matmul: Mapping[str, float] = MappingProxyType({})
    other: float = 0.0
    transcendental: float = 0.0
    unknown: frozenset[str] = frozenset()


def operations(computation: Computation, one: Instruction) -> Operations:
    """What one instruction computes; one that holds others computes nothing itself."""
    inputs = [a for name in one.operands for a in computation[name].shape[:1]]
    if one.opcode == "dot":
        return Operations({_factors(one, inputs): dot_flops(one, inputs[0])})
    if one.opcode == "convolution":
        return Operations({_factors(one, inputs): convolution_flops(one, *inputs[:2])})
    if one.opcode == "custom-call":
        return _custom(one, inputs)
    size = float(one.shape[0].size) if one.shape else 0.0
    if one.opcode in ("reduce", "reduce-window"):
        taken = sum(a.size for a in inputs[: len(inputs) // 2])
        results = sum(a.size for a in one.shape)
        return Operations(other=float(max(taken - results, 0)))
    if one.opcode in ELEMENTWISE:
        return Operations(other=size)
    if one.opcode in TRANSCENDENTAL:
        return Operations(transcendental=size)
    return Operations()


def _factors(one: Instruction, inputs: list[Array]) -> str:
    """The type of a product's factors, with the precision where it is raised."""
    precision = one.attribute("operand_precision") or ""
    raised = [p for p in ("highest", "high") if p in precision.split(",")]
    return ":".join([inputs[0].dtype, *raised[:1]])


def _ints(text: str | None) -> list[int]:
    return [int(i) for i in text.split(",")] if text else []


def dot_flops(one: Instruction, left: Array) -> float:
    """2 x results x length of the sums."""
    summed = _ints(one.attribute("lhs_contracting_dims"))
    return 2.0 * one.shape[0].size * math.prod(left.dims[i] for i in summed)


def convolution_flops(one: Instruction, data: Array, kernel: Array) -> float:
    """2 x multiply-adds of real elements: not of padding, nor of holes.

    Labels are as in XLA, "b01f_01io->b01f": batch, feature, input and output feature,
    and spatial dimensions by number.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    if not labels:
        raise HloError(f"{one.name}: a convolution without dim_labels")
    left, right, result = labels[1], labels[2], labels[3]
    out = one.shape[0]
    window = one.attribute("window") or ""
    spatial = [c for c in result if c.isdigit()]
    valid = 1
    for i, number in enumerate(spatial):
        valid *= _valid(
            size=data.dims[left.index(number)],
            taps=kernel.dims[right.index(number)],
            results=out.dims[result.index(number)],
            stride=_of(window, "stride", i, 1),
            low=_of(window, "pad", i, 0),
            holes=_of(window, "lhs_dilate", i, 1),
            gap=_of(window, "rhs_dilate", i, 1),
        )
    groups = int(one.attribute("batch_group_count") or 1)
    rows = out.dims[result.index("b")]
    features = out.dims[result.index("f")]
    depth = kernel.dims[right.index("i")]  # per feature group already
    return 2.0 * valid * rows * features * depth / groups


def _of(window: str, key: str, i: int, default: int) -> int:
    """The i-th value of "stride=1x2"; of "pad=0_0x1_1" the low one."""
    found = re.search(rf"(?:^| ){key}=(\S+)", window)
    return int(found[1].split("x")[i].split("_")[0]) if found else default


@functools.cache
def _valid(
    *, size: int, taps: int, results: int, stride: int, low: int, holes: int, gap: int
) -> int:
    """Pairs (tap, result) of one dimension that meet an element of the data.

    Result r and tap t meet place r * stride + t * gap - low of the data with holes,
    which holds an element if it is a multiple of `holes` within its length.
    """
    extent = (size - 1) * holes
    total = 0
    period = holes // math.gcd(stride, holes)  # results that meet elements recur
    for tap in range(taps):
        offset = tap * gap - low
        first = max(0, -(offset // stride))  # r * stride + offset >= 0
        last = min(results - 1, (extent - offset) // stride)
        for r in range(first, min(first + period, last + 1)):
            if (r * stride + offset) % holes == 0:
                total += (last - r) // period + 1
    return total


def _custom(one: Instruction, inputs: list[Array]) -> Operations:
    target = one.target
    if target in MARKERS:
        return Operations()
    estimate = re.search(r'cost_estimate\\?":\s*(\{.*?\})', one.attributes)
    if estimate:  # of a Pallas kernel, by its author
        told = json.loads(estimate[1].replace('\\"', '"'))
        return Operations(
            {inputs[0].dtype: float(told.get("flops", 0))},
            transcendental=float(told.get("transcendentals", 0)),
        )
    if target.startswith(PRODUCTS):
        summed = re.search(r'lhs_contracting_dimensions":\["?(\d+)', one.attributes)
        length = inputs[0].dims[int(summed[1]) if summed else -1]
        return Operations({inputs[0].dtype: 2.0 * one.shape[0].size * length})
    return Operations(unknown=frozenset({target}))
