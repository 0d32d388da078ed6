"""Python files outside the package: configs, and the workflows and judges they name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from mappa_jax.config import ConfigError


def is_plugin(name: str) -> bool:
    """Whether a name is a place, "module:NAME" or "folder/file.py:NAME"."""
    return ":" in name


def load_object(place: str, key: str) -> Any:
    """The object at "module:NAME" or "folder/file.py:NAME".

    A file is looked for from the current folder, and runs once a process.

    Args:
      place: where it is.
      key: of the config, for the error.

    Raises:
      ConfigError: there is no such module, file or name, or it fails to import.
    """
    where, _, name = place.rpartition(":")
    try:
        module = _from_file(where) if where.endswith(".py") else _imported(where)
    except Exception as e:  # whatever a user's file raises
        raise ConfigError(
            f"config.{key}={place!r}: {where!r} cannot be imported "
            f"({type(e).__name__}: {e}); write module:NAME or folder/file.py:NAME"
        ) from e
    if not hasattr(module, name):
        raise ConfigError(f"config.{key}={place!r}: {where!r} has no {name!r}")
    return getattr(module, name)


def _imported(name: str) -> ModuleType:
    return importlib.import_module(name)


def run_file(path: str | Path) -> ModuleType:
    """A config or sweep file as a module, which nothing else can import: it runs again
    at every call.

    Raises:
      OSError: it cannot be read.
      Exception: whatever it raises.
    """
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_file(path: str) -> ModuleType:
    full = Path(path).expanduser().resolve(strict=True)
    name = f"mappa_plugin_{hashlib.sha256(str(full).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, full)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
