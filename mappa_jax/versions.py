"""With what a run was made: WORKDIR/versions.jsonl, a line for each start."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from mappa_jax.records import append_row

FILE = "versions.jsonl"
PACKAGES = (
    *("mappa_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("transformers", "tokenizers", "reasoning-gym", "math-verify", "google-genai"),
)


def installed() -> dict[str, str]:
    """Python's version and those of the packages above that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # the package itself, where it is run from its sources
    return found


def note_start(workdir: Path, step: int, device: str, devices: int, hosts: int) -> None:
    """Records a start after `step` iterations, on so many devices of one kind."""
    line = {
        "step": step,
        "device": device,
        "devices": devices,
        "hosts": hosts,
        "system": platform.platform(),
        "packages": installed(),
    }
    append_row(workdir / FILE, line)
