"""What the fused head saves: log-probabilities by autodiff, and models/head.py.

python benchmarks/head.py --json=docs/performance/head.json

Forward and backward over 2,048 action places of SmolLM2-135M's shape (49,152 tokens,
width 576), by the share of places that are trained on. Autodiff is what one would
write: blocks of 256 places, checkpointed, each with its whole vocabulary, all places
computed and the others masked. The two alternate; scratch is what the compiler
reserves.
"""

from __future__ import annotations

from typing import Any

from mappa_jax.commands import common

common.prepare_environment()

from absl import flags  # noqa: E402
from pairs import compare, tell  # noqa: E402

_SHARES = flags.DEFINE_list("shares", ["1", "0.5"], "Of the places, trained on.")
_FROZEN = flags.DEFINE_bool("frozen", False, "The projection is not trained (LoRA).")
_PAIRS = flags.DEFINE_integer("pairs", 7, "Times that the two are compared.")
_JSON = flags.DEFINE_string("json", "", "Where to write the numbers, if anywhere.")
PLACES, WIDTH, VOCABULARY, BLOCK = 2048, 576, 49152, 256


def measure(share: float, frozen: bool, pairs: int) -> dict[str, Any]:
    """Median seconds of both, their ratio, and MiB of scratch."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from mappa_jax.models.head import Head, token_scores

    rng = np.random.default_rng(0)
    w = rng.normal(0, 0.02, (VOCABULARY, WIDTH)).astype(np.float32)
    h = rng.normal(0, 1, (PLACES, WIDTH)).astype(np.float32)
    token = rng.integers(0, VOCABULARY, PLACES).astype(np.int32)
    live = int(share * PLACES)
    gain = np.where(np.arange(PLACES) < live, rng.normal(0, 1, PLACES), 0)
    gain = gain.astype(np.float32)
    warm = np.ones(PLACES, np.float32)

    def autodiff(w, h):
        @jax.checkpoint
        def block(args):
            h, token = args
            logp = jax.nn.log_softmax(h @ w.T)
            return jnp.take_along_axis(logp, token[:, None], 1)[:, 0]

        parts = (h.reshape(-1, BLOCK, WIDTH), token.reshape(-1, BLOCK))
        return jax.lax.map(block, parts).reshape(-1)

    def fused(w, h):
        blocks = jnp.int32(-(-live // BLOCK))
        return token_scores(Head(BLOCK), w, h, token, warm, blocks).logprob

    def program(function):
        wanted = (1,) if frozen else (0, 1)
        step = jax.grad(lambda w, h: (gain * function(w, h)).sum(), wanted)
        return jax.jit(step).lower(w, h).compile()

    run = {"autodiff": program(autodiff), "fused": program(fused)}
    about = {"share": share, "frozen": frozen}
    return about | compare(run, jax.device_put((w, h)), pairs)


def main(argv: list[str]) -> None:
    common.begin(argv)
    rows = {
        f"{float(share):.0%} trained on": measure(
            float(share), _FROZEN.value, _PAIRS.value
        )
        for share in _SHARES.value
    }
    tell(rows, _JSON.value)


if __name__ == "__main__":
    common.run_app(main)
