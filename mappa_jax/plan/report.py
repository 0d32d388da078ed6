"""A plan as JSON and as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mappa_jax.plan.advice import advise
from mappa_jax.plan.forecast import Forecast, assumptions, forecast
from mappa_jax.plan.planner import Phase, Plan
from mappa_jax.plan.roofline import intensity

GIB = 2**30
LIMITS = (
    "A forecast at the roofline is a lower bound; measure before you promise anything.",
    "Bytes of a program that does not fit are counted before XLA moves what it can to "
    "on-chip memory, and are a little high.",
)


def to_json(plan: Plan) -> dict[str, Any]:
    """Everything that was found, in bytes, seconds and operations per chip."""
    chip, found = plan.fabric.chip, forecast(plan)
    slice_ = plan.fabric.slice
    return {
        "fits": plan.fits,
        "whole": plan.whole,
        "topology": slice_.name if slice_ else f"{chip.name}:{plan.chips}",
        "accelerator_type": slice_.accelerator_type if slice_ else "",
        "chips": plan.chips,
        "chip": {
            "name": chip.name,
            "memory_bytes": chip.memory,
            "usable_bytes": chip.usable,
            "memory_bandwidth": chip.bandwidth,
            "flops": dict(chip.flops),
            "link_bandwidth": _finite(chip.link),
            "measured_here": chip.measured,
        },
        "mesh": dict(plan.fabric.mesh),
        "settings": _settings(plan),
        "assumptions": assumptions(plan),
        "phases": [_phase(phase) for phase in plan.phases],
        "parallel_efficiency": efficiency_of(plan),
        "forecast": _forecast(found, plan) if found else None,
        "advice": [str(change) for change in advise(plan)],
    }


def efficiency_of(plan: Plan) -> float:
    """Share of an iteration's time that would be left if communication were free: the
    parallel efficiency that the roofline allows."""
    alone = sum(
        p.use.calls * max(p.bounds.compute, p.bounds.memory) for p in plan.phases
    )
    whole = sum(p.seconds for p in plan.phases)
    return alone / whole if whole else 1.0


def _settings(plan: Plan) -> dict[str, Any]:
    """The keys that the size of a run depends on."""
    config = plan.config
    sampler, packing = config.sampler, config.packing
    return {
        "models": [agent.model for agent in config.agents.values()],
        "mode": config.mode,
        "dtype": config.dtype,
        "param_dtype": config.param_dtype,
        "optimizer": config.optimizer.name,
        "moments": config.optimizer.moments,
        "remat": config.remat,
        "slots": sampler.slots,
        "prefill_rows": sampler.prefill_rows,
        "prompt_buckets": list(sampler.prompt_buckets),
        "extend_buckets": list(sampler.extend_buckets),
        "context": sampler.context,
        "kv_dtype": sampler.kv_dtype,
        "weights": sampler.weights,
        "staleness": config.staleness,
        "row_tokens": packing.row_tokens,
        "rows": packing.rows,
    }


def _phase(phase: Phase) -> dict[str, Any]:
    bounds = phase.bounds
    shape, size, where = phase.largest
    return {
        "name": phase.name,
        "stage": phase.stage,
        "compiled": phase.complete,
        "calls_per_iteration": phase.use.calls,
        "loop_turns": list(phase.use.expected.turns),
        "hbm_bytes_per_chip": phase.total,
        "hbm_by_kind": dict(phase.hbm),
        "largest_array": {"shape": shape, "bytes": size, "made_by": where},
        "flops_per_chip": phase.cost.flops,
        "matmul_flops_by_type": dict(phase.cost.matmul),
        "bytes_per_chip": phase.cost.bytes,
        "arithmetic_intensity": _finite(intensity(phase.cost)),
        "collective_bytes_per_chip": sum(row.bytes for row in phase.traffic),
        "collectives": [
            {
                "kind": row.kind,
                "axes": row.axes,
                "bytes": row.bytes,
                "calls": row.calls,
                "seconds": row.seconds,
            }
            for row in phase.traffic
        ],
        "roofline_seconds": bounds.seconds,
        "bound": bounds.name,
        "bounds": {
            "compute": bounds.compute,
            "memory": bounds.memory,
            "interconnect": dict(bounds.links),
        },
        "uncounted_custom_calls": sorted(phase.cost.unknown),
        "compile_seconds": round(phase.compile_seconds, 1),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _forecast(found: Forecast, plan: Plan) -> dict[str, Any]:
    price = plan.fabric.chip.price
    return {
        "seconds_per_iteration": found.total,
        "seconds_by_stage": dict(found.seconds),
        "seconds_without_overlap": found.unhidden,
        "actions": found.actions,
        "new_tokens": found.new_tokens,
        "trained_tokens": found.trained_tokens,
        "tokens_per_second": found.rates,
        "usd_per_iteration": dict(found.usd),
        "chip_hour": {
            "on_demand": price.on_demand,
            "spot": price.spot,
            "region": price.region,
            "read": price.read,
        }
        if price
        else None,
    }


# -- text --------------------------------------------------------------------


def to_text(plan: Plan) -> str:
    """For people: a table of memory, one of work, the forecast and what to change."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.fabric.mesh.items())
    chip = plan.fabric.chip
    where = plan.fabric.slice.name if plan.fabric.slice else chip.name
    told = "measured here" if chip.measured else "published figures"
    parts = [
        f"{where}: {plan.chips} chips, mesh {mesh} ({told})",
        _table(_memory_rows(plan)),
        _table(_work_rows(plan)),
        _table(_link_rows(plan)),
        *_notes(plan),
        _forecast_text(plan),
        _verdict(plan),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    if len(rows) < 2:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _memory_rows(plan: Plan) -> list[list[str]]:
    kinds = ("params", "optimizer", "kv", "temporaries", "other")
    rows = [["memory, GiB per chip", *kinds, "total", f"of {_gib(plan.usable)}"]]
    for phase in plan.phases:
        over = not phase.complete or phase.total > plan.usable
        verdict = "DOES NOT FIT" if over else f"{phase.total / plan.usable:.0%}"
        cells = [_gib(phase.hbm[kind]) for kind in kinds]
        rows.append([phase.name, *cells, _gib(phase.total), verdict])
    return rows


def _work_rows(plan: Plan) -> list[list[str]]:
    head = "work of a call, per chip|Tflop|GB moved|flop/byte|GB sent|seconds|bound"
    rows = [[*head.split("|"), "calls"]]
    for p in plan.phases:
        sent = sum(row.bytes for row in p.traffic)
        rows.append(
            [
                p.name,
                _short(p.cost.flops / 1e12),
                _short(p.cost.bytes / 1e9),
                _short(intensity(p.cost)),
                _short(sent / 1e9),
                _short(p.bounds.seconds),
                p.bounds.name,
                _short(p.use.calls),
            ]
        )
    return rows


def _link_rows(plan: Plan) -> list[list[str]]:
    rows = [["collectives of a call", "along", "times", "GB sent", "seconds"]]
    for phase in plan.phases:
        for row in phase.traffic:
            rows.append(
                [
                    f"{phase.name} {row.kind}",
                    row.axes,
                    _short(row.calls),
                    _short(row.bytes / 1e9),
                    _short(row.seconds),
                ]
            )
    return rows


def _short(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _notes(plan: Plan) -> list[str]:
    out = []
    worst = max(plan.phases, key=lambda p: p.total)
    shape, size, where = worst.largest
    if size > plan.usable / 10:
        out.append(
            f"{worst.name} writes {shape} to memory, {_gib(size)} GiB, at {where}"
        )
    unknown = sorted(set().union(*(p.cost.unknown for p in plan.phases)))
    if unknown:
        out.append(
            f"custom calls whose arithmetic is not counted: {', '.join(unknown)}"
        )
    return out


def _forecast_text(plan: Plan) -> str:
    found = forecast(plan)
    if found is None:
        return ""
    stages = ", ".join(f"{name} {_short(s)}" for name, s in found.seconds.items())
    rates = found.rates
    price = plan.fabric.chip.price
    lines = [
        f"an iteration at the roofline: {_short(found.total)} s ({stages}); "
        f"{_short(found.unhidden)} s if nothing overlapped",
        f"tokens a second: {_short(rates['sampled_while_sampling'])} sampled while "
        f"sampling, {_short(rates['trained_while_training'])} trained on while "
        f"training, {_short(rates['sampled_over_all'])} sampled over all",
        f"parallel efficiency that the roofline allows: {efficiency_of(plan):.0%}",
    ]
    if price:
        lines.append(
            f"cost of an iteration: ${found.usd['on_demand']:.2f} on demand, "
            f"${found.usd['spot']:.2f} spot (${price.on_demand:.2f} and "
            f"${price.spot:.2f} a chip-hour, {price.region}, {price.read})"
        )
    lines += [f"assumed: {text}" for text in assumptions(plan)]
    return "\n".join([*lines, *LIMITS])


def _verdict(plan: Plan) -> str:
    if plan.fits and not plan.whole:
        return "what was compiled fits; the other programs were not tried"
    if plan.fits:
        return "FITS"
    lines = ["DOES NOT FIT. To try (values are estimates; plan again with them):"]
    return "\n".join([*lines, *(f"  {change}" for change in advise(plan))])
