"""All the data of a run, checked before the first step."""

from __future__ import annotations

import dataclasses

from mappa_jax.config import DataConfig
from mappa_jax.data.errors import DataError
from mappa_jax.data.overlap import Overlap, check_overlap
from mappa_jax.data.pool import TaskStream, draw_subset
from mappa_jax.data.sources import KINDS, load_tasks, parse_sources
from mappa_jax.types import Task


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """What a run trains on and is evaluated on.

    Attributes:
      train: the training tasks of each step.
      eval: evaluation tasks by source label, in their own order.
      overlap: evaluation problems in the training pool (data.on_overlap="report").
    """

    train: TaskStream
    eval: dict[str, tuple[Task, ...]]
    overlap: list[Overlap]


def load_data(config: DataConfig) -> Data:
    """Reads and checks everything that `config` names.

    Raises:
      DataError: naming the place and the remedy.
    """
    if not config.source:
        raise DataError("data.source is empty; name a source (see docs/data.md)")
    specs = parse_sources(config.source)
    pools = tuple(tuple(load_tasks(spec, "train", config)) for spec in specs)
    if config.subset:
        pools = draw_subset(pools, config.subset, config.subset_seed)
    train = TaskStream(
        sources=pools,
        weights=tuple(spec.weight for spec in specs),
        prompts_per_step=config.prompts_per_step,
        seed=config.seed,
        stratify=config.stratify,
    )
    evaluation = load_evaluation(config)
    overlap = check_overlap(train.tasks, evaluation, config.on_overlap)
    return Data(train=train, eval=evaluation, overlap=overlap)


def load_evaluation(config: DataConfig) -> dict[str, tuple[Task, ...]]:
    """The evaluation tasks by source label.

    With an empty `eval_source`: the held-out split of each source that has one.
    """
    if config.eval_source:
        specs = parse_sources(config.eval_source)
    else:
        specs = tuple(
            spec for spec in parse_sources(config.source) if KINDS[spec.kind].held_out
        )
    return {spec.label: tuple(load_tasks(spec, "test", config)) for spec in specs}
