"""What a compiled program keeps in a device's main memory, by kind."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax

from mappa_jax.plan.hlo import Module

KINDS = ("params", "optimizer", "kv", "other")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device while a program runs.

    Attributes:
      arguments: by kind: "params", "optimizer", "kv", "other" (batches, requests).
      results: of those that do not take an argument's place.
      temporaries: XLA's scratch space, activations above all.
      code: the program itself.
    """

    arguments: Mapping[str, float]
    results: float
    temporaries: float
    code: float

    @property
    def total(self) -> float:
        parts = (self.results, self.temporaries, self.code)
        return sum(self.arguments.values()) + sum(parts)


def kind_of(argument: str) -> str:
    """The kind of an argument by its path, "state.groups[0].opt_state[1].mu['q']"."""
    if "opt_state" in argument:
        return "optimizer"
    if re.search(r"\bcache\b", argument):
        return "kv"
    weights = r"((state\.)?(groups\[\d+\]\.)?trainable|frozen|bases?|weights)\b"
    if re.match(weights, argument):
        return "params"
    return "other"


def arguments(module: Module) -> dict[str, float]:
    """Bytes of a program's arguments in main memory by kind, with padding."""
    out = dict.fromkeys(KINDS, 0.0)
    for parameter in module.entry.parameters:
        kind = kind_of(parameter.op_name)
        out[kind] += sum(a.padded_bytes for a in parameter.shape if a.space == 0)
    return out


def fresh_results(module: Module) -> float:
    """Bytes of the results that do not take an argument's place."""
    aliases = re.search(r"input_output_alias=\{(.*?) \}", module.header)
    taken = re.findall(r"\{(\d*)\}: \(", aliases[1]) if aliases else []
    places = {int(index or 0) for index in taken}
    return float(
        sum(
            array.padded_bytes
            for i, array in enumerate(module.entry.root.shape)
            if i not in places
        )
    )


def of_compiled(module: Module, compiled: jax.stages.Compiled) -> Memory:
    """Of a program that has compiled."""
    stats = compiled.memory_analysis()
    by_kind = arguments(module)
    # Constants and the like that the text does not show as arguments.
    by_kind["other"] += max(0.0, stats.argument_size_in_bytes - sum(by_kind.values()))
    return Memory(
        by_kind,
        results=float(stats.output_size_in_bytes - stats.alias_size_in_bytes),
        temporaries=float(stats.temp_size_in_bytes),
        code=float(stats.generated_code_size_in_bytes),
    )


def of_overflow(module: Module, needed: float) -> Memory:
    """Of a program that does not fit, which needs so many bytes in all."""
    by_kind, results = arguments(module), fresh_results(module)
    rest = needed - sum(by_kind.values()) - results
    return Memory(by_kind, results, max(0.0, rest), 0.0)


def held(tree: Any) -> float:
    """Bytes on one device of a tree of ShapeDtypeStructs with shardings."""

    def one(x: jax.ShapeDtypeStruct) -> float:
        size = 1
        for side in x.sharding.shard_shape(x.shape):
            size *= side
        return float(size * x.dtype.itemsize)

    return sum(map(one, jax.tree.leaves(tree)))


def largest(module: Module) -> tuple[str, float, str]:
    """(shape, bytes with padding, where it is made) of the largest array that a
    program writes to main memory."""
    fused = {
        one.called("calls")
        for computation in module.computations.values()
        for one in computation
        if one.opcode == "fusion"
    }
    best: tuple[str, float, str] = ("", 0.0, "")
    for name, computation in module.computations.items():
        if name in fused:
            continue
        for one in computation:
            if one.opcode in ("parameter", "get-tuple-element", "tuple", "bitcast"):
                continue
            for array in one.shape:
                if array.space == 0 and array.padded_bytes > best[1]:
                    dims = ",".join(map(str, array.dims))
                    text = f"{array.dtype}[{dims}]"
                    best = (text, float(array.padded_bytes), one.op_name)
    return best
