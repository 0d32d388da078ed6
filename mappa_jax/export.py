"""A team as a folder of Hugging Face folders: weights, cards, team.json.

OUT/team.json          the team (team_file.py)
OUT/NAME/              an agent: weights or adapter, tokenizer, README.md
OUT/team/              in mode "shared", the one set of weights of all
OUT/base, OUT/base-2   bases of adapters that `transformers` knows by no name
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mappa_jax import assemble
from mappa_jax.config import Config, ConfigError
from mappa_jax.model_card import make_card
from mappa_jax.models import peft, policy
from mappa_jax.records import read_evaluations
from mappa_jax.team_file import NAME, Exported, describe, is_export

BASELINES = ("untrained", "single")  # of launch/evaluate.py: beside the trained team


def check_out(out: Path) -> None:
    """Refuses a folder that holds anything but an earlier export.

    Raises:
      ConfigError: naming what else is there.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ConfigError(f"--out={out}: not a folder")
    there = {path.name for path in out.iterdir()}
    if not there:
        return
    if not is_export(out):
        raise ConfigError(
            f"--out={out}: holds something else ({', '.join(sorted(there)[:3])}); name "
            "a new folder"
        )
    row = json.loads((out / NAME).read_text())
    agents = row.get("agents", {}).values()
    known = {NAME, *(a.get("folder") for a in agents)}
    known |= {a.get("base_folder") for a in agents}
    if other := sorted(there - known):
        raise ConfigError(
            f"--out={out}: an earlier export, but something else lies there too "
            f"({', '.join(other[:3])}); move that, or name a new folder"
        )


def check_kind(config: Config, kind: str) -> None:
    """Raises ConfigError where there are no adapters to write."""
    if kind == "peft" and config.mode != "lora":
        raise ConfigError(
            f"--adapters=peft: the run's mode is {config.mode!r}, which has no "
            "adapters; leave the flag out"
        )


def read_results(workdir: Path, step: int) -> list[dict[str, Any]]:
    """The last evaluation of the team at `step`, and of each baseline.

    Raises:
      RecordError: evaluations.jsonl is damaged.
    """
    found = {}
    for row in read_evaluations(workdir):
        label = "trained" if row["label"] == "team" else row["label"]
        if row["label"] in BASELINES or row["step"] == step:
            found[label] = row | {"label": label}
    return [found[label] for label in sorted(found, key=_order)]


def _order(label: str) -> tuple[bool, str]:
    return (label != "trained", label)


def write_team(
    config: Config,
    models: assemble.Models,
    weights: tuple[Sequence[Any], Sequence[Any]],
    out: Path,
    *,
    step: int,
    kind: str,
    results: Sequence[Mapping[str, Any]],
) -> dict[str, Path]:
    """Writes the whole export, or nothing.

    Args:
      config: of the run.
      models: of the team.
      weights: (trainable, frozen), each by group; of this process alone.
      out: the folder; an earlier export there is replaced.
      step: of the checkpoint that `weights` are of.
      kind: "merged" or "peft".
      results: of `read_results`.

    Returns:
      Each agent's folder.

    Raises:
      ConfigError: as `check_out` and `check_kind`.
    """
    check_out(out)
    check_kind(config, kind)
    place = out.resolve()  # "." has no name
    part = place.with_name(place.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        written = assemble.write_agents(config, models, weights, part, kind)
        bases = _write_bases(config, models, part) if kind == "peft" else {}
        folders = {name: folder.name for name, folder in written.items()}
        told = dict(step=step, kind=kind, results=results)
        for name, folder in reversed(written.items()):  # of a shared folder, the first
            base = bases.get(name)
            card = make_card(config, name, folder=folder.name, base_folder=base, **told)
            (folder / "README.md").write_text(card, encoding="utf-8")
        row = describe(config, folders=folders, bases=bases, **told)
        (part / NAME).write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        _put(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {name: out / folder for name, folder in folders.items()}


def _put(part: Path, out: Path) -> None:
    """Moves `part` to `out`; what was there is removed once it is. A folder that is
    there stays the same one: somebody may stand in it."""
    if not out.exists():
        part.rename(out)
        return
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    old.mkdir()
    _move_all(out, old)
    _move_all(part, out)
    shutil.rmtree(old, ignore_errors=True)


def _move_all(here: Path, there: Path) -> None:
    """Moves what is in a folder to another; team.json, which makes it a team, last."""
    for path in sorted(here.iterdir(), key=lambda path: path.name == NAME):
        path.rename(there / path.name)


def _write_bases(
    config: Config, models: assemble.Models, folder: Path
) -> dict[str, str]:
    """Copies the bases that only mappa_jax knows by their names; agent -> folder."""
    by_model: dict[str, str] = {}
    out = {}
    for (name, agent), base in zip(config.agents.items(), models.folders, strict=True):
        if _has_public_name(agent.model):
            continue
        if agent.model not in by_model:
            number = len(by_model) + 1
            by_model[agent.model] = "base" if number == 1 else f"base-{number}"
            _copy_model(base, folder / by_model[agent.model])
        out[name] = by_model[agent.model]
    return out


def _copy_model(folder: Path, to: Path) -> None:
    """Copies what `transformers` reads of a model's folder, and nothing else."""
    to.mkdir()
    kinds = (".json", ".safetensors", ".jinja", ".model", ".txt")
    for path in folder.iterdir():
        if path.suffix in kinds:
            shutil.copyfile(path, to / path.name)


def _has_public_name(model: str) -> bool:
    """Whether `transformers` finds a base by what the config calls it: the id on the
    hub. A folder of this machine is not one that the export's reader has."""
    return model.count("/") == 1 and not (
        model.startswith((".", "/", "~", "random:")) or Path(model).exists()
    )


def load_weights(
    team: Exported, models: assemble.Models
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """(trainable, frozen) of a team that was read back, each by group.

    Raises:
      ModelError: an adapter is damaged.
    """
    trainable, frozen = models.init_weights(team.config)
    if team.kind == "merged":
        return trainable, frozen
    folders = list(team.folders.values())

    def adapters(group: policy.Policy, like: Any) -> Any:
        targets = group.lora.targets
        own = [peft.load_adapter(folders[m], group.cfg, targets) for m in group.members]
        return policy.stack_adapters(group, own, like)

    return tuple(map(adapters, models.team, trainable)), frozen
