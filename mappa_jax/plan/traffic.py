"""Bytes of main memory that one instruction reads and writes."""

from __future__ import annotations

from collections.abc import Iterable

from mappa_jax.plan.arithmetic import MARKERS
from mappa_jax.plan.hlo import Array, Computation, Instruction, Module

SLICES = ("dynamic-slice", "slice", "gather")
# Seen through: the same data under another name.
ALIASES = ("bitcast", "copy", "convert", "reshape", "transpose")


def moved(module: Module, computation: Computation, one: Instruction) -> float:
    """Bytes read and written; a fusion's inner values never leave the chip."""
    if one.opcode == "fusion":
        return _fusion(module, computation, one)
    if one.opcode == "custom-call" and one.target in MARKERS:
        return 0.0
    inputs = [computation[name].shape for name in one.operands]
    flat = [a for shape in inputs for a in shape]
    out = list(one.shape)
    if one.opcode in SLICES:
        return _main(out) * 2 + _main(flat[1:])
    if one.opcode == "dynamic-update-slice":
        return 2 * _main(flat[1:2])
    if one.opcode == "scatter":  # indices and updates in; places read and written
        return _main(flat[1:]) + 2 * _main(flat[-1:])
    if one.opcode.endswith("-start"):  # (operands.., results.., bookkeeping)
        return _started(one, flat)
    return _main(flat) + _main(out)


def _main(arrays: Iterable[Array]) -> float:
    """Bytes of those that lie in main memory."""
    return float(sum(a.bytes for a in arrays if a.space == 0))


def _started(one: Instruction, inputs: list[Array]) -> float:
    """What an asynchronous copy, slice or collective moves, of the shape that its start
    names: copy-start (result, operand, ..), all-reduce-start the results alone, and the
    others (operands, results, ..)."""
    if one.opcode == "copy-start":
        return _main(inputs) + _main(one.shape[:1])
    count = len(inputs)
    whole = len(one.shape) > count
    results = one.shape[count : 2 * count] if whole else one.shape
    if one.opcode == "slice-start":  # reads no more than it takes
        taken = sum(a.bytes for a in results)
        return taken * (inputs[0].space == 0) + _main(results)
    return _main(inputs) + _main(results)


def _fusion(module: Module, computation: Computation, one: Instruction) -> float:
    inner = module.computations[one.called("calls") or ""]
    total = 0.0
    for parameter, name in zip(inner.parameters, one.operands, strict=True):
        for array in computation[name].shape:
            if array.space == 0:
                share = min(_taken(module, inner, parameter) / max(array.size, 1), 1.0)
                total += share * array.bytes
    root = inner.root
    if root.target == "AsyncCollectiveStart":
        return total
    results = (
        [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    )
    for result, array in zip(results, one.shape, strict=False):
        if array.space == 0:
            share = min(_put(module, inner, result) / max(array.size, 1), 1.0)
            total += share * array.bytes
    return total


def _taken(module: Module, computation: Computation, value: Instruction) -> float:
    """Elements of a value that the instructions of a fusion read."""
    users = computation.users.get(value.name, ())
    whole = float(value.shape[0].size)
    if value.root:
        return whole
    total = 0.0
    for user in users:
        first = user.operands[0] == value.name
        if user.opcode in SLICES and first:
            total += user.shape[0].size
        elif user.opcode == "dynamic-update-slice" and first:
            continue  # in place: what is overwritten is not read
        elif user.target in MARKERS or (user.root and user.opcode == "tuple"):
            continue  # handed on
        elif user.chained:
            total += whole * computation.starts_chain
        elif user.opcode == "scatter" and first:
            total += computation[user.operands[-1]].shape[0].size
        elif user.opcode in ALIASES:
            total += _taken(module, computation, user)
        elif user.opcode == "fusion":
            inner = module.computations[user.called("calls") or ""]
            for parameter, given in zip(inner.parameters, user.operands, strict=True):
                if given == value.name:
                    total += _taken(module, inner, parameter)
        else:
            return whole
    return total


def _put(module: Module, computation: Computation, result: Instruction) -> float:
    """Elements of a fusion's result that it writes: of an update in place only those
    that are updated."""
    if result.opcode == "parameter" or result.chained:
        return 0.0  # handed on
    while result.opcode in ALIASES:
        result = computation[result.operands[0]]
    if result.opcode == "dynamic-update-slice":
        return float(computation[result.operands[1]].shape[0].size)
    if result.opcode == "scatter":
        return float(computation[result.operands[-1]].shape[0].size)
    if result.opcode == "fusion":
        inner = module.computations[result.called("calls") or ""]
        if inner.root.opcode != "tuple":
            return _put(module, inner, inner.root)
    return float(result.shape[0].size)
