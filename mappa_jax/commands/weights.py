"""Fetches and converts weights into the cache, and prints the folder.

python launch/weights.py smollm2-135m-instruct
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from mappa_jax.commands import common

_CACHE = flags.DEFINE_string("cache_dir", common.CACHE, "Where weights are kept.")


def main(argv: list[str]) -> None:
    common.begin(argv[:1])
    from mappa_jax.models.registry import resolve

    for name in argv[1:]:
        print(f"{name}: {resolve(name, Path(_CACHE.value))}")


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
