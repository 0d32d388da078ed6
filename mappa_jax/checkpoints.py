"""Orbax checkpoints: the whole team's state and the data position, one atomic step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mappa_jax.config import CheckpointConfig
from mappa_jax.learning.update import TeamState
from mappa_jax.remote import is_remote


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; what was saved before is whole."""


class Checkpoints:
    """Saves asynchronously; keeps the last N and the best.

    A step's files appear under a temporary name and are renamed when complete, so a
    crash or a full disk leaves earlier steps as they were.
    """

    def __init__(self, folder: str | Path, config: CheckpointConfig):
        folder = epath.Path(folder)  # may be gs://...
        folder = folder if is_remote(str(folder)) else folder.resolve()
        best = config.best_metric
        policies = ocp.checkpoint_managers
        kept = [policies.LatestN(config.keep)]
        if best:
            kept.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics[best],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=(lambda metrics: metrics[best]) if best else None,
            enable_async_checkpointing=True,
            # Where the disk is too full for a folder, Orbax's threads would wait five
            # minutes for it, and the process for them.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            create=True,
        )
        self._folder = folder
        self._best = best
        self._manager = ocp.CheckpointManager(
            folder,
            options=options,
            item_names=("state", "extra"),
        )

    def latest(self) -> int | None:
        """The last whole step, or None."""
        return self._manager.latest_step()

    def choose(self, wanted: str) -> int:
        """The step that `wanted` names: "" (the last), "best", or a number.

        Raises:
          CheckpointError: it is not kept; those that are, are named.
        """
        kept = sorted(self._manager.all_steps())
        if wanted == "best" and not self._best:
            raise CheckpointError(
                "--step=best: the run kept no best one (checkpoint.best_metric); kept "
                f"are {kept}"
            )
        if not kept:
            raise CheckpointError(f"{self._folder}: no checkpoint yet; train first")
        if wanted == "best":
            return self._manager.best_step() or kept[-1]
        step = kept[-1] if not wanted else int(wanted) if wanted.isdecimal() else None
        if step not in kept:
            raise CheckpointError(
                f"--step={wanted}: not a step that is kept in {self._folder}; those "
                f"are {kept}"
            )
        return step

    def save(
        self,
        step: int,
        state: TeamState,
        extra: dict[str, Any],
        metrics: dict[str, Any],
    ) -> None:
        """Starts saving the state after `step` iterations; waits for the last save.

        Raises:
          CheckpointError: this or the previous save failed.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_as_tree(state)),
            extra=ocp.args.JsonSave(extra),
        )
        chosen = {self._best: metrics[self._best]} if self._best in metrics else None
        try:
            self._manager.save(step, args=args, metrics=chosen, force=True)
        except (OSError, ValueError) as e:
            raise CheckpointError(self._advice(step, e)) from e

    def wait(self) -> None:
        """Returns when what was being saved is on disk.

        Raises:
          CheckpointError: the save failed.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as e:
            raise CheckpointError(self._advice(None, e)) from e

    def restore(self, step: int, like: TeamState) -> tuple[TeamState, dict[str, Any]]:
        """The state placed like `like`, and the extra facts.

        Raises:
          CheckpointError: the step is damaged or of another shape.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _as_tree(like))
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target),
                    extra=ocp.args.JsonRestore(),
                ),
            )
        except (OSError, ValueError, KeyError) as e:
            raise CheckpointError(
                f"{self._folder}/{step}: cannot be restored ({e}); remove that folder "
                "to go on from the step before"
            ) from e
        leaves = jax.tree.leaves(found["state"])
        return jax.tree.unflatten(jax.tree.structure(like), leaves), found["extra"]

    def _advice(self, step: int | None, error: Exception) -> str:
        what = (
            "the last checkpoint" if step is None else f"the checkpoint of step {step}"
        )
        return (
            f"{what} could not be written to {self._folder}: {error}. Steps saved "
            f"before it are whole (latest: {self.latest()}); free some space and run "
            "the same command again"
        )

    def close(self) -> None:
        """Waits as `wait` does, and lets go of the folder.

        Raises:
          CheckpointError: the save failed.
        """
        try:
            self._manager.close()
        except (OSError, ValueError) as e:
            raise CheckpointError(self._advice(None, e)) from e


def _as_tree(state: TeamState) -> dict[str, Any]:
    """Plain dicts of the same leaves in the same order, by group and field."""
    groups = {
        f"group_{i:02d}": dict(sorted(group.items()))
        for i, group in enumerate(state.groups)
        if group is not None
    }
    tree = {"beta": state.beta, "groups": groups}
    assert len(jax.tree.leaves(tree)) == len(jax.tree.leaves(state))
    return tree
