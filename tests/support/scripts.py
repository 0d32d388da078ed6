"""Files that are run, not imported, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from absl import flags


def load(path: Path) -> ModuleType:
    """The file as a module that its own neighbours can be imported from, its flags
    undone: several scripts may define one of the same name."""
    before = set(flags.FLAGS)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    known = sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        del sys.modules[path.stem]
        if known is not None:
            sys.modules[path.stem] = known
        for flag in set(flags.FLAGS) - before:
            if flags.FLAGS.find_module_defining_flag(flag) == path.stem:
                delattr(flags.FLAGS, flag)
    return module
