"""AIME and AMC problems as a TFDS builder: the source "competition_math:<name>".

Importing this module imports TFDS, which is slow: `sources` does so only on need.
The problems come from a folder of JSON files or from Hugging Face; either way they
are prepared once into ArrayRecord files and read at random from there. TensorFlow
is not needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from mappa_jax.data.errors import DataError
from mappa_jax.data.json_files import parse_rows, prompt_text, read_text
from mappa_jax.data.values import answer_text, jsonable
from mappa_jax.types import Task

Rows = Sequence[tuple[str, Mapping[str, Any]]]

# One AIME problem of the collection has two official answers.
_TWO_ANSWERS = re.compile(r"(\S+) or (\S+) \(both were accepted\)")
_OWN_FIELDS = ("prompt", "answer", "id")


@dataclasses.dataclass(frozen=True)
class Collection:
    """One set of problems: its file in data.folder and its home on Hugging Face.

    `fields` maps the Hugging Face columns to ours; `hub` is None where the set has
    no public home, and `hub_size` is the number of problems that it has there.
    """

    file: str
    description: str
    hub: str | None = None
    hub_size: int = 0
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)


COLLECTIONS: Mapping[str, Collection] = {
    "aime_1983_2024": Collection(
        file="AIME_1983_2024.json",
        description="The AIME from 1983 to 2024, 933 problems.",
        hub="di-zhang-fdu/AIME_1983_2024",
        hub_size=933,
        fields={
            "Question": "prompt",
            "Answer": "answer",
            "ID": "id",
            "Year": "year",
            "Problem Number": "problem_number",
            "Part": "part",
        },
    ),
    "aime_2025": Collection(
        file="aime_2025.json",
        description="The AIME of 2025, 30 problems.",
        hub="math-ai/aime25",
        hub_size=30,
        fields={"problem": "prompt", "answer": "answer", "id": "id"},
    ),
    "amc": Collection(
        file="amc.json",
        description="AMC 12 problems with integer answers.",
        hub="AI-MO/aimo-validation-amc",
        hub_size=83,
        fields={"problem": "prompt", "answer": "answer", "id": "id", "url": "url"},
    ),
    "amc_eval_32": Collection(
        file="amc_eval_32.json",
        description="32 AMC problems, the evaluation set of the MAPPA experiment.",
    ),
}


class CompetitionMath(tfds.core.GeneratorBasedBuilder):
    """Problem, answer, id and metadata (JSON text), in the order of the source."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS looks beside the code for checksums of downloads, of which there are none
    # here, and on the way imports a package that it does not declare.
    code_path = None
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=collection.description)
        for name, collection in COLLECTIONS.items()
    ]

    def __init__(self, *, rows: Callable[[], Rows], **kwargs: Any):
        self._rows = rows
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description="Competition mathematics problems with short answers.",
            features=tfds.features.FeaturesDict(
                {"prompt": text, "answer": text, "id": text, "metadata": text}
            ),
            disable_shuffling=True,  # "512 of 933, order kept" needs the order
        )

    def _split_generators(self, dl_manager: Any) -> Mapping[str, Iterator[Any]]:
        del dl_manager  # `rows` knows where the problems are
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, Mapping[str, str]]]:
        name = self.builder_config.name
        for index, (where, row) in enumerate(self._rows()):
            yield index, _example(row, where, name, index)


def load_competition_math(name: str, folder: str, cache: pathlib.Path) -> list[Task]:
    """The problems of one collection, in its order.

    Args:
      name: a key of COLLECTIONS.
      folder: where the JSON files lie, or "" for Hugging Face.
      cache: prepared data goes to `cache/<hash of the source files>/`, so that a
        changed file is prepared anew.

    Raises:
      DataError: unknown name, missing or malformed file, or no network.
    """
    if name not in COLLECTIONS:
        known = ", ".join(COLLECTIONS)
        raise DataError(f"competition_math has no collection {name!r}; it has {known}")
    collection = COLLECTIONS[name]
    if folder:
        files = [pathlib.Path(folder).expanduser() / collection.file]
        rows = _folder_rows
    else:
        from mappa_jax.data import hub  # pyarrow and the client only on need

        files = hub.download(collection.hub, name, collection.file)
        rows = hub.rows_reader(collection.fields, collection.hub_size)
    builder = CompetitionMath(
        rows=lambda: rows(files), config=name, data_dir=cache / _digest(files)
    )
    builder.download_and_prepare()
    examples = builder.as_data_source("train")
    return [_task(examples[index], name) for index in range(len(examples))]


def _folder_rows(files: Sequence[pathlib.Path]) -> Rows:
    return [row for path in files for row in parse_rows(read_text(path), path)]


def _digest(files: Sequence[pathlib.Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(read_bytes(path))
    return digest.hexdigest()[:16]


def read_bytes(path: pathlib.Path) -> bytes:
    """The file's bytes; DataError with the remedy where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); set data.folder to the folder "
            'with the competition_math JSON files, or to "" to download them'
        ) from error


def _example(
    row: Mapping[str, Any], where: str, name: str, index: int
) -> Mapping[str, str]:
    metadata = {k: jsonable(v) for k, v in row.items() if k not in _OWN_FIELDS}
    answer = answer_text(row.get("answer"), where)
    if answer is None:
        raise DataError(f"{where}: 'answer' is missing; every problem needs one")
    two = _TWO_ANSWERS.fullmatch(answer)
    if two:
        metadata["accepted_answers"] = list(two.groups())
    return {
        "prompt": prompt_text(row, where),
        "answer": answer,
        "id": str(row.get("id", f"{name}-{index:03d}")),
        "metadata": json.dumps(metadata),
    }


def _task(example: Mapping[str, Any], name: str) -> Task:
    fields = {key: bytes(value).decode() for key, value in example.items()}
    return Task(
        id=fields["id"],
        prompt=fields["prompt"],
        answer=fields["answer"],
        source=name,
        metadata=json.loads(fields["metadata"]),
    )
