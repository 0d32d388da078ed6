"""The fused kernels of accelerators against the attention that needs none.

By interpreters, where there is no accelerator; cuDNN's call by XLA's own operations.
"""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from mappa_jax.models import attention, kernels
from mappa_jax.models.cache import Cache, init_cache, stored
from mappa_jax.models.decoder import Decoder

N, K, G, H = 2, 2, 3, 128
FAR = np.int32(2**31 - 1)


@pytest.fixture
def interpreted(monkeypatch):
    """Platforms' kernels where there is only a CPU."""
    over_cache = functools.partial(kernels.over_cache, interpret=True)
    cudnn = functools.partial(kernels.rows_by_cudnn, implementation="xla")
    splash = functools.partial(kernels.rows_by_splash, interpret=True)
    monkeypatch.setattr(kernels, "over_cache", over_cache)
    monkeypatch.setattr(kernels, "rows_by_cudnn", cudnn)
    monkeypatch.setattr(kernels, "rows_by_splash", splash)


def decoding(fused):
    """A context for the kernel that the argument `interpret` does not reach."""
    if fused == "tpu":
        return pltpu.force_tpu_interpret_mode()
    return contextlib.nullcontext()


def side_by_side(length, *lengths):
    """Positions and ends [1, length] of sequences of these lengths, then padding."""
    starts = np.cumsum((0, *lengths))
    positions, ends = np.zeros((2, 1, length), np.int32)
    for start, count in zip(starts, lengths, strict=False):
        positions[0, start : start + count] = np.arange(count)
        ends[0, start : start + count] = start + count
    return positions, ends


@pytest.mark.parametrize("fused", ["gpu", "tpu"])
def test_rows_and_their_gradients(interpreted, fused):
    """Sequences side by side, some padding, no multiple of a kernel's block."""
    rng = np.random.default_rng(0)
    places = [side_by_side(150, 90, 40), side_by_side(150, 1, 149)]
    positions, ends = (np.concatenate(x) for x in zip(*places, strict=True))
    arrays = [
        rng.normal(size=shape).astype(np.float32)
        for shape in ((N, 150, K, G, H), (N, 150, K, H), (N, 150, K, H))
    ]
    real = (ends > 0)[..., None, None, None]
    grad = rng.normal(size=arrays[0].shape).astype(np.float32) * real

    def run(fused):
        def attend(q, k, v):
            where = (positions, ends, FAR)
            out = attention.attend_rows(q, k, v, *where, scale=0.1, fused=fused)
            return jnp.where(real, out, 0)

        out, back = jax.vjp(attend, *arrays)
        return [out, *back(grad)]

    for got, want in zip(run(fused), run(None), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


def test_on_a_gpu_rows_may_be_trees_and_have_windows(interpreted):
    """Two continuations of five tokens; keys at most two before their query."""
    rng = np.random.default_rng(1)
    q, k, v = (
        rng.normal(size=s).astype(np.float32)
        for s in ((1, 11, K, G, 16), (1, 11, K, 16), (1, 11, K, 16))
    )
    positions = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7]], np.int32)
    ends = np.array([[11] * 5 + [8] * 3 + [11] * 3], np.int32)
    for window in (FAR, np.int32(3)):
        where = (positions, ends, window)
        want = attention.attend_rows(q, k, v, *where, scale=0.3)
        got = attention.attend_rows(q, k, v, *where, scale=0.3, fused="gpu")
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("slots", [None, (3, 0)])
@pytest.mark.parametrize(
    ("fused", "dtype", "apart"),
    # The TPU's kernel multiplies float32 in bfloat16.
    [("gpu", "float32", 1e-5), ("gpu", "int8", 1e-5), ("tpu", "float32", 0.02)],
)
def test_a_token_a_row_over_the_cache(interpreted, fused, dtype, apart, slots):
    """Rows of one token, of some blocks, of the whole cache, and padding; the second of
    two layers."""
    rng = np.random.default_rng(2)
    shape = (2, 4, K, 384, H)  # L, B, K, S, H
    parts = [
        stored(jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.dtype(dtype))
        for _ in range(2)
    ]
    cache = Cache(*(x for x, _ in parts), *(scale for _, scale in parts))
    at = np.array([[0], [200], [383], [384]], np.int32)[: len(slots or range(4))]
    q = rng.normal(size=(len(at), 1, K, G, H)).astype(np.float32)
    rows = None if slots is None else np.array(slots, np.int32)
    where = (np.int32(1), rows, at, FAR, np.int32(3))
    attend = functools.partial(
        attention.attend_cache, q, cache, *where, block=128, scale=0.1
    )
    want = np.asarray(attend())
    with decoding(fused):
        got = np.asarray(attend(fused=fused))
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, atol=apart)
    assert not got[3:].any()


@pytest.mark.parametrize("fused", ["gpu", "tpu"])
def test_a_model_reads_and_decodes_the_same(interpreted, fused, micro):
    """Whole rows, then a token more of each over the cache; the cache's own too."""
    cfg = dataclasses.replace(micro, head_dim=128)
    model, other = Decoder(cfg), Decoder(cfg, fused=fused)
    tokens = np.arange(12, dtype=np.int32).reshape(2, 6) % cfg.vocab_size
    positions, ends = np.tile(np.arange(6, dtype=np.int32), (2, 1)), np.full((2, 6), 6)
    variables = model.init(jax.random.key(0), tokens, positions, ends)
    want, _ = model.apply(variables, tokens, positions, ends)
    got, _ = other.apply(variables, tokens, positions, ends)
    np.testing.assert_allclose(got, want, atol=1e-4)

    cache = init_cache(cfg, 2, 128)
    decode = functools.partial(model.apply, variables, blocks=np.int32(1))
    _, cache = decode(tokens, positions, cache=cache)
    last = (tokens[:, :1], np.full((2, 1), 6, np.int32))
    want, cache_after = decode(*last, cache=cache)
    with decoding(fused):
        over = other.apply(variables, *last, cache=cache, blocks=np.int32(1))
    got, cache_fused = over
    np.testing.assert_allclose(got, want, atol=1e-4 if fused == "gpu" else 0.05)
    written = cache_fused.k[:, :, :, 6], cache_after.k[:, :, :, 6]
    np.testing.assert_allclose(*written, atol=1e-4 if fused == "gpu" else 0.05)


def test_a_gpus_kernel_reads_the_cache_where_it_lies():
    """What is lowered for CUDA hands the whole cache over as it is; nothing as large is
    made on the way."""
    cache = jax.eval_shape(lambda: Cache(*jnp.zeros((2, 3, 4, K, 384, 64))))
    q = jax.ShapeDtypeStruct((4, K, G, 64), jnp.float32)
    lengths = jax.ShapeDtypeStruct((4,), jnp.int32)

    def attend(q, cache, lengths, layer):
        return kernels.over_cache(
            q, cache, layer, None, lengths, scale=0.1, platform="gpu"
        )

    lowered = (
        jax.jit(attend).trace(q, cache, lengths, 1).lower(lowering_platforms=("cuda",))
    )
    text = lowered.as_text()
    whole = f"1x{3 * 4 * K * 6}x64x64xf32"
    assert "triton" in text
    makers = [
        line.split("=")[1].split()[0]
        for line in text.splitlines()
        if "=" in line and line.rstrip().endswith(f"tensor<{whole}>")
    ]
    assert makers == ["stablehlo.reshape"] * 2


@pytest.mark.parametrize(
    ("platform", "changes", "key"),
    [
        ("cpu", {}, "attention"),
        ("gpu", {"devices": 2}, "mesh"),
        ("gpu", {"dtype": "float32"}, "dtype"),
        ("gpu", {"kv_dtype": "float8_e4m3fn"}, "sampler.kv_dtype"),
        ("tpu", {"kv_dtype": "int8"}, "sampler.kv_dtype"),
        ("tpu", {"share_prefixes": True}, "packing.share_prefixes"),
        ("tpu", {"head_dim": 64}, "attention"),
        ("gpu", {"sliding_layers": (False, True)}, "attention"),
    ],
)
def test_what_the_kernels_cannot_do_is_said(micro, platform, changes, key):
    good = dict(devices=1, dtype="bfloat16", kv_dtype="bfloat16", share_prefixes=False)
    own = {k: changes.pop(k) for k in ("head_dim", "sliding_layers") if k in changes}
    cfg = dataclasses.replace(micro, **{"head_dim": 128} | own)
    found = kernels.unfit(cfg, platform, **good | changes)
    assert found is not None and found[0] == key
    for fine in ("gpu", "tpu"):
        assert (
            kernels.unfit(dataclasses.replace(micro, head_dim=128), fine, **good)
            is None
        )
