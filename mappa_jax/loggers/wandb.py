"""Weights & Biases: one run for a workdir, found again when it goes on.

Where it goes is the library's own affair (WANDB_PROJECT, WANDB_MODE=offline, login).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mappa_jax.loggers.base import Shown
from mappa_jax.loggers.names import kept_name, new_name


class WandB:
    """Scalars over `step`, histograms, a table with an action of each agent."""

    def __init__(self, workdir: Path, settings: Mapping[str, Any], resume_step: int):
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=None if wandb.Settings().project else "mappa_jax",
            name=workdir.resolve().name,
            id=kept_name(workdir, "wandb", new_name),
            resume="allow",
            dir=str(workdir),
            config=dict(settings),
        )
        # Not its own counter, which cannot go back to where a run was resumed.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, numbers: Mapping[str, float], shown: Shown) -> None:
        table = self._wandb.Table(
            columns=["agent", "action"], data=[[*row] for row in shown.texts.items()]
        )
        histograms = {
            f"{name}/{agent}": self._wandb.Histogram([*row])
            for name, values in (("scores", shown.scores), ("lengths", shown.tokens))
            for agent, row in values.items()
            if row
        }
        self._run.log({"step": step, **numbers, **histograms, "actions": table})

    def close(self) -> None:
        self._run.finish()
