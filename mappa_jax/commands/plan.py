"""Says what a run needs and takes on a TPU slice, without the slice.

  make plan-env   # once: .venv-plan, an environment of its own with libtpu
  python launch/plan.py --config=configs/mathchat.py:qwen3-4b --topology=v5e:4x4 \\
    --config.mode=lora --mesh=1,1,2,8 --config.packing.rows=2
  python launch/plan.py ... --search
  python launch/plan.py --config=configs/tiny.py --topology=cpu:8

The run's own programs are compiled for the slice, at the config's sizes and without
weights, and counted: memory by kind, operations, bytes, collectives, the roofline, and
from these a forecast of an iteration. `local` plans for this host's devices and `cpu:8`
for eight simulated ones; their speed is measured, not looked up. docs/scaling.md tells
how to read it. Exits with 0 if the run fits and with 3 if not.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from mappa_jax.commands import common

ROOT = Path(__file__).resolve().parents[2]
PLAN_PYTHON = ROOT / ".venv-plan" / "bin" / "python"
DOES_NOT_FIT = 3

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "v5e:4x4, v5p:2x2x2, v6e-8, v4-16; local; cpu:8."
)
_MESH = flags.DEFINE_list(
    "mesh", None, "Sizes of the axes agent, data, fsdp, tensor: 1,1,8,1."
)
_JSON = flags.DEFINE_string("json", None, "Where to write the plan as JSON.")
_SEARCH = flags.DEFINE_bool(
    "search", False, "Try meshes, micro-batches, remat policies and cache types."
)
_COMPILES = flags.DEFINE_integer("compiles", 60, "Programs that --search may compile.")
_AGENTS = flags.DEFINE_integer(
    "agents", 0, "Plan for so many agents like the config's first; 0: the config's."
)
_ONLY = flags.DEFINE_list(
    "only", [], "Programs to compile, by the start of their names: decode,update."
)
_PROMPT = flags.DEFINE_integer("prompt_tokens", 0, "Of every prompt; 0: the longest.")
_NEW = flags.DEFINE_integer("new_tokens", 0, "Of every answer; 0: the config's limits.")
flags.mark_flags_as_required(["config", "topology"])


def main(argv: list[str]) -> int:
    common.begin(argv)
    config = common.resolve_flag(_CONFIG.value)
    prepare(_TOPOLOGY.value)
    from mappa_jax.assemble import seat_agents
    from mappa_jax.models.published import architecture

    team = with_agents(seat_agents(config), _AGENTS.value)
    config = common.with_mesh(team, _MESH.value)
    shapes = [architecture(agent.model) for agent in config.agents.values()]
    devices, fabric, tpu = open_devices(_TOPOLOGY.value)
    plan_of = functools.partial(_plan, shapes, devices, fabric, tpu)
    if _SEARCH.value:
        return _search(config, shapes, len(devices), plan_of)
    plan = plan_of(config, _ONLY.value)
    from mappa_jax.plan import report

    _write(report.to_json(plan))
    print(report.to_text(plan))
    return 0 if plan.fits else DOES_NOT_FIT


def prepare(topology: str) -> None:
    """Sets what JAX must find before it is imported.

    For a TPU slice that is libtpu, which lives in an environment of its own: in another
    one this program is run again there.

    Raises:
      ConfigError: no such topology, or the environment is not there; says how to
        make it.
    """
    from mappa_jax.config import ConfigError
    from mappa_jax.plan.chips import parse_slice

    kind, _, count = topology.partition(":")
    if kind == "local":
        return
    if kind == "cpu":
        if not count.isdecimal() or not int(count):
            raise ConfigError(f"--topology={topology}: expected cpu:8")
        given = os.environ.get("XLA_FLAGS", "")
        force = f"--xla_force_host_platform_device_count={count}"
        os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{given} {force}".strip()}
        return
    slice_ = parse_slice(topology)
    os.environ |= {
        "JAX_PLATFORMS": "cpu",  # with libtpu installed JAX would look for a TPU
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": slice_.accelerator_type,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at a time: no TPU is touched
    }
    if importlib.util.find_spec("libtpu"):
        return
    if Path(sys.executable) != PLAN_PYTHON and PLAN_PYTHON.exists():
        os.execve(PLAN_PYTHON, [str(PLAN_PYTHON), *sys.argv], dict(os.environ))
    raise ConfigError(
        f"--topology={topology}: libtpu is not installed here, and belongs into an "
        f"environment of its own: run `make plan-env` in {ROOT}, then this command "
        f"again (it goes on in {PLAN_PYTHON.relative_to(ROOT)} by itself)"
    )


def with_agents(config: Any, count: int) -> Any:
    """The config with a team of `count` agents like its first, for no workflow."""
    if not count:
        return config
    first = next(iter(config.agents.values()))
    team = {f"agent{i}": first for i in range(1, count + 1)}
    return dataclasses.replace(config, agents=team)


def open_devices(topology: str) -> tuple[Sequence[Any], Callable, bool]:
    """(devices, what makes a mesh's fabric, whether they are a TPU's)."""
    import jax
    import numpy as np
    from jax.experimental import topologies

    from mappa_jax.plan.chips import parse_slice
    from mappa_jax.plan.local import measured
    from mappa_jax.plan.roofline import Fabric

    if topology.partition(":")[0] in ("local", "cpu"):
        devices = jax.devices()
        chip = measured(devices)
        return devices, lambda mesh: Fabric(chip, dict(mesh.shape)), False
    slice_ = parse_slice(topology)
    found = topologies.get_topology_desc(
        platform="tpu", topology_name=slice_.name, **slice_.chip.options
    )

    def fabric(mesh: Any) -> Fabric:
        places = np.asarray([device.coords for device in mesh.devices.flat])
        return Fabric(
            slice_.chip, dict(mesh.shape), places[:, : slice_.chip.axes], slice_
        )

    return found.devices, fabric, True


def _plan(shapes, devices, fabric, tpu, config, only):
    from mappa_jax.plan import planner, workload

    load = workload.assumed(config, _PROMPT.value, _NEW.value)
    return planner.make_plan(
        config, shapes, fabric, devices, load, tpu=tpu, only=only, note=_note
    )


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _search(config, shapes, chips: int, plan_of: Callable) -> int:
    from mappa_jax.plan import report
    from mappa_jax.plan.search import search

    found = search(config, shapes, chips, plan_of, compiles=_COMPILES.value, note=_note)
    if not found:
        _write({"fits": False, "search": []})
        print("no mesh could be tried; the reasons stand above")
        return DOES_NOT_FIT
    best = found[0]
    whole = report.to_json(best.plan)
    told = [one.to_json() for one in found]
    _write(whole | {"fits": best.usable, "search": told})
    for one in found:
        verdict = "fits" if one.usable else "does not fit"
        if one.fits and not one.plan.whole:
            verdict = "not tried to the end (see --compiles)"
        print(
            f"{verdict}, {one.seconds:.4g} s, {one.fill:.0%} of the memory: {one.flags}"
        )
    print("\n" + report.to_text(best.plan))
    if not best.usable:
        print("no whole plan that fits was found; what stands above is the nearest")
    return 0 if best.usable else DOES_NOT_FIT


def _write(content: dict[str, Any]) -> None:
    if _JSON.value:
        path = Path(_JSON.value).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
