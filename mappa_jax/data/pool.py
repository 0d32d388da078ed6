"""The training pool: subset, mixture, and the tasks of each step.

The order is a function of (seed, pool): Grain shuffles every epoch anew and gives
random access, so a step's tasks can be had without having drawn those before it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mappa_jax.data.errors import DataError
from mappa_jax.types import Task


def subset_indices(total: int, size: int, seed: int) -> np.ndarray:
    """[size] indices below `total`, drawn without replacement, ascending.

    NumPy's legacy generator, as in the reference experiment (512 of 933, seed 42).

    Raises:
      DataError: there are fewer than `size`.
    """
    if size > total:
        raise DataError(
            f"data.subset={size} exceeds the {total} training problems; lower it, or "
            "set it to 0 to take them all"
        )
    return np.sort(np.random.RandomState(seed).choice(total, size, replace=False))


def draw_subset(
    sources: Sequence[Sequence[Task]], size: int, seed: int
) -> tuple[tuple[Task, ...], ...]:
    """`size` tasks of all sources together, kept apart by source and in order."""
    owners = [(s, task) for s, tasks in enumerate(sources) for task in tasks]
    kept = [owners[i] for i in subset_indices(len(owners), size, seed)]
    return tuple(
        tuple(task for owner, task in kept if owner == s) for s in range(len(sources))
    )


@dataclasses.dataclass(frozen=True, eq=False)
class TaskStream:
    """An endless, addressable sequence of training tasks.

    Every source is shuffled anew in each of its epochs and holds each of its tasks
    once per epoch. Epochs follow one another without a gap: where the pool is no
    multiple of `prompts_per_step`, the step that spans two epochs may hold a task
    twice, so address its samples by their place in the step.

    Attributes:
      sources: the tasks, by source.
      weights: each source's share of the prompts, any positive scale.
      prompts_per_step: tasks per step.
      seed: of the shuffles.
    """

    sources: tuple[tuple[Task, ...], ...]
    weights: tuple[float, ...]
    prompts_per_step: int
    seed: int

    def __post_init__(self):
        for index, tasks in enumerate(self.sources):
            if not tasks:
                raise DataError(
                    f"training source number {index + 1} has no problems left; raise "
                    "data.subset or drop the source"
                )
        if not 0 < self.prompts_per_step <= len(self.tasks):
            raise DataError(
                f"data.prompts_per_step={self.prompts_per_step} must be positive and "
                f"at most the {len(self.tasks)} training problems; for more tries of "
                "each problem raise data.samples_per_prompt"
            )

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The pool, source after source."""
        return tuple(itertools.chain.from_iterable(self.sources))

    def batch(self, step: int) -> list[Task]:
        """The `prompts_per_step` tasks of a global step, counted from 0."""
        if step < 0:
            raise ValueError(f"a step is counted from 0, got {step}")
        first = step * self.prompts_per_step
        order = self._order
        return [order[first + offset] for offset in range(self.prompts_per_step)]

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps: JSON-serialisable.

        Args:
          step: the next step to be taken.
        """
        return {"position": step, **self._identity}

    def restore(self, state: Mapping[str, Any]) -> int:
        """The step to go on with, from `state`.

        Raises:
          DataError: the state is of another pool, seed or step size, under which the
            position would mean other tasks.
        """
        for key, value in self._identity.items():
            if state[key] != value:
                raise DataError(
                    f"the checkpoint's data differ in {key!r} (it has {state[key]!r}, "
                    f"this run {value!r}); resume with the same data settings and "
                    "files, or start in a new work folder"
                )
        return int(state["position"])

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "prompts_per_step": self.prompts_per_step,
            "fingerprint": fingerprint(self.sources, self.weights),
        }

    @functools.cached_property
    def _order(self) -> Any:
        import grain  # slow, and brings jax with it

        seeds = np.random.SeedSequence(self.seed).generate_state(len(self.sources))
        parts = [
            grain.MapDataset.source(tasks).shuffle(seed=int(seed)).repeat()
            for tasks, seed in zip(self.sources, seeds, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        return grain.MapDataset.mix(parts, weights=list(self.weights))


def fingerprint(sources: Sequence[Sequence[Task]], weights: Sequence[float]) -> str:
    """A hash of what decides the meaning of a position in the stream."""
    digest = hashlib.sha256(json.dumps([float(w) for w in weights]).encode())
    for tasks in sources:
        for task in tasks:
            row = [task.source, task.id, task.prompt, task.answer, task.grader]
            digest.update(json.dumps(row).encode() + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()
