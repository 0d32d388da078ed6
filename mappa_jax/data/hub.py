"""Tables from the Hugging Face Hub, read with pyarrow."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mappa_jax.data.errors import DataError

_SUFFIXES = (".parquet", ".jsonl", ".csv")


def download(repository: str | None, name: str, file: str) -> list[pathlib.Path]:
    """The data files of a Hub data set, from the client's own cache where present.

    Args:
      repository: "owner/name" on the Hub, or None where the set is not there.
      name: what the user called it, for the error.
      file: its file name in `data.folder`, for the error.

    Raises:
      DataError: it is not on the Hub, the Hub cannot be reached, or holds no table.
    """
    remedy = f"set data.folder to a folder that holds {file}"
    if repository is None:
        raise DataError(f"competition_math:{name} is not on Hugging Face; {remedy}")
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            repo_type="dataset",
            allow_patterns=[f"*{suffix}" for suffix in _SUFFIXES],
        )
    except OSError as error:  # the client's network and cache errors are OSErrors
        raise DataError(
            f"competition_math:{name}: {repository} cannot be downloaded from Hugging "
            f"Face ({error}); without a network, {remedy}"
        ) from error
    found = sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file())
    for suffix in _SUFFIXES:  # one format only: sets often come in several
        files = [path for path in found if path.suffix == suffix]
        if files:
            return files
    raise DataError(f"{repository} holds no parquet, JSON-lines or CSV file; {remedy}")


def rows_reader(
    fields: Mapping[str, str], size: int
) -> Callable[[Sequence[pathlib.Path]], list[tuple[str, Mapping[str, Any]]]]:
    """A function from files to (where, row) pairs with columns renamed by `fields`.

    It raises DataError where a column is missing or there are not `size` rows: a
    repository that has changed must not pass for the one that was meant.
    """

    def read(files: Sequence[pathlib.Path]) -> list[tuple[str, Mapping[str, Any]]]:
        rows = []
        for path in files:
            table = read_table(path)
            missing = [name for name in fields if name not in table.column_names]
            if missing:
                raise DataError(
                    f"{path}: the column {missing[0]!r} is missing (columns: "
                    f"{', '.join(table.column_names)}); use data.folder instead"
                )
            for index, row in enumerate(table.select(list(fields)).to_pylist()):
                renamed = {fields[name]: value for name, value in row.items()}
                rows.append((f"{path}: row {index}", renamed))
        if len(rows) != size:
            raise DataError(
                f"{files[0].parent}: {len(rows)} problems where {size} are expected; "
                "the repository has changed: use data.folder instead"
            )
        return rows

    return read


def read_table(path: pathlib.Path) -> Any:
    """A parquet, JSON-lines or CSV file as a pyarrow table."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return parquet.read_table(path)
    if path.suffix == ".jsonl":
        from pyarrow import json

        return json.read_json(path)
    from pyarrow import csv

    # Statements run over several lines inside quotes.
    return csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True))
