"""Fetches and converts weights into the cache, and prints the folder.

python launch/weights.py smollm2-135m-instruct
"""

from __future__ import annotations

from pathlib import Path

import common

common.prepare_environment()

from absl import flags  # noqa: E402

_CACHE = flags.DEFINE_string("cache_dir", common.CACHE, "Where weights are kept.")


def main(argv: list[str]) -> None:
    common.begin(argv[:1])
    from mappa_jax.models.registry import resolve

    for name in argv[1:]:
        print(f"{name}: {resolve(name, Path(_CACHE.value))}")


if __name__ == "__main__":
    common.run_app(main)
