"""How often a loop turns, where the program itself says so."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import NamedTuple

from mappa_jax.plan.hlo import Computation, Instruction, Module


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """A loop, where it stands, and the loop around it."""

    module: Module
    loop: Instruction
    home: Computation
    body: Computation
    condition: Computation
    outer: Frame | None


class Element(NamedTuple):
    """An element of the tuple that a loop carries, in `computation`."""

    index: int


def turns(frame: Frame) -> int | None:
    """The turns of a loop, or None if they are known when it runs only.

    XLA writes known_trip_count on some backends. Else the loop must count: its
    condition compares a carried element with a constant, or with an element that the
    body hands on and that started as a constant, and the body adds a constant.
    """
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', frame.loop.attributes)
    if known:
        return int(known[1])
    root = _unfused(frame.module, frame.condition, frame.condition.root)
    if root is None or root[1].opcode != "compare":
        return None
    where, compare = root
    left, right = (
        _traced(frame.module, frame.condition, where, name) for name in compare.operands
    )
    direction = compare.attribute("direction")
    if isinstance(right, Element) and not isinstance(left, Element):
        left, right = right, left
        direction = {"GT": "LT", "GE": "LE"}.get(direction or "", "")
    if not isinstance(left, Element):
        return None
    start = _initial(frame, left.index)
    step = _step(frame, left.index)
    limit = right
    if isinstance(limit, Element):
        limit = _initial(frame, limit.index) if _kept(frame, limit.index) else None
    if None in (start, step, limit) or step <= 0 or direction not in ("LT", "LE", "NE"):
        return None
    last = limit + 1 if direction == "LE" else limit
    return max(0, math.ceil((last - start) / step))


def _unfused(
    module: Module, computation: Computation, one: Instruction
) -> tuple[list[tuple[Computation, Instruction]], Instruction] | None:
    """An instruction, or the root of the fusion that it is, with the way in."""
    way: list[tuple[Computation, Instruction]] = []
    while one.opcode in ("fusion", "call"):
        name = one.called("calls") or one.called("to_apply")
        if name not in module.computations:
            return None
        way.append((computation, one))
        computation = module.computations[name]
        one = computation.root
    return [*way, (computation, one)], one


def _traced(
    module: Module,
    body: Computation,
    way: list[tuple[Computation, Instruction]],
    name: str,
) -> int | Element | None:
    """What a name within a fusion stands for: a constant, or a carried element."""
    level = len(way) - 1
    while True:
        computation = way[level][0]
        one = computation[name]
        if one.opcode == "constant":
            return _value(one)
        if one.opcode in ("copy", "bitcast", "convert"):
            name = one.operands[0]
        elif one.opcode == "get-tuple-element" and level == 0:
            source = body[one.operands[0]]
            carried = source.opcode == "parameter"
            return Element(int(one.attribute("index") or 0)) if carried else None
        elif one.opcode == "parameter" and level > 0:
            level -= 1
            name = way[level][1].operands[int(one.literal)]
        else:
            return None


def _value(constant: Instruction) -> int | None:
    found = re.fullmatch(r"-?\d+", constant.literal.strip())
    return int(found[0]) if found else None


COPIES = ("copy", "bitcast", "copy-start", "copy-done")


def _returned(frame: Frame, index: int) -> Instruction | None:
    """What the body hands on as an element, whatever copies it."""
    root = frame.body.root
    if root.opcode != "tuple":
        return None
    one = frame.body[root.operands[index]]
    while one.opcode in COPIES:
        one = frame.body[one.operands[0]]
    return one


def _kept(frame: Frame, index: int) -> bool:
    """Whether the body hands an element on as it was."""
    one = _returned(frame, index)
    return (
        one is not None
        and one.opcode == "get-tuple-element"
        and int(one.attribute("index") or 0) == index
        and frame.body[one.operands[0]].opcode == "parameter"
    )


def _step(frame: Frame, index: int) -> int | None:
    """What the body adds to an element in each turn."""
    one = _returned(frame, index)
    found = one and _unfused(frame.module, frame.body, one)
    if not found or found[1].opcode != "add":
        return None
    way, add = found
    sides = [_traced(frame.module, frame.body, way, name) for name in add.operands]
    if isinstance(sides[1], Element):
        sides.reverse()
    if sides[0] != Element(index):
        return None
    step = sides[1]
    if isinstance(step, Element):  # a constant that is carried along
        step = _initial(frame, step.index) if _kept(frame, step.index) else None
    return step


def _initial(frame: Frame, index: int) -> int | None:
    """The constant that an element starts as, also where loops outside carry it."""
    tuple_ = frame.home[frame.loop.operands[0]]
    if tuple_.opcode != "tuple":
        return None
    name, home, outer = tuple_.operands[index], frame.home, frame.outer
    while True:
        one = home[name]
        if one.opcode == "constant":
            return _value(one)
        if one.opcode in ("copy", "bitcast"):
            name = one.operands[0]
        elif one.opcode == "get-tuple-element" and outer is not None:
            at = int(one.attribute("index") or 0)
            inside = home[one.operands[0]].opcode == "parameter"
            if not inside or home is not outer.body or not _kept(outer, at):
                return None
            return _initial(outer, at)
        else:
            return None
