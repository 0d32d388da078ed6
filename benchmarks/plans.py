"""The plans of docs/scaling.md: made by launch/plan.py, tabled and drawn.

  make plan-env
  python benchmarks/plans.py --out=docs/plans                # all of them, hours
  python benchmarks/plans.py --out=docs/plans --match=v5e    # those whose name has it
  python benchmarks/plans.py --out=docs/plans --draw         # table and plot only

Every plan is one run of launch/plan.py; one whose file is there is not made again. The
files hold launch/plan.py's JSON. `plans.md` and `scaling.png` are drawn from whatever
is there.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from absl import app, flags  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
_OUT = flags.DEFINE_string("out", "docs/plans", "Folder of the results.")
_MATCH = flags.DEFINE_string("match", "", "Make only plans whose name contains this.")
_DRAW = flags.DEFINE_bool("draw", False, "Make no plan.")

GIB = 2**30
HEADS = 8  # key and value heads of Qwen3-4B: the most that mesh.tensor can be


@dataclasses.dataclass(frozen=True)
class Case:
    """One plan: its name, the slice, its chips, and flags of launch/plan.py."""

    name: str
    topology: str
    chips: int
    mode: str
    slots: int
    agents: int = 0
    extra: tuple[str, ...] = ()

    def flags(self) -> list[str]:
        """Heads and widths are split over as many chips as there are heads; the rest of
        the mesh splits rows, and in mode "full" weights too: adapters leave one base,
        which fits whole beside each part of the rows."""
        tensor = min(HEADS, self.chips)
        rows = self.chips // tensor
        dtype = "bfloat16" if self.mode == "lora" else "float32"
        rest = f"{rows},1" if self.mode == "lora" else f"1,{rows}"
        return [
            "--config=configs/mathchat.py:qwen3-4b",
            f"--topology={self.topology}",
            f"--mesh=1,{rest},{tensor}",
            f"--config.mode={self.mode}",
            f"--config.param_dtype={dtype}",
            f"--config.packing.rows={rows}",
            f"--config.sampler.prefill_rows={rows}",
            f"--config.sampler.slots={self.slots}",
            *((f"--agents={self.agents}",) if self.agents else ()),
            *self.extra,
        ]


def cases() -> Iterator[Case]:
    """The paper's team on seven slices, and how its plan grows."""
    slices = [
        *(("v5e-8", 8, 8), ("v5e-16", 16, 16), ("v5e-64", 64, 64)),
        *(("v5p-8", 4, 32), ("v5p-16", 8, 64)),
        *(("v6e-8", 8, 32), ("v6e-16", 16, 64)),
    ]
    for mode in ("lora", "full"):
        for topology, chips, slots in slices:
            yield Case(f"paper_{mode}_{topology}", topology, chips, mode, slots)
    for chips in (8, 16, 32, 64, 128, 256):  # v5p is named by cores
        yield Case(f"chips_{chips:03}", f"v5p-{2 * chips}", chips, "lora", 64)
    for agents in (1, 2, 4, 8):
        for mode in ("lora", "full"):
            name = f"agents_{agents}_{mode}"
            yield Case(name, "v5p-64", 32, mode, 64, agents=agents)


def make(case: Case, folder: Path) -> None:
    path = folder / f"{case.name}.json"
    if path.exists():
        return
    command = [sys.executable, str(ROOT / "launch" / "plan.py"), *case.flags()]
    print(" ".join(command[1:]), flush=True)
    done = subprocess.run(
        [*command, f"--json={path}"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode not in (0, 3):  # it fits, or it does not
        sys.exit(done.stderr[-4000:])


def load(folder: Path, start: str) -> list[tuple[Case, dict[str, Any]]]:
    """The plans that are there, in the order of `cases`."""
    out = []
    for case in cases():
        path = folder / f"{case.name}.json"
        if case.name.startswith(start) and path.exists():
            out.append((case, json.loads(path.read_text())))
    return out


def phase(plan: dict[str, Any], name: str) -> dict[str, Any]:
    return next(p for p in plan["phases"] if p["name"].startswith(name))


def fullest(plan: dict[str, Any]) -> dict[str, Any]:
    return max(plan["phases"], key=lambda p: p["hbm_bytes_per_chip"])


def table(folder: Path) -> str:
    """A row per slice and mode, as Markdown."""
    head = (
        "| slice | chips | mode | decode | prefill | update | of | fits | iteration "
        "| bound of the update | on demand / spot |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|---|---|---|"]
    for case, plan in load(folder, "paper_"):
        sizes = [
            f"{phase(plan, name)['hbm_bytes_per_chip'] / GIB:.1f}"
            for name in ("decode", "prefill", "update")
        ]
        forecast = plan["forecast"]
        usd = forecast["usd_per_iteration"]
        lines.append(
            f"| {case.topology} ({plan['topology']}) | {plan['chips']} | {case.mode} | "
            + " | ".join(sizes)
            + f" | {plan['chip']['usable_bytes'] / GIB:.1f} | "
            + ("yes" if plan["fits"] else "no")
            + f" | {forecast['seconds_per_iteration']:,.0f} s"
            + f" | {phase(plan, 'update')['bound']}"
            + f" | ${usd['on_demand']:.2f} / ${usd['spot']:.2f} |"
        )
    return "\n".join(lines) + "\n"


PHASES = ("decode", "prefill", "reference", "update")


def draw(folder: Path) -> None:
    """Memory, work and bytes sent per chip, and the efficiency, by chips and agents."""
    by_chips = load(folder, "chips_")
    lora = [(c, p) for c, p in load(folder, "agents_") if c.mode == "lora"]
    full = [(c, p) for c, p in load(folder, "agents_") if c.mode == "full"]
    if len(by_chips) < 2 or len(lora) < 2:
        print("too few plans to draw")
        return
    figure, axes = plt.subplots(2, 4, figsize=(17, 7.5))
    _column(axes[0], "chips", [c.chips for c, _ in by_chips], [p for _, p in by_chips])
    agents = [c.agents for c, _ in lora]
    _column(axes[1], "agents (32 chips)", agents, [p for _, p in lora])
    for panel, kind in zip(axes[1][:1], ("hbm_bytes_per_chip",), strict=True):
        values = [fullest(p)[kind] / GIB for _, p in full]
        panel.plot([c.agents for c, _ in full], values, "k--", label="full, largest")
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "scaling.png", dpi=110)


def _column(panels: Any, label: str, xs: Sequence[int], plans: Sequence[dict]) -> None:
    """Four panels over one axis."""
    shown = [
        ("memory per chip, GiB", "hbm_bytes_per_chip", GIB, False),
        ("work per chip and iteration, Pflop", "flops_per_chip", 1e15, True),
        ("sent per chip and iteration, GB", "collective_bytes_per_chip", 1e9, True),
    ]
    for panel, (title, key, unit, per_iteration) in zip(panels, shown, strict=False):
        for name in PHASES:
            values = [
                found[key]
                / unit
                * (found["calls_per_iteration"] if per_iteration else 1)
                for found in (phase(p, name) for p in plans)
            ]
            panel.plot(xs, values, marker="o", label=name)
        panel.set_title(title, fontsize=10)
        panel.set_xscale("log", base=2)
        if per_iteration:
            panel.set_yscale("log")
        panel.set_xticks(xs, [str(x) for x in xs])
        panel.set_xlabel(label)
        panel.legend(fontsize=8)
    panel = panels[3]
    seconds = [p["forecast"]["seconds_per_iteration"] for p in plans]
    if label == "chips":
        ideal = seconds[0] * xs[0]
        values = [ideal / (s * x) for s, x in zip(seconds, xs, strict=True)]
        panel.plot(xs, values, marker="o", label=f"against {xs[0]} chips")
        panel.set_title("parallel efficiency at the roofline", fontsize=10)
        free = [p["parallel_efficiency"] for p in plans]
        panel.plot(xs, free, marker="s", label="against free communication")
        panel.set_ylim(0, 1.05)
    else:
        values = [s / x for s, x in zip(seconds, xs, strict=True)]
        panel.plot(xs, values, marker="o", label="seconds per agent")
        panel.set_title("iteration at the roofline, s per agent", fontsize=10)
        panel.set_ylim(0, 1.25 * max(values))
    panel.set_xscale("log", base=2)
    panel.set_xticks(xs, [str(x) for x in xs])
    panel.set_xlabel(label)
    panel.legend(fontsize=8)


def main(argv: list[str]) -> None:
    folder = Path(_OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    if not _DRAW.value:
        for case in cases():
            if _MATCH.value in case.name:
                make(case, folder)
    (folder / "plans.md").write_text(table(folder), encoding="utf-8")
    draw(folder)


if __name__ == "__main__":
    app.run(main)
