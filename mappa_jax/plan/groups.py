"""Which devices a collective joins, and which axes of the mesh they vary along.

XLA writes replica groups in three ways: as lists, {{0,1},{2,3}}; as an iota that is
reshaped and transposed, [2,4]<=[4,2]T(1,0) (two groups of four); and as axes of a
mesh, mesh['x'=2,'y'=4] {'y'}, whose devices may be an iota of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mappa_jax.plan.hlo import HloError, Instruction

Groups = np.ndarray  # [groups, members] int, numbers of devices in the mesh's order


def replica_groups(instruction: Instruction, devices: int) -> Groups:
    """The groups of a collective; an empty list means all devices together.

    Raises:
      HloError: the groups are written in a way that is not known.
    """
    found = re.search(r"(?:^|[ ,])replica_groups=", instruction.attributes)
    if not found:
        return np.arange(devices)[None]
    return parse_groups(instruction.attributes[found.end() :], devices)


def parse_groups(text: str, devices: int) -> Groups:
    """The groups at the start of `text`."""
    if text.startswith("mesh["):
        return _mesh_groups(text)
    if text.startswith("["):
        return _iota(text)
    if text.startswith("{}"):
        return np.arange(devices)[None]
    listed = re.match(r"\{(\{[\d,]*\}(?:,\{[\d,]*\})*)\}", text)
    if not listed:
        raise HloError(f"replica groups not understood: {text[:100]}")
    rows = re.findall(r"\{([\d,]*)\}", listed[1])
    return np.asarray([[int(i) for i in row.split(",")] for row in rows])


def pairs(instruction: Instruction) -> Groups:
    """The (source, target) pairs of a collective-permute, [pairs, 2]."""
    value = instruction.attribute("source_target_pairs")
    return np.asarray(
        [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", value or "")]
    ).reshape(-1, 2)


_IOTA = re.compile(r"\[([\d,]+)\](?:<=\[([\d,]+)\](?:T\(([\d,]+)\))?)?")


def _ints(text: str) -> list[int]:
    return [int(i) for i in text.split(",")]


def _iota(text: str) -> np.ndarray:
    """[2,4]<=[4,2]T(1,0), or [2,4]T(1,0) where the second shape is left out."""
    short = re.match(r"\[([\d,]+)\]T\(([\d,]+)\)", text)
    if short:  # of a mesh's device_ids: the shape that is transposed
        shape = _ints(short[1])
        return np.arange(math.prod(shape)).reshape(shape).transpose(_ints(short[2]))
    found = _IOTA.match(text)
    if not found:
        raise HloError(f"replica groups not understood: {text[:100]}")
    shape = _ints(found[1])
    base = _ints(found[2]) if found[2] else shape
    out = np.arange(math.prod(base)).reshape(base)
    out = out.transpose(_ints(found[3])) if found[3] else out
    return out.reshape(shape)


def _mesh_groups(text: str) -> Groups:
    found = re.match(
        r"mesh\[(?P<axes>[^\]]*)\](?:, device_ids=\((?P<ids>.*?)\))? "
        r"\{(?P<names>[^}]*)\}",
        text,
    )
    if not found:
        raise HloError(f"replica groups not understood: {text[:100]}")
    axes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", found["axes"])}
    total = math.prod(axes.values())
    ids = _iota(found["ids"]) if found["ids"] else np.arange(total)
    # An axis may be taken in part: 'x':(2)4 is the part of size 4 after one of size 2.
    parts: dict[str, tuple[int, int]] = {}
    names = []
    for name, before, size in re.findall(
        r"'([^']+)'(?::\((\d+)\)(\d+))?", found["names"]
    ):
        parts[name] = (int(before), int(size)) if before else (1, axes[name])
        names.append(name)
    shape: list[int] = []
    taken: dict[str, int] = {}
    for name, whole in axes.items():
        before, size = parts.get(name, (1, 1))
        taken[name] = len(shape) + 1
        shape += [before, size, whole // before // size]
    inside = [taken[name] for name in names]
    outside = [i for i in range(len(shape)) if i not in inside]
    members = math.prod(shape[i] for i in inside)
    grid = ids.reshape(shape).transpose(outside + inside)
    return grid.reshape(-1, members)


def axes_of(members: Sequence[int], mesh: Mapping[str, int]) -> str:
    """The mesh axes along which the members of a group differ, "data+fsdp".

    Args:
      members: numbers of devices in the mesh's order.
      mesh: axis -> size, in the mesh's order.

    Returns:
      Names joined by "+", with "/2" behind one of which only so large a part is
      joined; "" for a group of one.
    """
    places = np.asarray(np.unravel_index(np.asarray(members), tuple(mesh.values())))
    out = []
    for axis, where in zip(mesh, places, strict=True):
        count = len(set(where.tolist()))
        if count > 1:
            part = "" if count == mesh[axis] else f"/{mesh[axis] // count}"
            out.append(axis + part)
    return "+".join(out)
