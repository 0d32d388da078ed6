"""What to change in a config that does not fit, with values to try."""

from __future__ import annotations

import dataclasses
import math

from mappa_jax.plan.planner import Phase, Plan

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Change:
    """A key of the config, a value, and why; values are estimates."""

    key: str
    value: str
    why: str

    def __str__(self) -> str:
        return f"--config.{self.key}={self.value}: {self.why}"


def advise(plan: Plan) -> list[Change]:
    """Changes that bring a plan nearer to fitting, the strongest first; none if it
    fits."""
    if plan.fits:
        return []
    over = [p for p in plan.phases if p.total > plan.usable or not p.complete]
    out: list[Change] = []
    for phase in sorted(over, key=lambda p: -p.total):
        if phase.hbm["params"] + phase.hbm["optimizer"] > plan.usable / 2:
            out += _weights(plan, phase)
        out += _rollout(plan, phase) if phase.stage == "rollout" else _rows(plan, phase)
    seen: dict[str, Change] = {}
    for change in out:
        seen.setdefault(change.key, change)
    return list(seen.values())


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _weights(plan: Plan, phase: Phase) -> list[Change]:
    config, mesh = plan.config, plan.fabric.mesh
    held = phase.hbm["params"] + phase.hbm["optimizer"]
    why = f"weights and optimiser take {_gib(held)} of {_gib(plan.usable)} per chip"
    out = []
    if mesh["data"] > 1:
        ways = mesh["data"] * mesh["fsdp"]
        text = f"with mesh.data=1: {why}, and data={mesh['data']} holds copies"
        out.append(Change("mesh.fsdp", str(ways), text))
    if config.mode == "full":
        text = f"one base for the team and an adapter each: {why}"
        out.append(Change("mode", "lora", text))
        if config.optimizer.moments == "float32":
            out.append(Change("optimizer.moments", "bfloat16", f"half as large: {why}"))
        if config.optimizer.name != "adafactor":
            text = f"second moments by rows and columns: {why}"
            out.append(Change("optimizer.name", "adafactor", text))
    if config.param_dtype == "float32":
        out.append(Change("param_dtype", "bfloat16", f"half as large: {why}"))
    chips = 2 ** math.ceil(math.log2(plan.chips * 1.5 * held / plan.usable))
    if chips > plan.chips:
        text = f"{why}; {chips} chips would leave a third free"
        out.append(Change("mesh.fsdp", str(mesh["fsdp"] * chips // plan.chips), text))
    return out


def _rollout(plan: Plan, phase: Phase) -> list[Change]:
    sampler = plan.config.sampler
    ways = plan.team[0].layout.ways
    out = []
    kv = phase.hbm["kv"]
    left = plan.usable - (phase.total - kv)
    if kv > plan.usable / 4:
        why = f"the cache takes {_gib(kv)} of {_gib(plan.usable)} per chip"
        most = int(sampler.slots * max(left, plan.usable / 8) / kv) // ways * ways
        if ways <= most < sampler.slots:
            out.append(Change("sampler.slots", str(most), why))
        if sampler.kv_dtype == "compute":
            out.append(Change("sampler.kv_dtype", "float8_e4m3fn", f"half: {why}"))
        out += _more_heads(plan, why)
    scratch = phase.hbm["temporaries"]
    if phase.name.startswith("prefill") and scratch > plan.usable / 4:
        why = f"a prefill's temporaries take {_gib(scratch)}" + _largest(phase)
        if sampler.prefill_rows > ways:
            out.append(Change("sampler.prefill_rows", str(ways), why))
        room = max(plan.usable - (phase.total - scratch), plan.usable / 8)
        longest = sampler.prompt_buckets[-1]
        per_way = -(-sampler.prefill_rows // ways)
        fits = _shorter(longest, room / (scratch / per_way))
        if fits < longest:
            kept = [b for b in sampler.prompt_buckets if b < fits]
            value = "(" + ",".join(map(str, [*kept, fits])) + ")"
            out.append(Change("sampler.prompt_buckets", f"'{value}'", why))
            if not sampler.extend_buckets:
                pieces = "longer prompts then come into the cache in pieces"
                out.append(Change("sampler.extend_buckets", f"'({fits},)'", pieces))
    return out


def _rows(plan: Plan, phase: Phase) -> list[Change]:
    config = plan.config
    packing, ways = config.packing, plan.team[0].layout.ways
    scratch = phase.hbm["temporaries"]
    if scratch < plan.usable / 4:
        return []
    why = f"{phase.name}'s temporaries take {_gib(scratch)}" + _largest(phase)
    out = []
    if config.remat not in ("full", "offload"):
        out.append(Change("remat", "full", why))
    if packing.rows > ways:
        out.append(Change("packing.rows", str(ways), why))
    out += _more_heads(plan, why)
    room = max(plan.usable - (phase.total - scratch), plan.usable / 8)
    fits = _shorter(packing.row_tokens, room / (scratch / (packing.rows / ways)))
    if fits < packing.row_tokens:
        text = f"with sampler.context no longer: {why}"
        out.append(Change("packing.row_tokens", str(fits), text))
    return out


def _largest(phase: Phase) -> str:
    shape, size, _ = phase.largest
    return f"; its largest array is {shape}, {_gib(size)}"


def _shorter(tokens: int, share: float) -> int:
    """Tokens of a row whose activations take nine tenths of `share` of the memory, a
    multiple of 1024 (of 128 below that)."""
    most = tokens * min(0.9 * share, 1.0)
    step = 1024 if most >= 2048 else 128
    return max(step, int(most) // step * step)


def _more_heads(plan: Plan, why: str) -> list[Change]:
    """A larger mesh.tensor, in place of fsdp and data."""
    mesh, heads = plan.fabric.mesh, plan.team[0].cfg.n_kv_heads
    spare = mesh["data"] * mesh["fsdp"]
    grow = math.gcd(spare, heads // math.gcd(heads, mesh["tensor"]))
    if grow < 2:
        return []
    tensor, rows = mesh["tensor"] * grow, spare // grow
    text = f"with mesh.data=1, mesh.fsdp={rows}, packing.rows={rows}: {why}"
    return [Change("mesh.tensor", str(tensor), text)]
