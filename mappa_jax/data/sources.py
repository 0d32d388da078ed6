"""From the text of `data.source` to problems: a grammar and a table of kinds.

    spec   = source {"," source}
    source = kind ":" name ["@" weight]

Each kind is one entry of KINDS; adding a kind is adding an entry.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from mappa_jax.config import DataConfig
from mappa_jax.data.errors import DataError
from mappa_jax.data.json_files import load_jsonl
from mappa_jax.remote import fetch
from mappa_jax.types import Task

Split = Literal["train", "test"]


@dataclasses.dataclass(frozen=True)
class SourceSpec:
    """One source of a mixture: where from, and its share of the prompts."""

    kind: str
    name: str
    weight: float

    @property
    def label(self) -> str:
        """The short name in `Task.source`, metric names and file names."""
        is_path = self.kind in ("jsonl", "dsbench")
        name = pathlib.PurePath(self.name).stem if is_path else self.name
        return re.sub(r"[^\w.-]+", "_", name)


@dataclasses.dataclass(frozen=True)
class Kind:
    """How one kind of source is read.

    `held_out` says whether "test" differs from "train": such a source may evaluate
    what it trains. The others give all their problems for either split.
    """

    load: Callable[[SourceSpec, Split, DataConfig], Sequence[Task]]
    held_out: bool


def parse_sources(text: str) -> tuple[SourceSpec, ...]:
    """The sources named in `data.source` or `data.eval_source`.

    Raises:
      DataError: an unknown kind, a missing name, a bad weight, or two sources that
        would share a label.
    """
    specs = tuple(_parse_one(part.strip()) for part in text.split(","))
    labels = [spec.label for spec in specs]
    for label in labels:
        if labels.count(label) > 1:
            raise DataError(
                f"two sources of {text!r} are called {label!r}; rename a file or drop "
                "one, since results are reported by this name"
            )
    return specs


def _parse_one(part: str) -> SourceSpec:
    place, mark, weight = part.rpartition("@")
    place, weight = (place, weight) if mark else (part, "1")
    kind, _, name = place.partition(":")
    if kind not in KINDS or not name:
        raise DataError(
            f"{part!r} is no source: write <kind>:<name> or <kind>:<name>@<weight>, "
            f"where the kind is one of {', '.join(KINDS)} (see docs/data.md)"
        )
    try:
        number = float(weight)
    except ValueError as error:
        raise DataError(
            f"{part!r}: {weight!r} is no weight; write a positive number after '@' "
            "(a path that holds '@' needs an explicit '@1')"
        ) from error
    if not (number > 0 and math.isfinite(number)):
        raise DataError(f"{part!r}: the weight must be positive and finite")
    return SourceSpec(kind, name, number)


def load_tasks(spec: SourceSpec, split: Split, config: DataConfig) -> Sequence[Task]:
    """The problems of one source, in its own order.

    Args:
      spec: from `parse_sources`.
      split: "train" or "test"; see `Kind.held_out`.
      config: folders, sizes, seed and parameters.

    Raises:
      DataError: with file and line or name, and what to do.
    """
    return KINDS[spec.kind].load(spec, split, config)


def cache_folder(config: DataConfig) -> pathlib.Path:
    """Where prepared TFDS data lies."""
    folder = config.cache_dir or "~/.cache/mappa_jax/tfds"
    return pathlib.Path(folder).expanduser()


def _table_folder(config: DataConfig, kind: str) -> pathlib.Path:
    """Where what is written for modelling tasks lies."""
    return pathlib.Path(config.cache_dir or "~/.cache/mappa_jax").expanduser() / kind


def _here(path: str, config: DataConfig) -> pathlib.Path:
    """A file or folder, brought here where it lies in object storage.

    Raises:
      DataError: it is not there, or the storage cannot be read.
    """
    try:
        return fetch(path, config.cache_dir or "~/.cache/mappa_jax")
    except (ImportError, OSError, ValueError) as e:
        raise DataError(
            f"{path}: cannot be read ({e}); gs:// needs the package gcsfs and "
            "credentials"
        ) from e


def _jsonl(spec: SourceSpec, split: Split, config: DataConfig) -> Sequence[Task]:
    del split
    return load_jsonl(_here(spec.name, config), spec.label)


def _competition_math(
    spec: SourceSpec, split: Split, config: DataConfig
) -> Sequence[Task]:
    del split
    from mappa_jax.data import competition_math  # imports TFDS

    folder = str(_here(config.folder, config)) if config.folder else ""
    return competition_math.load_competition_math(
        spec.name, folder, cache_folder(config)
    )


def _tfds(spec: SourceSpec, split: Split, config: DataConfig) -> Sequence[Task]:
    from mappa_jax.data import tfds_tasks  # imports TFDS

    return tfds_tasks.load_tfds(spec.name, split, spec.label, cache_folder(config))


def _reasoning_gym(
    spec: SourceSpec, split: Split, config: DataConfig
) -> Sequence[Task]:
    from mappa_jax.data import procedural

    own = ("tabular", "dsbench")  # kinds whose parameters stand beside the families'
    families = {k: v for k, v in config.params.items() if k not in own}
    procedural.check_params(families)
    known = procedural.Family(spec.name, config.params.get(spec.name, {}))
    return procedural.load_reasoning_gym(
        known, split, config.seed, config.train_size, config.eval_size
    )


def _tabular(spec: SourceSpec, split: Split, config: DataConfig) -> Sequence[Task]:
    from mappa_jax.data import tabular_tasks

    return tabular_tasks.load_tabular(
        spec.name,
        split,
        spec.label,
        _table_folder(config, "tabular"),
        seed=config.seed,
        train_size=config.train_size,
        eval_size=config.eval_size,
        params=config.params.get("tabular", {}),
    )


def _dsbench(spec: SourceSpec, split: Split, config: DataConfig) -> Sequence[Task]:
    del split
    from mappa_jax.data import dsbench

    return dsbench.load_dsbench(
        _here(spec.name, config),
        spec.label,
        str(_here(config.folder, config)) if config.folder else "",
        _table_folder(config, "dsbench"),
        params=config.params.get("dsbench", {}),
    )


KINDS: Mapping[str, Kind] = {
    "jsonl": Kind(_jsonl, held_out=False),
    "competition_math": Kind(_competition_math, held_out=False),
    "tfds": Kind(_tfds, held_out=True),
    "reasoning_gym": Kind(_reasoning_gym, held_out=True),
    "tabular": Kind(_tabular, held_out=True),
    "dsbench": Kind(_dsbench, held_out=False),
}
