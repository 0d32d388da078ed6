"""Tries meshes, micro-batches, remat policies and cache types, and keeps what fits.

The update is compiled first: it needs most memory, and what it allows depends on the
mesh, the rows of a micro-batch and remat. Where it fits, the sampler gets as many slots
as the rest of the memory holds. A program that does not fit is refused by the compiler
within seconds, so most of the time goes to those that do.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from mappa_jax.config import Config, ConfigError, changed
from mappa_jax.models.config import ModelConfig
from mappa_jax.plan.planner import Plan, together
from mappa_jax.plan.report import efficiency_of
from mappa_jax.plan.workload import FILLING

Changes = Mapping[str, Any]
# What the search may set, beside the mesh, `packing.rows` and `sampler.slots`.
REMATS = ("projections", "none")  # beside "full": each keeps more than the last
BEST = 3  # meshes that are looked at closely, and plans that are offered
ROOM = 0.75  # of the memory: what takes more is not tried with larger settings
# All programs but the update.
OTHERS = (*FILLING, "decode", "round", "reference", "logprobs", "credit")
KV_DTYPES = ("compute", "float8_e4m3fn")  # if the config asks for none of its own


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """A tried setting: flat keys of the config and values, and its plan."""

    changes: Changes
    plan: Plan

    @property
    def fits(self) -> bool:
        return self.plan.fits

    @property
    def usable(self) -> bool:
        """Whether all of it was tried, and fits."""
        return self.plan.fits and self.plan.whole

    @property
    def seconds(self) -> float:
        """Of an iteration at the roofline, of what was compiled."""
        return sum(phase.seconds for phase in self.plan.phases)

    @property
    def fill(self) -> float:
        """The fullest phase's share of the memory."""
        return max(phase.total for phase in self.plan.phases) / self.plan.usable

    @property
    def flags(self) -> str:
        """As one gives them to train.py."""
        return " ".join(f"--config.{k}={v}" for k, v in self.changes.items())

    def to_json(self) -> dict[str, Any]:
        return {
            "changes": dict(self.changes),
            "flags": self.flags,
            "fits": self.usable,
            "whole": self.plan.whole,
            "seconds_per_iteration": self.seconds,
            "fullest_phase": self.fill,
            "parallel_efficiency": efficiency_of(self.plan),
        }


def meshes(
    config: Config, shapes: Sequence[ModelConfig], chips: int
) -> Iterator[Changes]:
    """Mesh shapes on so many chips that the models allow, with rows to match.

    The ones that split weights least come first: with less to send they are faster,
    where they fit.
    """
    agents = len(config.agents)
    heads = math.gcd(*(shape.n_kv_heads for shape in shapes))
    sizes = [n for n in range(1, chips + 1) if chips % n == 0]
    for agent, tensor, fsdp in itertools.product(sizes, sizes, sizes):
        if chips % (agent * tensor * fsdp) or heads % tensor:
            continue
        if config.mode != "shared" and agents % agent:
            continue
        if config.mode == "shared" and agent > 1:
            continue  # the same as data
        data = chips // (agent * tensor * fsdp)
        ways = data * fsdp
        slots = -(-config.sampler.slots // ways) * ways
        yield {
            "mesh.agent": agent,
            "mesh.data": data,
            "mesh.fsdp": fsdp,
            "mesh.tensor": tensor,
            "packing.rows": ways,
            "sampler.prefill_rows": ways,
            "sampler.slots": slots,
        }


def search(
    config: Config,
    shapes: Sequence[ModelConfig],
    chips: int,
    plan_of: Callable[[Config, Sequence[str]], Plan],
    *,
    compiles: int,
    note: Callable[[str], None] = lambda text: None,
) -> list[Found]:
    """The settings that were tried to the end, the best first.

    Args:
      config: where to start.
      shapes: the agents' architectures.
      chips: how many there are.
      plan_of: makes the plan of a config, of the named programs or (empty) of all.
      compiles: programs to compile at most.
      note: told of each try.

    Returns:
      Whole plans of what fits, sorted by the seconds of an iteration; if there is
      none, what was tried, sorted by how full the memory is. That may be a part of a
      plan that fits by itself (`Found.usable` is then False).
    """
    left = compiles
    tried: list[Found] = []  # in part

    def attempt(changes: Changes, only: Sequence[str]) -> Found | None:
        nonlocal left
        if left <= 0:
            return None
        try:
            plan = plan_of(changed(config, changes), only)
        except ConfigError as e:
            note(f"{_brief(changes)}: {e}")
            return None
        left -= len(plan.phases)
        found = Found(changes, plan)
        tried.append(found)
        verdict = f"{found.fill:.0%} of the memory, {found.seconds:.4g} s"
        note(f"{_brief(changes)}: {', '.join(p.name for p in plan.phases)} {verdict}")
        return found

    firsts = [
        first
        for changes in meshes(config, shapes, chips)
        if (first := attempt(changes | {"remat": "full"}, ("update",))) and first.fits
    ]
    updates = sorted(firsts, key=lambda f: f.seconds)
    for first in updates[:BEST]:
        updates = updates + larger(first, attempt)
    whole = []
    for found in sorted(updates, key=lambda f: f.seconds):
        own = config.sampler.kv_dtype
        for kv_dtype in KV_DTYPES if own == "compute" else (own,):
            slots = _slots(config, shapes, found, kv_dtype)
            if not slots:
                continue
            extra = {"sampler.slots": slots, "sampler.kv_dtype": kv_dtype}
            rest = attempt({**found.changes, **extra}, OTHERS)
            if rest and rest.fits and (joined := _joined(rest, found)).fits:
                whole.append(joined)
                break  # a smaller cache is a second choice: it costs precision
        if len(whole) >= BEST:
            break
    if whole:
        return sorted(whole, key=lambda f: f.seconds)
    return sorted(tried, key=lambda f: f.fill)


def larger(
    first: Found, attempt: Callable[[Changes, Sequence[str]], Found | None]
) -> list[Found]:
    """What fits of an update that keeps more of the forward pass, or that takes twice
    the rows, where the first try leaves room."""
    out = []
    if first.fill >= ROOM:
        return out
    rows = {"packing.rows": 2 * first.changes["packing.rows"]}
    for tries in ([rows], [{"remat": name} for name in REMATS]):
        for change in tries:
            found = attempt({**first.changes, **change}, ("update",))
            if not (found and found.fits):
                break
            out.append(found)
    return out


def _joined(rest: Found, update: Found) -> Found:
    """The whole plan: the update itself does not depend on the sampler's settings,
    only what stands beside it does."""
    phases = [*rest.plan.phases, *update.plan.phases]
    whole = dataclasses.replace(rest.plan, phases=phases)
    return Found(rest.changes, together(whole))


def _slots(
    config: Config, shapes: Sequence[ModelConfig], found: Found, kv_dtype: str
) -> int:
    """Slots that fit beside the weights and a quarter of the memory for scratch, at
    most as many as the config has or as there are trajectories; 0: none."""
    phase = found.plan.phases[0]
    room = 0.75 * found.plan.usable - phase.hbm["params"] - phase.hbm["optimizer"]
    if beside := found.plan.beside:
        left = found.plan.usable - phase.total - beside["params"]
        room = max(min(room, left), 0.0)
    ways = found.plan.team[0].layout.ways
    scale = 4 if kv_dtype == "int8" else 0  # a float32 for every head of a token
    itemsize = jnp.dtype(config.dtype if kv_dtype == "compute" else kv_dtype).itemsize
    row = sum(
        policy.pools
        * 2
        * policy.cfg.n_layers
        * (policy.cfg.n_kv_heads // policy.layout.tensor)
        * (policy.cfg.head_dim * itemsize + scale)
        * config.sampler.context
        for policy in found.plan.team
    )
    most = min(int(room / row) * ways, int(found.changes["sampler.slots"]))
    return most // ways * ways


def _brief(changes: Changes) -> str:
    sizes = "x".join(str(changes[f"mesh.{a}"]) for a in _AXES)
    rest = [f"{k}={v}" for k, v in changes.items() if not k.startswith("mesh.")]
    return f"mesh {sizes}, " + ", ".join(rest)


_AXES = ("agent", "data", "fsdp", "tensor")
