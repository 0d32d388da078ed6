"""From a config and devices that need not be there to a plan.

The programs are those that a run compiles (`Engine.lowered`, `Learner.lowered`); no
weights are loaded, only their shapes and places are used.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mappa_jax.assemble import make_team, updates_beside
from mappa_jax.config import Config
from mappa_jax.learning.update import Learner, state_shapes
from mappa_jax.models.config import ModelConfig
from mappa_jax.models.policy import Policy, placed_shapes
from mappa_jax.parallel import mesh as meshlib
from mappa_jax.plan import compiling, memory, roofline, workload
from mappa_jax.plan.count import Cost, count
from mappa_jax.plan.roofline import Fabric
from mappa_jax.sampling.engine import Program

STOP_IDS = 2  # what the models' generation configs name; its size changes nothing
SAMPLING = (*workload.FILLING, "decode")  # programs that work on slots
ROLLOUT = (*SAMPLING, "round")


@dataclasses.dataclass(frozen=True, eq=False)
class Phase:
    """One program of the run.

    Attributes:
      name: "prefill/1024", "decode", "reference", "update" ("/1" behind it for a
        further group of agents).
      use: how an iteration calls it.
      cost: of one call, per chip.
      bounds: of one call.
      traffic: its collectives by kind and axes.
      hbm: bytes per chip by kind while it runs, what other phases keep included.
      largest: (shape, bytes, where it is made) of its largest array.
      complete: whether it compiled; see `compiling.Built`.
      compile_seconds: what that took.
    """

    name: str
    use: workload.Use
    cost: Cost
    bounds: roofline.Bounds
    traffic: Sequence[roofline.Traffic]
    hbm: Mapping[str, float]
    largest: tuple[str, float, str]
    complete: bool
    compile_seconds: float

    @property
    def total(self) -> float:
        return sum(self.hbm.values())

    @property
    def kind(self) -> str:
        """Its name without lengths and groups: "prefill" of "prefill/512"."""
        return workload.parts(self.name)[0]

    @property
    def stage(self) -> str:
        """Which part of an iteration it belongs to: rollout, credit or update."""
        if self.kind in ROLLOUT:
            return "rollout"
        return "update" if self.kind == "update" else "credit"

    @property
    def seconds(self) -> float:
        """Of all its calls in an iteration."""
        return self.use.calls * self.bounds.seconds


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What a run of this config needs and takes on these devices.

    `beside` is what the sampler holds during the update, bytes per chip by kind.
    """

    config: Config
    team: tuple[Policy, ...]
    fabric: Fabric
    load: workload.Load
    phases: Sequence[Phase]
    beside: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def chips(self) -> int:
        return math.prod(self.fabric.mesh.values())

    @property
    def usable(self) -> float:
        """Bytes of main memory per chip that programs may use."""
        return self.fabric.chip.usable

    @property
    def fits(self) -> bool:
        """Whether every program that was compiled does."""
        return all(p.complete and p.total <= self.usable for p in self.phases)

    @property
    def whole(self) -> bool:
        """Whether all parts of an iteration were compiled."""
        kinds = {p.kind for p in self.phases}
        return kinds >= {"prefill", "decode", "credit", "update"}


def make_plan(
    config: Config,
    shapes: Sequence[ModelConfig],
    fabric: Callable[[Mesh], Fabric],
    devices: Sequence[Any],
    load: workload.Load,
    *,
    tpu: bool,
    only: Sequence[str] = (),
    note: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Compiles the run's programs for `devices` and counts them.

    Args:
      config: of the run.
      shapes: the agents' architectures, in order.
      fabric: where a mesh's devices stand.
      devices: of a topology, or this host's.
      load: assumed lengths of the actions.
      tpu: whether the devices are a TPU's.
      only: programs to compile, by the start of their names; default: all but the
        prefills that the load does not call, of which only the longest matters.
      note: told of each program before it is compiled.

    Raises:
      ConfigError: the config does not fit the mesh; the key is named.
    """
    mesh = meshlib.make_mesh(config.mesh, devices)
    team = make_team(config, shapes, mesh)
    programs, resident = lowered(config, team, mesh)
    where = fabric(mesh)
    uses = workload.uses(config, team, load, list(programs))
    chosen = [n for n in programs if _wanted(n, config, uses, only)]
    phases = []
    for name in chosen:
        note(name)
        built = compiling.build(programs[name], tpu=tpu)
        phases.append(_phase(name, built, uses[name], where, resident))
    beside = {}
    if updates_beside(config, mesh):
        beside = {"params": resident["own"], "kv": resident["kv"]}
    plan = Plan(config, team, where, load, phases, beside)
    return together(plan) if plan.whole else plan


def _wanted(name: str, config: Config, uses, only: Sequence[str]) -> bool:
    if only:
        return name.startswith(tuple(only))
    kind, length, _ = workload.parts(name)
    largest = config.sampler.prompt_buckets[-1]
    return kind != "prefill" or bool(uses[name].calls) or length == largest


def lowered(
    config: Config, team: Sequence[Policy], mesh: Mesh
) -> tuple[dict[str, jax.stages.Lowered], dict[str, float]]:
    """The programs of a run that work by name, and what stays in memory: bytes per chip
    by kind. Left out are those that only empty slots or copy prompts or weights.

    Names as in `Phase.name`: the first group's are without its number. The kind "own"
    is what the sampler has instead of the weights: of int8, or copies.
    """
    dtype = jnp.dtype(config.param_dtype)
    weights = [placed_shapes(policy, mesh, dtype) for policy in team]
    beside = updates_beside(config, mesh)
    samplers = [
        Program(policy, config.sampler, mesh, STOP_IDS, beside) for policy in team
    ]
    state = state_shapes(tuple(team), config, mesh)
    frozen = [base for _, base in weights]
    learner = Learner(tuple(team), config, mesh)
    programs = {
        f"{name}/{g}": program
        for g, one in enumerate(samplers)
        for name, program in one.lowered(*weights[g]).items()
        if name.split("/")[0] not in ("empty", "clone", "move", "narrow", "copy")
    } | learner.lowered(state, frozen)
    caches = [
        policy.pools * memory.held(one.slot_shapes().cache)
        for policy, one in zip(team, samplers, strict=True)
    ]
    groups = [group for group in state.groups if group is not None]
    own = [one.own_shapes(*weights[g]) for g, one in enumerate(samplers)]
    resident = {
        "params": memory.held(weights),
        "optimizer": memory.held([group.opt_state for group in groups]),
        "kv": sum(caches),
        "own": memory.held(own),
    }
    return {n.removesuffix("/0"): p for n, p in programs.items()}, resident


def _phase(
    name: str,
    built: compiling.Built,
    use: workload.Use,
    fabric: Fabric,
    resident: Mapping[str, float],
) -> Phase:
    devices = math.prod(fabric.mesh.values())
    cost = count(built.module, devices, use.expected)
    own = built.memory.arguments
    samples = name.startswith(SAMPLING)
    kept = {k: v for k, v in resident.items() if k != "kv" or samples}
    # An argument may be padded, and is then larger than its elements.
    hbm = {kind: max(own[kind], kept.get(kind, 0.0)) for kind in memory.KINDS}
    hbm["params"] += resident["own"] if samples else 0.0
    hbm["temporaries"] = built.memory.temporaries
    hbm["other"] += built.memory.results + built.memory.code
    return Phase(
        name=name,
        use=use,
        cost=cost,
        bounds=roofline.bounds(cost, fabric),
        traffic=roofline.traffic(cost, fabric),
        hbm=hbm,
        largest=memory.largest(built.module),
        complete=built.complete,
        compile_seconds=built.seconds,
    )


def together(plan: Plan) -> Plan:
    """A whole plan in which credit and update find the sampler beside them: its
    weights, its cache, and what its programs need besides."""
    if not plan.beside:
        return plan
    rolls = [p.hbm["temporaries"] for p in plan.phases if p.stage == "rollout"]
    more = {**plan.beside, "temporaries": max(rolls)}

    def one(phase: Phase) -> Phase:
        if phase.stage == "rollout":
            return phase
        hbm = {kind: size + more.get(kind, 0.0) for kind, size in phase.hbm.items()}
        return dataclasses.replace(phase, hbm=hbm)

    return dataclasses.replace(plan, phases=[*map(one, plan.phases)])
