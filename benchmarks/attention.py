"""What blocks save: attention over whole rows by its definition, and block by block.

python benchmarks/attention.py --lengths=512,1024,2048,4096

Forward and backward of one layer of SmolLM2-135M's shape (9 heads of 64, 3 of them with
keys and values), two rows of packed sequences; the two alternate, and the ratio is the
median of the pairs'. Scratch is what the compiler reserves.
"""

from __future__ import annotations

import functools
from typing import Any

from mappa_jax.commands import common

common.prepare_environment()

from absl import flags  # noqa: E402
from pairs import compare, tell  # noqa: E402

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
    about = {"tokens": length, "block": ways["blocks"]}
    return about | compare(run, arrays, pairs)


def main(argv: list[str]) -> None:
    common.begin(argv)
    rows = {
        f"{length:>6} tokens": measure(int(length), _PAIRS.value)
        for length in _LENGTHS.value
    }
    tell(rows, _JSON.value)


if __name__ == "__main__":
    common.run_app(main)
