"""Workdirs and data in object storage: gs://, s3:// and whatever fsspec knows.

Object storage has no appending, and a run appends. So its files are written to a local
mirror of the process's own, and what has changed is copied out at the end of every
iteration; checkpoints, which all hosts write together, go straight to the storage
(Orbax knows gs://).
"""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import fsspec

CHECKPOINTS = "checkpoints"
MIRRORS = "mappa_jax_mirrors"  # the folder in the cache


def is_remote(path: str) -> bool:
    return "://" in path


def _mirrored(url: str, cache: str | Path) -> Path:
    """A new local folder that stands for `url`.

    Every process has one of its own: two of one machine, or of machines with one home,
    must not put each other's files right.
    """
    digest = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    above = Path(cache).expanduser() / MIRRORS
    above.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{digest}.", dir=above))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def fetch(path: str, cache: str | Path) -> Path:
    """A local file or folder with what lies at `path`, which may be remote.

    Raises:
      FileNotFoundError: nothing lies there.
    """
    if not is_remote(path):
        return Path(path).expanduser()
    store, root = fsspec.core.url_to_fs(path)
    here = _mirrored(path, cache) / root.rstrip("/").rpartition("/")[2]
    if store.isfile(root):
        here.parent.mkdir(parents=True, exist_ok=True)
        store.get_file(root, str(here))
        return here
    names = store.find(root)
    if not names:
        raise FileNotFoundError(f"{path}: nothing lies there")
    for name in names:
        target = here / name[len(root) :].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        store.get_file(name, str(target))
    return here


class Workdir:
    """The folder of a run, wherever it lies.

    Args:
      where: a path, or an address like gs://bucket/run.
      cache: the mirror of a remote one is kept below it.
    """

    def __init__(self, where: str, cache: Path):
        self._store: Any = None
        self._sent: dict[Path, tuple[int, int]] = {}
        if not is_remote(where):
            self.local = Path(where)
            self.checkpoints = str(self.local / CHECKPOINTS)
            return
        self._store, self._root = fsspec.core.url_to_fs(where)
        self.local = _mirrored(where, cache)
        self.checkpoints = f"{where.rstrip('/')}/{CHECKPOINTS}"

    def pull(self) -> None:
        """Makes the mirror what lies in the storage, but for checkpoints.

        What a process that died had not copied out is lost: the run goes on from what
        the storage holds.
        """
        if self._store is None:
            return
        self._store.invalidate_cache()
        names = self._store.find(self._root) if self._store.exists(self._root) else []
        wanted = {}
        for name in names:
            inside = name[len(self._root) :].lstrip("/")
            if not inside.startswith(f"{CHECKPOINTS}/"):
                wanted[self.local / inside] = name
        for path, name in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._store.get_file(name, str(path))
            self._sent[path] = _version(path)

    def push(self) -> None:
        """Copies out what has changed since the last time."""
        if self._store is None:
            return
        for path in self._files():
            version = _version(path)
            if self._sent.get(path) != version:
                name = f"{self._root}/{path.relative_to(self.local).as_posix()}"
                self._store.makedirs(name.rpartition("/")[0], exist_ok=True)
                self._store.put_file(str(path), name)
                self._sent[path] = version

    def _files(self) -> list[Path]:
        if not self.local.exists():
            return []
        return sorted(path for path in self.local.rglob("*") if path.is_file())


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
