"""Attention block by block against its definition."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mappa_jax.models import attention
from mappa_jax.models.cache import Cache, init_cache, stored, write, write_rows

N, K, G, H = 2, 2, 3, 4
WHOLE = 10**6
FAR = 2**31 - 1


def trees(rng, length):
    """Random prefix trees in depth-first order: positions and ends, [N, length]; what
    is left over is padding."""
    positions, ends = np.zeros((2, N, length), np.int32)
    for n in range(N):
        used = int(rng.integers(1, length + 1))

        def grow(start, stop, depth, n=n):
            """One sequence at `start`, and below it others up to `stop`."""
            own = int(rng.integers(1, stop - start + 1))
            positions[n, start : start + own] = depth + np.arange(own)
            ends[n, start : start + own] = stop
            at = start + own
            while at < stop:
                part = int(rng.integers(1, stop - at + 1))
                grow(at, at + part, depth + own)
                at += part

        at = 0
        while at < used:
            part = int(rng.integers(1, used - at + 1))
            grow(at, at + part, 0)
            at += part
    return positions, ends


@functools.partial(jax.jit, static_argnames="block")
def run(arrays, places, window, grad, block):
    """[output, gradients of q, k and v]"""

    def attend(q, k, v):
        return attention.attend_rows(q, k, v, *places, window, scale=0.5, block=block)

    out, back = jax.vjp(attend, *arrays)
    return [out, *back(grad.astype(out.dtype))]


def both_ways(length, block, window, seed, dtype):
    """((output, gradients) by blocks, the same by the definition), padding's aside."""
    rng = np.random.default_rng(seed)
    positions, ends = trees(rng, length)
    arrays = [
        jnp.asarray(rng.normal(size=shape), dtype)
        for shape in ((N, length, K, G, H), (N, length, K, H), (N, length, K, H))
    ]
    used = (np.arange(length) < ends)[..., None, None, None]
    grad = (rng.normal(size=arrays[0].shape) * used).astype(np.float32)
    ways = (run(arrays, (positions, ends), window, grad, b) for b in (block, WHOLE))
    return [
        [np.asarray(x, np.float32) for x in (out * used, *grads)]
        for out, *grads in ways
    ]


@settings(max_examples=25, deadline=None)
@given(
    length=st.sampled_from([5, 8, 21]),
    block=st.sampled_from([3, 4]),
    window=st.sampled_from([1, 3, FAR]),
    seed=st.integers(0, 1000),
)
def test_blocks_give_what_the_whole_gives(length, block, window, seed):
    """Outputs and gradients, whether or not the blocks divide the row."""
    found, want = both_ways(length, block, np.int32(window), seed, jnp.float32)
    for got, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_in_bfloat16_they_differ_by_its_rounding():
    found, want = both_ways(21, 4, np.int32(FAR), 3, jnp.bfloat16)
    for got, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(got, expected, atol=0.03 * np.abs(expected).max())


def test_a_row_of_padding_is_finite():
    rows = np.zeros((1, 9), np.int32)
    q, k = np.ones((1, 9, K, G, H), np.float32), np.ones((1, 9, K, H), np.float32)

    def total(q, k, v):
        window = np.int32(FAR)
        out = attention.attend_rows(q, k, v, rows, rows, window, scale=1.0, block=4)
        return out.sum()

    value, grads = jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, k)
    assert value == 0
    for grad in grads:
        np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize(
    ("length", "block"), [(32, 256), (8192, 256), (8200, 384), (28672, 896)]
)
def test_long_rows_have_at_most_so_many_blocks(length, block):
    assert attention.row_block(length) == block
    assert length <= block * attention.MOST_BLOCKS


@pytest.mark.parametrize("remat", [False, True])
def test_no_array_of_a_rows_square_exists(remat):
    """In two layers, forward and backward, of rows of 1,024 tokens in blocks of 64."""
    length = 1024
    q = jax.ShapeDtypeStruct((1, length, 1, 1, 8), jnp.float32)
    places = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def loss(q, positions, ends):
        def layer(x, _):
            window = np.int32(FAR)
            where = (positions, ends, window)
            k = x[..., 0, :]
            return attention.attend_rows(x, k, k, *where, scale=1.0, block=64), None

        layer = jax.checkpoint(layer) if remat else layer
        return jax.lax.scan(layer, q, length=2)[0].sum()

    compiled = jax.jit(jax.grad(loss)).lower(q, places, places).compile()
    sizes = re.findall(r"[a-z]+\d*\[([\d,]+)\]", compiled.as_text())
    most = max(math.prod(map(int, size.split(","))) for size in sizes)
    assert most < length * length / 16


@pytest.mark.parametrize("window", [FAR, 5])
def test_tokens_over_a_cache_see_what_they_see_in_whole_rows(window):
    """The last 6 of 19 tokens of row 0 and of 11 of row 1, in slots 3 and 1 of the
    cache, whose other slots and layers hold something else."""
    rng = np.random.default_rng(3)
    rows, slots, ends, t = 2, np.array([3, 1], np.int32), np.array([19, 11]), 6
    k, v = (rng.normal(size=(rows, 24, 2, 4)).astype(np.float32) for _ in range(2))
    q = rng.normal(size=(rows, 24, 2, 3, 4)).astype(np.float32)
    positions = np.broadcast_to(np.arange(24), (rows, 24))
    seen_to = np.where(positions < ends[:, None], ends[:, None], 0)
    where = (positions, seen_to, np.int32(window))
    whole = attention.attend_rows(q, k, v, *where, scale=0.5)
    tables = rng.normal(size=(2, 2, 5, 2, 24, 4)).astype(np.float32)
    for table, part in zip(tables, (k, v), strict=True):
        table[1, slots] = part.swapaxes(1, 2)
    last = ends[:, None] - t + np.arange(t)
    row = np.arange(rows)[:, None]
    got = attention.attend_cache(
        q[row, last],
        Cache(*map(jnp.asarray, tables)),
        np.int32(1),
        slots,
        last,
        np.int32(window),
        np.int32(3),
        block=8,
        scale=0.5,
    )
    np.testing.assert_allclose(got, np.asarray(whole)[row, last], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_a_slot_held_before_reaches_nobody(dtype, padded):
    """Numbers that are none, behind a row's position, in keys and values, or in their
    scales; also beside padding, whose position is beyond the cache."""
    rng = np.random.default_rng(0)
    shape, t = (1, 2, 2, 16, 4), 1 + padded  # L, N, K, S, H
    k, v = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    q = rng.normal(size=(2, t, 2, 3, 4)).astype(np.float32)
    at = np.array([[5, 16], [9, 16]], np.int32)[:, :t]
    parts = [stored(jnp.asarray(x), jnp.dtype(dtype)) for x in (k, v)]
    cache = Cache(*(x for x, _ in parts), *(scale for _, scale in parts))

    def attended(cache):
        where = (np.int32(0), None, at, np.int32(99), np.int32(2))
        out = attention.attend_cache(q, cache, *where, block=8, scale=0.5)
        return np.asarray(out)

    def spoilt(x):
        if x.dtype == jnp.int8:  # which cannot
            return x
        return x.at[0, 0, :, 6:].set(np.nan).at[0, 1, :, 10:].set(np.nan)

    want = attended(cache)
    np.testing.assert_array_equal(attended(jax.tree.map(spoilt, cache)), want)
    assert np.isfinite(want).all() and not want[:, 1:].any()


def test_who_sees_nothing_in_the_live_blocks_gets_zeros():
    """A row that has ended, with a window, while the others are far behind it."""
    k, v = jnp.ones((2, 1, 1, 1, 16, 4))
    where = (np.int32(0), None, np.array([[15]]), np.int32(4), np.int32(1))
    q = np.ones((1, 1, 1, 2, 4), np.float32)
    out = attention.attend_cache(q, Cache(k, v), *where, block=8, scale=0.5)
    assert not np.asarray(out).any()


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16"])
def test_what_is_too_large_for_the_cache_is_its_largest(dtype):
    large = np.asarray([1e9, -1e9, 0.5], np.float32)
    got = np.asarray(stored(jnp.asarray(large), jnp.dtype(dtype))[0], np.float32)
    assert np.isfinite(got).all()
    assert got[0] == -got[1] >= 448 and got[2] == 0.5


def test_a_cache_of_int8_is_within_half_a_step_of_what_was_written(micro):
    """Of a 127th of the largest magnitude of a head; zeros stay zeros."""
    rng = np.random.default_rng(5)
    shape = (micro.n_layers, 2, micro.n_kv_heads, 6, micro.head_dim)  # L, N, K, T, H
    k, v = (rng.normal(0, 3, shape).astype(np.float32) for _ in range(2))
    k[:, :, :, 2] = 0
    cache = init_cache(micro, 4, 8, jnp.int8)
    cache = write_rows(cache, jnp.array([3, 4]), Cache(k, v))  # the second is dropped
    later = rng.normal(size=(2, 1, micro.n_kv_heads, micro.head_dim))
    at = np.array([[6], [8]])  # the second lies beyond the cache
    cache = write(cache, np.int32(1), jnp.array([3, 0]), later, later, at)
    for values, scale, want in (
        (cache.k, cache.k_scale, k),
        (cache.v, cache.v_scale, v),
    ):
        got = np.array(values * scale[..., None])
        most = np.abs(want).max(-1, keepdims=True)
        assert (np.abs(got[:, 3, :, :6] - want[:, 0]) <= most[:, 0] / 254 * 1.001).all()
        np.testing.assert_allclose(got[1, 3, :, 6], later[0, 0], atol=0.02)
        got[:, 3, :, :7] = 0
        assert not got.any()
    assert not np.asarray(cache.k)[:, 3, :, 2].any()


def test_attention_over_int8_is_that_over_the_numbers_they_stand_for():
    rng = np.random.default_rng(6)
    k, v = (rng.normal(size=(1, 2, 2, 16, 4)).astype(np.float32) for _ in range(2))
    (k8, k_scale), (v8, v_scale) = stored(k, jnp.int8), stored(v, jnp.int8)
    q = rng.normal(size=(2, 3, 2, 3, 4)).astype(np.float32)
    at = np.array([[3, 4, 5], [11, 12, 13]], np.int32)
    where = (np.int32(0), None, at, np.int32(99), np.int32(2))

    def attended(cache):
        return np.asarray(attention.attend_cache(q, cache, *where, block=8, scale=0.5))

    got = attended(Cache(k8, v8, k_scale, v_scale))
    plain = Cache(k8 * k_scale[..., None], v8 * v_scale[..., None])
    np.testing.assert_allclose(got, attended(plain), rtol=1e-5, atol=1e-6)
    assert (
        0 < np.abs(got - attended(Cache(jnp.asarray(k), jnp.asarray(v)))).max() < 0.05
    )
