"""Under which name a run is known elsewhere, kept in its workdir."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path


def kept_name(workdir: Path, logger: str, make: Callable[[], str]) -> str:
    """The name in WORKDIR/loggers/LOGGER, made where there is none."""
    path = workdir / "loggers" / logger
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(make() + "\n")
    return path.read_text().strip()


def new_name() -> str:
    return uuid.uuid4().hex[:16]
