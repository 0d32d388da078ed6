"""Reads the text of a compiled XLA program: computations, instructions, shapes.

The text is what `jax.stages.Compiled.as_text` gives (and what XLA leaves behind when
a program does not fit); its grammar is XLA's hlo_parser. Only what counting needs is
kept.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

# Bits of an element.
BITS = {
    "pred": 8,
    **{f"{sign}{bits}": bits for sign in "su" for bits in (2, 4, 8, 16, 32, 64)},
    **{"bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128},
    **{"f4e2m1fn": 4, "token": 0, "opaque": 0},
}


class HloError(ValueError):
    """The program has a form that cannot be counted; says which and where."""


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape, as a device lays it out.

    Attributes:
      dtype: XLA's name of the element type.
      dims: its dimensions.
      layout: what stands in braces: minor-to-major order, tiles, memory space.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        return -(-self.size * _bits(self.dtype) // 8)

    @property
    def space(self) -> int:
        """The memory space: 0 is the device's main memory (HBM); on TPU 1 is VMEM and
        5 the host's memory."""
        found = re.search(r"S\((\d+)\)", self.layout)
        return int(found[1]) if found else 0

    @functools.cached_property
    def padded_bytes(self) -> int:
        """Bytes with the padding of the layout's first tile, T(a,b)."""
        tile = re.search(r"T\(([\d,]+)\)", self.layout)
        order = re.match(r"[\d,]+", self.layout)
        if not tile or not order or not self.dims:
            return self.bytes
        sides = [int(t) for t in tile[1].split(",")]
        minor = [int(i) for i in order[0].split(",")]
        dims = list(self.dims)
        for axis, side in zip(minor, reversed(sides), strict=False):
            dims[axis] = -(-dims[axis] // side) * side
        return -(-math.prod(dims) * _bits(self.dtype) // 8)


def _bits(dtype: str) -> int:
    if dtype in BITS:
        return BITS[dtype]
    if dtype.startswith("f8"):
        return 8
    raise HloError(f"element type {dtype!r} is not known")


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without %.
      opcode: "dot", "fusion".
      shape: the arrays of the result, a tuple's in order, nested ones flattened.
      operands: names.
      attributes: the rest of the line.
      root: whether this is the computation's result.
      literal: what stands between the parentheses (of a constant its value).
    """

    name: str
    opcode: str
    shape: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool
    literal: str

    def attribute(self, key: str) -> str | None:
        """The value of `key=...`: one word, or what stands in its braces."""
        found = re.search(rf"(?:^|[ ,]){key}=", self.attributes)
        if not found:
            return None
        rest = self.attributes[found.end() :]
        if rest.startswith("{"):
            return rest[1 : _closing(rest, 0)]
        word = re.match(r"[^, ]+", rest)
        return word[0] if word else None

    def called(self, key: str) -> str | None:
        """The name of the computation that an attribute names."""
        value = self.attribute(key)
        return value.removeprefix("%") if value else None

    @property
    def target(self) -> str:
        """Of a custom call."""
        return (self.attribute("custom_call_target") or "").strip('"')

    @property
    def chained(self) -> bool:
        """Whether this is one step of a collective that XLA:TPU has spread over
        several fusions, each of which names it again."""
        return "chain_id=" in self.attributes

    @property
    def op_name(self) -> str:
        """Where in the traced function this comes from, "jit(f)/while/body/dot"."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return re.sub(r"\\(.)", r"\1", found[1]) if found else ""


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    """Instructions by name, in the order of the text."""

    name: str
    instructions: Mapping[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.root)

    @functools.cached_property
    def starts_chain(self) -> bool:
        """Whether a collective begins here that goes on in other fusions."""
        return any(i.target == "AsyncCollectiveStart" for i in self)

    @functools.cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """In the order of their numbers."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return tuple(sorted(found, key=lambda i: int(i.literal)))

    @functools.cached_property
    def users(self) -> Mapping[str, tuple[Instruction, ...]]:
        """Name -> the instructions that read it."""
        out: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for name in dict.fromkeys(instruction.operands):
                out.setdefault(name, []).append(instruction)
        return {name: tuple(found) for name, found in out.items()}

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
    """A program: its computations by name, the one that starts, and the line above
    them all, which says what results take the place of arguments."""

    computations: Mapping[str, Computation]
    entry: Computation
    header: str = ""


_HEADER = re.compile(r"^(ENTRY )?%?([\w.$-]+) .*-> .*\{$")
_START = re.compile(r"^\s+(ROOT )?%?([\w.$-]+) = ")


def parse(text: str) -> Module:
    """The module of XLA's text.

    Raises:
      HloError: a line is not understood.
    """
    computations: dict[str, Computation] = {}
    entry, title = None, ""
    name, lines = "", None
    for line in text.splitlines():
        if line.startswith("HloModule"):
            title = line
        header = _HEADER.match(line)
        if header and lines is None:
            name, lines = header[2], {}
            entry = name if header[1] else entry
        elif line.startswith("}") and lines is not None:
            computations[name] = Computation(name, lines)
            lines = None
        elif lines is not None and (start := _START.match(line)):
            instruction = _instruction(start, line)
            lines[instruction.name] = instruction
    if entry is None:
        raise HloError("no ENTRY computation: not the text of an XLA program")
    return Module(computations, computations[entry], title)


def _instruction(start: re.Match[str], line: str) -> Instruction:
    rest = line[start.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    found = re.match(r" ?([\w-]+)\(", rest[end:])
    if end <= 0 or not found:
        raise HloError(f"not understood: {line.strip()[:200]}")
    opened = end + found.end() - 1
    closed = _closing(rest, opened)
    inside = rest[opened + 1 : closed]
    return Instruction(
        name=start[2],
        opcode=found[1],
        shape=arrays(rest[:end]),
        operands=tuple(re.findall(r"%([\w.$-]+)", inside)),
        attributes=rest[closed + 1 :].lstrip(", "),
        root=bool(start[1]),
        literal=inside,
    )


_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a shape's text, "(f32[2,3]{1,0}, s32[])"."""
    text = re.sub(r"/\*.*?\*/", "", text)
    return tuple(
        Array(
            found[1],
            tuple(int(d.lstrip("<=")) for d in found[2].split(",") if d),
            found[3] or "",
        )
        for found in _ARRAY.finditer(text)
    )


_PAIRS = {"(": ")", "{": "}", "[": "]"}


def _closing(text: str, at: int) -> int:
    """The place of the bracket that closes the one at `at`; strings are skipped."""
    opened, closed = text[at], _PAIRS[text[at]]
    depth, i = 0, at
    while i < len(text):
        char = text[i]
        if char == '"':
            i += 1
            while text[i] != '"':
                i += 2 if text[i] == "\\" else 1
        elif char == opened:
            depth += 1
        elif char == closed:
            depth -= 1
            if not depth:
                return i
        i += 1
    raise HloError(f"no closing {closed!r} in: {text[at : at + 200]}")
