"""Problems made to order by reasoning-gym: the source "reasoning_gym:<family>".

Importing reasoning_gym takes seconds, so it is imported inside the functions.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from mappa_jax.answer_worker import score_reasoning_gym
from mappa_jax.data.errors import DataError
from mappa_jax.data.overlap import normalise
from mappa_jax.data.values import jsonable
from mappa_jax.types import Task

_RESERVED = {"seed": "data.seed", "size": "data.train_size and data.eval_size"}


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of problems with its parameters.

    Attributes:
      name: as reasoning_gym registers it, e.g. "chain_sum".
      params: keyword arguments of the family's own config class.
    """

    name: str
    params: Mapping[str, Any]

    def __post_init__(self):
        from reasoning_gym.factory import DATASETS

        if self.name not in DATASETS:
            raise DataError(
                f"reasoning_gym has no family {self.name!r}{_like(self.name, DATASETS)}"
            )
        known = {field.name for field in dataclasses.fields(DATASETS[self.name][1])}
        for key in self.params:
            if key in _RESERVED:
                raise DataError(
                    f"data.params.{self.name}.{key}: set {_RESERVED[key]} instead"
                )
            if key not in known:
                raise DataError(
                    f"data.params.{self.name}: the family has no parameter {key!r}"
                    f"{_like(key, known - set(_RESERVED))}"
                )


def check_params(params: Mapping[str, Any]) -> None:
    """Refuses parameters of families that there are not: a mistyped name would leave
    the family that was meant at its defaults."""
    from reasoning_gym.factory import DATASETS

    for name in params:
        if name not in DATASETS:
            raise DataError(
                f"data.params.{name}: reasoning_gym has no such family"
                f"{_like(name, DATASETS)}"
            )


def load_reasoning_gym(
    family: Family,
    split: Literal["train", "test"],
    seed: int,
    train_size: int,
    eval_size: int,
) -> Sequence[Task]:
    """Distinct problems of one split, the two splits disjoint.

    The splits come from two seed streams. The test split is drawn first and does not
    depend on `train_size`, so that runs that differ in it are evaluated alike; what
    is in it is left out of the training split. Problems are told apart by
    `overlap.normalise`.

    Raises:
      DataError: the parameters are impossible, the family has too few distinct
        problems, or its scorer cannot read its own entries back.
    """
    test = _draw(family, "test", seed, eval_size, exclude=frozenset())
    if split == "test":
        return test
    return _draw(
        family, "train", seed, train_size, {normalise(task.prompt) for task in test}
    )


def _draw(
    family: Family,
    split: str,
    seed: int,
    count: int,
    exclude: Iterable[str],
) -> Sequence[Task]:
    seen = set(exclude)
    tries = 4 * (count + len(seen)) + 64
    dataset = _dataset(family, _stream_seed(family.name, split, seed), tries)
    tasks: list[Task] = []
    for index in range(tries):
        if len(tasks) == count:
            break
        entry = dataset[index]
        key = normalise(entry["question"])
        if key not in seen:
            seen.add(key)
            tasks.append(_task(entry, family, f"{split}-{index}"))
    if len(tasks) < count:
        size = "data.train_size" if split == "train" else "data.eval_size"
        raise DataError(
            f"reasoning_gym:{family.name} gave only {len(tasks)} distinct {split} "
            f"problems in {tries} draws, {size} asks for {count}; lower it or widen "
            f"the family with data.params.{family.name}"
        )
    if tasks:
        _check_scorer(tasks[0], family)
    return tuple(tasks)


def _dataset(family: Family, seed: int, size: int) -> Any:
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(
            family.name, seed=seed, size=size, **family.params
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise DataError(
            f"data.params.{family.name}={dict(family.params)} is refused by the "
            f"family: {error}"
        ) from error


def _stream_seed(family: str, split: str, seed: int) -> int:
    # Families seed item i with seed + i, so that streams of neighbouring seeds are
    # the same problems shifted by one; a hash keeps them apart. Some want 32 bits.
    digest = hashlib.sha256(f"{family}/{split}/{seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 2


def _task(entry: Mapping[str, Any], family: Family, identity: str) -> Task:
    return Task(
        id=identity,
        prompt=entry["question"],
        answer=entry["answer"],
        grader=f"reasoning_gym:{family.name}",
        source=family.name,
        # The family's scorer wants both back.
        metadata={
            "entry": jsonable(entry["metadata"]),
            "params": jsonable(family.params),
        },
    )


def _check_scorer(task: Task, family: Family) -> None:
    """Refuses a family whose scorer fails on what a record keeps of its entry."""
    if task.answer is None:  # many right answers and no reference: nothing to check
        return
    score = score_reasoning_gym(
        family.name, task.prompt, task.answer, task.metadata, task.answer
    )
    if score < 0.99:
        raise DataError(
            f"reasoning_gym:{family.name} scores its own answer {score}: it cannot be "
            "graded here; choose another family"
        )


def _like(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(known)}"
