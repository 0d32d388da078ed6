"""team.json: what an exported team is, enough to run it without its workdir.

{"format": "mappa_jax.team", "version": 1,
 "workflow": {"name": ..., "roles": [...], ...},   who acts, in which order
 "agents": {NAME: {"folder": ..., "kind": "merged", "sampling": {...}}},
 "settings": {...},       of the config, what sampling and the sandbox need
 "run": {...}, "results": [...]}                   for the record
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mappa_jax import per_agent
from mappa_jax.config import Config, ConfigError, resolve, to_dict
from mappa_jax.plugins import is_plugin
from mappa_jax.workflows import find_workflow
from mappa_jax.workflows.base import seated

NAME = "team.json"
FORMAT = "mappa_jax.team"
VERSION = 1
KINDS = ("merged", "peft")
# Groups and keys of the config without which a team does not sample as it did.
SETTINGS = (
    *("seed", "mode", "dtype", "param_dtype", "attention"),
    *("sampler", "workflow", "sandbox", "lora"),
)
SAMPLING = (
    *("max_new_tokens", "max_turns", "temperature", "top_k", "top_p"),
    *("min_new_tokens", "stop", "thinking"),
)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A team that was read back.

    Attributes:
      config: with which it runs; its models are folders, or names of bases.
      kind: "merged" or "peft".
      folders: of each agent, by name.
      step: iterations that it had been trained for.
      run: what the export told of the run.
    """

    config: Config
    kind: str
    folders: dict[str, Path]
    step: int
    run: Mapping[str, Any]


def config_digest(config: Config) -> str:
    """SHA-256 of the whole config: equal for equal runs."""
    text = json.dumps(to_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def describe(
    config: Config,
    *,
    step: int,
    kind: str,
    folders: Mapping[str, str],
    bases: Mapping[str, str],
    results: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The content of team.json.

    Args:
      config: of the run.
      step: of the checkpoint.
      kind: of `KINDS`.
      folders: agent -> folder, relative to that of team.json.
      bases: likewise, of bases that lie beside the adapters.
      results: lines of evaluations.jsonl.
    """
    plain = to_dict(config)
    workflow = seated(find_workflow(config.workflow.name), config)
    ranks = per_agent.lora_ranks(config)
    agents = {}
    for (name, agent), rank in zip(plain["agents"].items(), ranks, strict=True):
        agents[name] = {
            "folder": folders[name],
            "kind": kind,
            "base": agent["model"],
            "trained": agent["trainable"],
            "sampling": {key: agent[key] for key in SAMPLING},
        }
        if kind == "peft":
            agents[name] |= {"lora_rank": rank, "base_folder": bases.get(name)}
    judge = ("provider", "model", "members", "combine", "show_reference", "rubric")
    data = ("source", "eval_source", "train_size", "params")
    return {
        "format": FORMAT,
        "version": VERSION,
        "workflow": {
            "name": workflow.name,
            "roles": [dataclasses.asdict(role) for role in workflow.roles],
            "answer_of": workflow.roles[-1].name,
        },
        "agents": agents,
        "settings": {key: plain[key] for key in SETTINGS},
        "run": {
            "step": step,
            "steps": config.steps,
            "seed": config.seed,
            "config_sha256": config_digest(config),
            "judge": {key: plain["judge"][key] for key in judge},
            "data": {key: plain["data"][key] for key in data},
        },
        "results": list(results),
    }


def is_export(folder: Path) -> bool:
    """Whether an export lies there, of whatever version."""
    try:
        return json.loads((folder / NAME).read_text())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_team(folder: Path, *, trusted: bool = False) -> Exported:
    """The team that lies in `folder`.

    Args:
      folder: that launch/export.py wrote, perhaps of somebody else.
      trusted: whether its team.json may name code to be run, and a sandbox without
        walls or elsewhere.

    Raises:
      ConfigError: there is none, it is damaged, of another version, or asks for what
        needs trust.
    """
    path = folder / NAME
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ConfigError(
            f"{folder}: no {NAME}: not a team that launch/export.py wrote"
        ) from e
    except ValueError as e:
        raise ConfigError(f"{path}: not JSON ({e})") from e
    if not isinstance(row, dict) or row.get("format") != FORMAT:
        raise ConfigError(f"{path}: its format is not {FORMAT!r}")
    if row.get("version") != VERSION:
        raise ConfigError(
            f"{path}: version {row.get('version')!r}; this program reads {VERSION}: "
            "export the team again"
        )
    try:
        team = _decode(folder, row)
        if not trusted:
            _refuse_trust(team.config)
        return team
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from e
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise ConfigError(f"{path}: damaged ({type(e).__name__}: {e})") from e


def _decode(folder: Path, row: Mapping[str, Any]) -> Exported:
    (kind,) = {agent["kind"] for agent in row["agents"].values()}
    folders = {n: _inside(folder, a["folder"]) for n, a in row["agents"].items()}
    settings = dict(row["settings"])
    if kind == "merged" and settings["mode"] == "lora":
        settings["mode"] = "full"
    agents = {}
    for name, agent in row["agents"].items():
        agents[name] = dict(agent["sampling"])
        if kind == "merged":
            agents[name] |= {"model": str(folders[name]), "trainable": False}
        else:
            base = agent["base_folder"]
            model = agent["base"] if base is None else str(_inside(folder, base))
            agents[name] |= {"model": model, "lora_rank": agent["lora_rank"]}
    longest = max(agent["max_new_tokens"] for agent in agents.values())
    context = settings["sampler"]["context"]
    # What `resolve` asks of training fits, though nothing is trained.
    training = {
        "packing": {"row_tokens": context, "row_action_tokens": longest},
        "objective": {"old_logprobs": "recompute"},
    }
    config = resolve({"agents": agents} | settings | training)
    return Exported(config, kind, folders, row["run"]["step"], row["run"])


def _inside(folder: Path, name: str) -> Path:
    """The folder of that plain name in `folder`.

    Raises:
      ConfigError: the name leads elsewhere.
    """
    if name in ("", ".", "..") or not set(name).isdisjoint("/\\\0"):
        raise ConfigError(f"{name!r} is not the name of a folder beside {NAME}")
    return folder / name


def _refuse_trust(config: Config) -> None:
    """Refuses what a file of data may not decide: which code runs on this machine, and
    behind which walls. Nothing is loaded to find out."""
    name, sandbox = config.workflow.name, config.sandbox
    asked = []
    if is_plugin(name):
        asked.append(f"run the code at workflow.name={name!r}")
    if sandbox.unsafe or sandbox.backend == "unsafe_subprocess":
        asked.append(
            f"run agents' programs without walls (sandbox.backend={sandbox.backend!r}, "
            f"sandbox.unsafe={sandbox.unsafe})"
        )
    if sandbox.backend == "sandbox_fusion":
        asked.append(
            f"send agents' programs and files to sandbox.base_url={sandbox.base_url!r}"
        )
    if asked:
        raise ConfigError(
            f"the team wants to {' and to '.join(asked)}; add --trust_team if you "
            "trust whoever wrote it"
        )
