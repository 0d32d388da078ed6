"""Writes a run's agents as Hugging Face folders, and team.json beside them.

  python launch/export.py --workdir=runs/quickstart --out=exported
  python launch/export.py --workdir=runs/quickstart --out=exported --step=best
  python launch/export.py --workdir=runs/quickstart --out=adapters --adapters=peft

OUT/NAME is the folder of an agent: weights, tokenizer with its chat template, how it is
sampled, a model card. Adapters are merged into the base, or (--adapters=peft) written
as the library peft keeps them. docs/export.md says more. --out may hold an earlier
export, which is replaced, and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from mappa_jax.commands import common

_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.")
_OUT = flags.DEFINE_string("out", None, "The folder to write.")
_STEP = flags.DEFINE_string(
    "step", "", "Of which checkpoint: a number, or best; empty: the latest."
)
_ADAPTERS = flags.DEFINE_enum(
    "adapters", "merged", ["merged", "peft"], "How adapters (mode lora) are written."
)
_CACHE = flags.DEFINE_string("cache_dir", common.CACHE, "Weights and programs.")
_MESH = flags.DEFINE_list(
    *("mesh", None, "Sizes of agent, data, fsdp, tensor, on other devices: 1,1,1,1."),
)
flags.mark_flags_as_required(["workdir", "out"])


def main(argv: list[str]) -> None:
    common.begin(argv)
    cache = Path(_CACHE.value).expanduser()
    out = _out()
    workdir = common.open_workdir(_WORKDIR.value, cache)
    config = common.with_mesh(common.read_config(workdir.local), _MESH.value)
    written, step = _export(config, workdir, cache, out)
    print(f"the team after {step} iterations: {out}/team.json")
    for name, folder in written.items():
        print(f"  {name:12} {folder}")


def _out() -> Path:
    from mappa_jax.config import ConfigError
    from mappa_jax.export import check_out
    from mappa_jax.remote import is_remote

    if is_remote(_OUT.value):
        raise ConfigError(f"--out={_OUT.value}: must be a local folder; copy it after")
    out = Path(_OUT.value).expanduser()
    check_out(out)
    return out


def _export(
    config: Any, workdir: Any, cache: Path, out: Path
) -> tuple[dict[str, Path], int]:
    from mappa_jax import assemble, export
    from mappa_jax.commands.assembly import restore

    kind = _ADAPTERS.value
    export.check_kind(config, kind)
    config = assemble.seat_agents(config)
    assemble.enable_compilation_cache(cache / "xla")
    models = assemble.load_models(config, cache)
    weights = models.init_weights(config)
    weights, step = restore(config, models, workdir, weights, _STEP.value)
    results = export.read_results(workdir.local, step)
    written = export.write_team(
        config, models, weights, out, step=step, kind=kind, results=results
    )
    return written, step


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
