"""What blocks save: attention over whole rows by its definition, and block by block.

python benchmarks/attention.py --lengths=512,1024,2048,4096

Forward and backward of one layer of SmolLM2-135M's shape (9 heads of 64, 3 of them with
keys and values), two rows of packed sequences; the two alternate, and the ratio is the
median of the pairs'. Scratch is what the compiler reserves.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "launch"))

import common  # noqa: E402

common.prepare_environment()

from absl import flags  # noqa: E402
from pairs import alternate  # noqa: E402

_LENGTHS = flags.DEFINE_list("lengths", ["512", "1024", "2048"], "Tokens of a row.")
_PAIRS = flags.DEFINE_integer("pairs", 7, "Times that the two are compared.")
_JSON = flags.DEFINE_string("json", "", "Where to write the numbers, if anywhere.")
ROWS, KV_HEADS, GROUPS, HEAD_DIM, SEQUENCES = 2, 3, 3, 64, 4


def measure(length: int, pairs: int) -> dict[str, Any]:
    """Median seconds of both, their ratio, and MiB of scratch."""
    import jax
    import numpy as np

    from mappa_jax.models import attention

    rng = np.random.default_rng(length)
    shapes = [(ROWS, length, KV_HEADS, GROUPS, HEAD_DIM)]
    shapes += [(ROWS, length, KV_HEADS, HEAD_DIM)] * 2
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    cuts = np.linspace(0, length, SEQUENCES + 1).astype(np.int32)
    starts, ends = (np.repeat(c, np.diff(cuts)) for c in (cuts[:-1], cuts[1:]))
    places = [np.arange(length) - starts, ends]
    places = [np.broadcast_to(x, (ROWS, length)).astype(np.int32) for x in places]

    @functools.partial(jax.jit, static_argnames="block")
    def step(q, k, v, block):
        def total(q, k, v):
            window = np.int32(2**31 - 1)
            where = (*places, window)
            attended = attention.attend_rows(q, k, v, *where, scale=0.125, block=block)
            return (attended**2).sum()

        return jax.grad(total, argnums=(0, 1, 2))(q, k, v)

    ways = {"whole": length, "blocks": attention.row_block(length)}
    run = {n: step.lower(*arrays, block=b).compile() for n, b in ways.items()}
    first = {name: program(*arrays) for name, program in run.items()}
    for a, b in zip(*first.values(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(a).max())
    found = alternate(
        {
            name: lambda program=program: jax.block_until_ready(program(*arrays))
            for name, program in run.items()
        },
        pairs,
    )
    return {
        "tokens": length,
        "block": ways["blocks"],
        "seconds": found.seconds,
        "times_as_fast": found.times_as_fast,
        "scratch_mib": {
            name: program.memory_analysis().temp_size_in_bytes / 2**20
            for name, program in run.items()
        },
    }


def main(argv: list[str]) -> None:
    common.begin(argv)
    rows = [measure(int(length), _PAIRS.value) for length in _LENGTHS.value]
    for row in rows:
        whole, blocks = row["seconds"].values(), row["scratch_mib"].values()
        print(
            f"{row['tokens']:6} tokens: {row['times_as_fast']:.2f} times as fast "
            f"({', '.join(f'{1e3 * s:.0f} ms' for s in whole)}), scratch "
            f"{', '.join(f'{m:.0f} MiB' for m in blocks)}"
        )
    if _JSON.value:
        Path(_JSON.value).parent.mkdir(parents=True, exist_ok=True)
        Path(_JSON.value).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    common.run_app(main)
