"""Question answering sets of TFDS's own catalogue: the source "tfds:<name>".

Importing this module imports TFDS, which is slow: `sources` does so only on need.
"""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import tensorflow_datasets as tfds

from mappa_jax.data.errors import DataError
from mappa_jax.types import Task

# The splits that may stand for each of ours, the first one present is taken.
_SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "test": ("test", "validation"),
}
_FINAL_ANSWER = "####"  # GSM8K writes its reasoning before this mark


def load_tfds(
    name: str, split: Literal["train", "test"], source: str, cache: pathlib.Path
) -> Sequence[Task]:
    """The problems of a TFDS set with the features `question` and `answer`.

    Args:
      name: as in TFDS, e.g. "gsm8k" or "math_dataset/arithmetic__mul".
      split: ours; "test" falls to TFDS's "validation" where there is no "test".
      source: the `Task.source` of the result.
      cache: TFDS's data folder.

    Raises:
      DataError: unknown name, no network, no such split or no such features.
    """
    builder = _prepared(name, cache)
    present = [s for s in _SPLITS[split] if s in builder.info.splits]
    if not present:
        raise DataError(
            f"tfds:{name} has no {split} split (it has "
            f"{', '.join(builder.info.splits)}); name another data.eval_source"
        )
    missing = {"question", "answer"} - set(builder.info.features)
    if missing:
        raise DataError(
            f"tfds:{name} has no feature {', '.join(sorted(missing))} (it has "
            f"{', '.join(builder.info.features)}); convert it to JSON lines and use "
            "jsonl:<path>"
        )
    rows = builder.as_data_source(present[0])
    return [
        _task(rows[index], source, f"{present[0]}-{index}")
        for index in range(len(rows))
    ]


def _prepared(name: str, cache: pathlib.Path) -> Any:
    # TFDS registers its older sets, GSM8K among them, only when they are imported.
    importlib.import_module("tensorflow_datasets.text")
    try:
        builder = tfds.builder(name, data_dir=cache, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError as error:
        raise DataError(
            f"TFDS has no data set {name!r}; see "
            "https://www.tensorflow.org/datasets/catalog for the names"
        ) from error
    try:
        builder.download_and_prepare()
    except Exception as error:  # every kind of network, disk and import trouble
        raise DataError(
            f"tfds:{name} cannot be prepared ({type(error).__name__}: {error}); "
            f"without a network, prepare it elsewhere and copy it to {cache}, or use "
            "jsonl:<path>"
        ) from error
    return builder


def _task(row: Mapping[str, Any], source: str, identity: str) -> Task:
    question = bytes(row["question"]).decode()
    answer = bytes(row["answer"]).decode()
    return Task(
        id=identity,
        prompt=question,
        answer=answer.rpartition(_FINAL_ANSWER)[2].strip(),
        source=source,
        metadata={"worked_answer": answer} if _FINAL_ANSWER in answer else {},
    )
