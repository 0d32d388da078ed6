"""Counts what a compiled program does: operations, bytes of memory, collectives.

XLA's own `cost_analysis` counts the body of a loop once, however often it turns. Here
every loop is multiplied out: by the count that XLA knows, by the one that its
condition shows, or, where the count reaches the program as an argument, by the one
that the caller expects.

What is counted, per device:
  * matrix work: 2 x multiply-adds of `dot` and `convolution`, by the type of the
    factors; a convolution's padding and holes are not counted (XLA rewrites batched
    products to such convolutions).
  * other arithmetic: one operation per element of an elementwise instruction, and one
    per element that a reduction takes in, as XLA counts.
  * bytes: what a fusion reads and writes in main memory. A slice of a larger array
    counts as large as it is, and so does an update in place. On-chip memory and the
    host's are free.
  * collectives: bytes that a device must send, with the algorithms of a ring (n
    devices, b bytes of operand): all-gather b(n-1), reduce-scatter and all-to-all
    b(n-1)/n, all-reduce 2b(n-1)/n (Thakur et al. 2005, doi 10.1177/1094342005051521),
    permutes b.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping

from mappa_jax.plan import arithmetic, groups, loops, traffic
from mappa_jax.plan.hlo import Computation, HloError, Instruction, Module


@dataclasses.dataclass(frozen=True)
class Collective:
    """A kind of collective among one group of devices.

    Attributes:
      kind: "all-gather", "all-reduce", ...
      members: one of the groups, as numbers of devices in the mesh's order; of a
        collective-permute, its devices.
    """

    kind: str
    members: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one device does.

    Attributes:
      matmul: type of the factors ("bf16", or "f32:highest") -> operations.
      other: arithmetic by element.
      transcendental: elements of exp, log, sin and the like.
      bytes: read and written in main memory.
      sent: collective -> bytes that the device sends.
      calls: collective -> how often.
      unknown: targets of custom calls whose operations cannot be seen.
    """

    matmul: Mapping[str, float] = dataclasses.field(default_factory=dict)
    other: float = 0.0
    transcendental: float = 0.0
    bytes: float = 0.0
    sent: Mapping[Collective, float] = dataclasses.field(default_factory=dict)
    calls: Mapping[Collective, float] = dataclasses.field(default_factory=dict)
    unknown: frozenset[str] = frozenset()

    @property
    def flops(self) -> float:
        """As XLA's cost_analysis means it: without the transcendental."""
        return sum(self.matmul.values()) + self.other

    def __add__(self, more: Cost) -> Cost:
        return Cost(
            _sum(self.matmul, more.matmul),
            self.other + more.other,
            self.transcendental + more.transcendental,
            self.bytes + more.bytes,
            _sum(self.sent, more.sent),
            _sum(self.calls, more.calls),
            self.unknown | more.unknown,
        )

    def times(self, turns: float) -> Cost:
        def scaled(table: Mapping) -> dict:
            return {key: turns * value for key, value in table.items()}

        return Cost(
            scaled(self.matmul),
            turns * self.other,
            turns * self.transcendental,
            turns * self.bytes,
            scaled(self.sent),
            scaled(self.calls),
            self.unknown,
        )


def _sum(a: Mapping, b: Mapping) -> dict:
    out = collections.defaultdict(float, a)
    for key, value in b.items():
        out[key] += value
    return dict(out)


@dataclasses.dataclass(frozen=True)
class Expected:
    """What the caller knows of a program's run.

    Attributes:
      turns: of the loops whose count is an argument, the outermost first; loops side
        by side at one depth turn alike.
      branch: which branch of a conditional is taken; None: the costliest.
    """

    turns: tuple[float, ...] = ()
    branch: int | None = None


def count(module: Module, devices: int, expected: Expected = Expected()) -> Cost:
    """What one of `devices` devices does in a run of the program.

    Raises:
      HloError: a loop's turns cannot be known, or a form is not understood.
    """
    return _Walker(module, devices, expected).control(module.entry, None, 0)


# What costs nothing: names for what is there already, and the ends of what has begun.
FREE = {
    *"parameter constant tuple get-tuple-element bitcast after-all domain".split(),
    *"partition-id replica-id add-dependency opt-barrier".split(),
    *"copy-done slice-done async-done async-update send-done recv-done".split(),
    *"all-gather-done all-reduce-done collective-permute-done".split(),
}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class _Walker:
    module: Module
    devices: int
    expected: Expected

    def control(
        self, computation: Computation, frame: loops.Frame | None, depth: int
    ) -> Cost:
        """The cost of a computation whose instructions run one after another.

        Args:
          computation: the entry, or the body of a loop or branch.
          frame: the loop that it is the body or the condition of.
          depth: loops around it whose turns the caller gives.
        """
        total = Cost()
        for one in computation:
            if one.opcode == "while":
                total += self._while(computation, one, frame, depth)
            elif one.opcode == "conditional":
                total += self._conditional(one, depth)
            elif name := _runs(one):
                total += self.control(self._computation(name, one), None, depth)
            elif one.opcode not in FREE:
                moved = traffic.moved(self.module, computation, one)
                total += self.work(computation, one) + Cost(bytes=moved)
        return total

    def _computation(self, name: str | None, of: Instruction) -> Computation:
        if name not in self.module.computations:
            raise HloError(f"{of.name}: its computation {name!r} is not in the text")
        return self.module.computations[name]

    def _while(self, computation, one, frame, depth) -> Cost:
        body = self._computation(one.called("body"), one)
        condition = self._computation(one.called("condition"), one)
        inner = loops.Frame(self.module, one, computation, body, condition, frame)
        turns = loops.turns(inner)
        if turns is None:
            given = self.expected.turns
            if depth >= len(given):
                raise HloError(
                    f"{one.name} ({one.op_name}): XLA does not say how often this loop "
                    f"turns, and {len(given)} nested loops of that kind were expected"
                )
            turns, depth = given[depth], depth + 1
        once = self.control(body, inner, depth) + self.control(condition, inner, depth)
        return once.times(turns)

    def _conditional(self, one, depth) -> Cost:
        listed = one.attribute("branch_computations")
        if listed:
            names = re.findall(r"%?([\w.$-]+)", listed)
        else:  # in the order of jax.lax.cond's index
            names = [one.called(f"{b}_computation") for b in ("false", "true")]
        costs = [
            self.control(self._computation(name, one), None, depth) for name in names
        ]
        if self.expected.branch is not None:
            return costs[min(self.expected.branch, len(costs) - 1)]
        return max(costs, key=lambda cost: (cost.flops, cost.bytes))

    def work(self, computation: Computation, one: Instruction) -> Cost:
        """Arithmetic and collectives of an instruction, and of those fused in it."""
        kind = one.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            if one.chained and not computation.starts_chain:
                return Cost()  # counted where it began
            return self._collective(kind, computation, one)
        if one.opcode in ("fusion", "call", "async-start"):
            name = one.called("to_apply" if one.opcode == "call" else "calls")
            inner = self._computation(name, one)
            parts = (self.work(inner, i) for i in inner if i.opcode not in FREE)
            return sum(parts, Cost())
        found = arithmetic.operations(computation, one)
        return Cost(
            found.matmul, found.other, found.transcendental, unknown=found.unknown
        )

    def _collective(self, kind, computation, one) -> Cost:
        if kind == "collective-permute":
            among = groups.pairs(one)
            members, n = tuple(sorted({*among.ravel().tolist()})), 2
        else:
            among = groups.replica_groups(one, self.devices)
            members, n = tuple(among[0].tolist()), among.shape[1]
        size = sum(sum(a.bytes for a in computation[o].shape) for o in one.operands)
        share = {
            "all-gather": n - 1,
            "reduce-scatter": (n - 1) / n,
            "all-to-all": (n - 1) / n,
            "all-reduce": 2 * (n - 1) / n,
            "collective-permute": 1,
            "collective-broadcast": 1,
        }[kind]
        if len(members) < 2:
            return Cost()
        key = Collective(kind, members)
        return Cost(sent={key: size * share}, calls={key: 1.0})


def _runs(one: Instruction) -> str | None:
    """The computation that runs in an instruction's place."""
    if one.opcode == "call":
        return one.called("to_apply")
    return one.called("calls") if one.opcode == "async-start" else None
