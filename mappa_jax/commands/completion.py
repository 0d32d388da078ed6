"""Prints a completion of the mappa-* commands' flags, for bash (or zsh, after
bashcompinit).

  mappa-completion > ~/.local/share/bash-completion/completions/mappa-train
  source <(mappa-completion)

Flags of the commands are completed, and keys of the config: --config.sampler.<Tab>.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
import typing
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from absl import flags

from mappa_jax import commands
from mappa_jax.commands import common

SCRIPT = """\
_mappa() {{
  local words
  case "${{COMP_WORDS[0]##*/}}" in
{cases}
    *) return ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -o nospace -F _mappa {names}
"""


def main(argv: list[str]) -> None:
    common.begin(argv)
    names = (module.name for module in pkgutil.iter_modules(commands.__path__))
    found = {name: flags_of(name) for name in names}
    print(script({k: words for k, words in found.items() if words is not None}), end="")


def flags_of(name: str) -> list[str] | None:
    """The flags of a command as they are typed, "--workdir="; None of a module that is
    none. Several define one of the same name, so what the look has imported is undone.
    """
    known, before = set(flags.FLAGS), set(sys.modules)
    module = importlib.import_module(f"{commands.__name__}.{name}")
    words = _words(module) if hasattr(module, "run") else None
    for flag in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, flag)
    for other in set(sys.modules) - before:
        if other.startswith(f"{commands.__name__}."):
            del sys.modules[other]
            delattr(commands, other.rpartition(".")[2])
    return words


def _words(module: ModuleType) -> list[str]:
    own = flags.FLAGS.get_key_flags_for_module(module)
    words = [f"--{flag.name}" + ("" if flag.boolean else "=") for flag in own]
    if any(flag.name == "config" for flag in own):
        words += [f"--config.{key}=" for key in config_keys()]
    return words


def config_keys() -> Iterator[str]:
    """Every key of a config but for the agents', whose names a config file gives."""
    from mappa_jax.config import Config

    return _keys(Config, "")


def _keys(kind: Any, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _keys(hints[field.name], f"{prefix}{field.name}.")
        elif field.name != "agents":
            yield prefix + field.name


def script(words: Mapping[str, list[str]]) -> str:
    """The completion, from each command's words."""
    names = {name: f"mappa-{name.replace('_', '-')}" for name in words}
    cases = "\n".join(
        f"    {names[name]}) words={_quoted(' '.join(row))} ;;"
        for name, row in words.items()
    )
    return SCRIPT.format(cases=cases, names=" ".join(names.values()))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
