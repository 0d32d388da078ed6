"""Workdirs and data in object storage: gs://, s3:// and whatever fsspec knows.

Object storage has no appending, and a run appends. So its files are written to a local
mirror of the process's own, and those that have changed are copied out, whole, at the
end of every iteration; checkpoints, which all hosts write together, go straight to the
storage (Orbax knows gs://). Transient faults are retried by the file systems of fsspec
themselves; what they give up is an error here.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import fsspec

CHECKPOINTS = "checkpoints"
MIRRORS = "mappa_jax_mirrors"  # the folders in the cache
FETCHED = "mappa_jax_fetched"


class RemoteError(RuntimeError):
    """The storage did not take what it was sent."""


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
    return Path(tempfile.mkdtemp(prefix=f"{digest}.", dir=above))


def fetch(path: str, cache: str | Path) -> Path:
    """A local file or folder with what lies at `path`, which may be remote.

    What has been fetched stays in the cache, and is fetched again once the storage
    holds something else.

    Raises:
      FileNotFoundError: nothing lies there.
    """
    if not is_remote(path):
        return Path(path).expanduser()
    store, root = fsspec.core.url_to_fs(path)
    root = root.rstrip("/")
    name = root.rpartition("/")[2]
    files = [root] if store.isfile(root) else store.find(root)
    if not files:
        raise FileNotFoundError(f"{path}: nothing lies there")
    version = repr((path, [(file, store.checksum(file)) for file in files]))
    digest = hashlib.sha256(version.encode()).hexdigest()[:16]
    kept = Path(cache).expanduser() / FETCHED / digest
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as part:
            for file in files:
                target = Path(part, "whole", name + file[len(root) :])
                target.parent.mkdir(parents=True, exist_ok=True)
                store.get_file(file, str(target))
            _claim(Path(part, "whole"), kept)
    return kept / name


def _claim(whole: Path, kept: Path) -> None:
    """Moves `whole` to `kept`, unless another process has just done the same."""
    try:
        os.rename(whole, kept)
    except OSError:
        if not kept.exists():
            raise


class Workdir:
    """The folder of a run, wherever it lies.

    Args:
      where: a path, or an address like gs://bucket/run.
      cache: the mirror of a remote one is kept below it.
    """

    def __init__(self, where: str, cache: Path):
        self._store: Any = None
        self._where = where
        self._pushing = threading.Lock()
        self._sent: dict[Path, tuple[int, int]] = {}
        if not is_remote(where):
            self.local = Path(where)
            self.checkpoints = str(self.local / CHECKPOINTS)
            return
        self._store, self._root = fsspec.core.url_to_fs(where)
        self.local = _mirrored(where, cache)
        atexit.register(self._remove)
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
        """Copies out what has changed since the last time; from one thread at a time.

        Raises:
          RemoteError: the storage refused; what it lacks stays in the mirror, which
            then outlives the process, and is sent by the next push.
        """
        if self._store is None:
            return
        with self._pushing:
            for path in self._files():
                version = _version(path)
                if self._sent.get(path) != version:
                    self._send(path)
                    self._sent[path] = version

    def _send(self, path: Path) -> None:
        name = f"{self._root}/{path.relative_to(self.local).as_posix()}"
        try:
            self._store.makedirs(name.rpartition("/")[0], exist_ok=True)
            self._store.put_file(str(path), name)
        except Exception as e:  # every storage has classes of its own
            atexit.unregister(self._remove)
            raise RemoteError(
                f"{self._where}: {path.name} could not be written "
                f"({type(e).__name__}: {e}). What the storage lacks is kept in "
                f"{self.local}: copy it there, then run the same command again"
            ) from e

    def _remove(self) -> None:
        shutil.rmtree(self.local, ignore_errors=True)

    def _files(self) -> list[Path]:
        if not self.local.exists():
            return []
        return sorted(path for path in self.local.rglob("*") if path.is_file())


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
