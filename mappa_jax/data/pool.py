"""The training pool: subset, mixture, and the tasks of each step.

The order is a function of (seed, pool): Grain shuffles every epoch anew and gives
random access, so a step's tasks can be had without having drawn those before it.
"""

from __future__ import annotations

import dataclasses
import fractions
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
      stratify: spread the kinds of task (`Task.kind`) of each source evenly over its
        epochs; see `Stratified`.
    """

    sources: tuple[tuple[Task, ...], ...]
    weights: tuple[float, ...]
    prompts_per_step: int
    seed: int
    stratify: bool = False

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
        kept = {"stratify": False, **state}  # older checkpoints do not name it
        for key, value in self._identity.items():
            if kept[key] != value:
                raise DataError(
                    f"the checkpoint's data differ in {key!r} (it has {kept[key]!r}, "
                    f"this run {value!r}); resume with the same data settings and "
                    "files, or start in a new work folder"
                )
        return int(state["position"])

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "prompts_per_step": self.prompts_per_step,
            "stratify": self.stratify,
            "fingerprint": fingerprint(self.sources, self.weights, self.stratify),
        }

    @functools.cached_property
    def _order(self) -> Any:
        import grain  # slow, and brings jax with it

        seeds = np.random.SeedSequence(self.seed).generate_state(len(self.sources))
        endless = _stratified if self.stratify else _shuffled
        parts = [
            endless(grain.MapDataset.source(tasks), tasks, int(seed))
            for tasks, seed in zip(self.sources, seeds, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        return grain.MapDataset.mix(parts, weights=list(self.weights))


def _shuffled(dataset: Any, tasks: Sequence[Task], seed: int) -> Any:
    del tasks
    return dataset.shuffle(seed=seed).repeat()


def _stratified(dataset: Any, tasks: Sequence[Task], seed: int) -> Any:
    order = Stratified([task.kind for task in tasks], seed)
    return dataset.repeat().map_with_index(lambda at, _: tasks[order[at]])


class Stratified:
    """An endless, addressable order of tasks in which every stretch is typical.

    Every epoch holds each task once. Within a kind an epoch's order is a shuffle of
    its own; the kinds take turns so that after any number m of an epoch's tasks each
    kind has had m times its share, give or take less than one. Any stretch of w tasks
    then has w times its share, give or take less than two.

    Args:
      kinds: of each task of the pool, in the pool's order.
      seed: of the shuffles.
    """

    def __init__(self, kinds: Sequence[str], seed: int):
        self._seed = seed
        self._places: dict[str, list[int]] = {}
        for place, kind in enumerate(kinds):
            self._places.setdefault(kind, []).append(place)
        self._turns = take_turns([len(places) for places in self._places.values()])
        self._epoch = functools.lru_cache(2)(self._drawn)

    def __getitem__(self, at: int) -> int:
        """The place in the pool of the task number `at`."""
        epoch, offset = divmod(at, len(self._turns))
        return self._epoch(epoch)[offset]

    def _drawn(self, epoch: int) -> list[int]:
        rng = np.random.default_rng([self._seed, epoch])
        queues = [iter(rng.permutation(p)) for p in self._places.values()]
        return [int(next(queues[kind])) for kind in self._turns]


def take_turns(counts: Sequence[int]) -> list[int]:
    """Indices of `counts`, each as often as it says, evenly spread.

    After m turns, index i has come m * counts[i] / sum(counts) times, give or take
    less than one: the algorithm of R. Tijdeman, "The chairman assignment problem"
    (Discrete Mathematics 32, 1980): of those that have fallen behind by
    1 / (2k - 2) or more, the one that must come soonest.
    """
    total, several = sum(counts), len(counts) > 1
    slack = fractions.Fraction(1, 2 * len(counts) - 2) if several else 0
    had = [0] * len(counts)
    turns = []
    for turn in range(1, total + 1):
        due = [
            ((1 - slack - behind) * total / count, index)
            for index, count in enumerate(counts)
            if (behind := fractions.Fraction(turn * count, total) - had[index]) >= slack
        ]
        chosen = min(due)[1]
        had[chosen] += 1
        turns.append(chosen)
    return turns


def fingerprint(
    sources: Sequence[Sequence[Task]], weights: Sequence[float], kinds: bool
) -> str:
    """A hash of what decides the meaning of a position in the stream.

    `kinds` says whether the tasks' kinds are of it.
    """
    digest = hashlib.sha256(json.dumps([float(w) for w in weights]).encode())
    for tasks in sources:
        for task in tasks:
            row = [task.source, task.id, task.prompt, task.answer, task.grader]
            row += [task.kind] if kinds else []
            digest.update(json.dumps(row).encode() + b"\n")
        digest.update(b"\n")
    return digest.hexdigest()
