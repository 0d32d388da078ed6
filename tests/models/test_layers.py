"""Layers' own backward passes against those of their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mappa_jax.models import decoder


def gradients(function, *args):
    out, backward = jax.vjp(function, *args)
    rng = np.random.default_rng(7)
    return out, *backward(jnp.asarray(rng.normal(size=out.shape), out.dtype))


@pytest.mark.parametrize("shape", [(2, 5, 8), (2, 5, 3, 8)])
def test_the_norm_is_its_definition_forward_and_backward(shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32).at[0, 1].set(0)
    scale = jnp.asarray(rng.normal(size=(8,)), jnp.float32)

    def plain(x, scale):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * scale

    def own(x, scale):
        return decoder._rms_norm(x, scale, 1e-5)

    for a, b in zip(gradients(own, x, scale), gradients(plain, x, scale), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_is_its_definition_forward_and_backward(dtype):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, 5, 8)), dtype)
    w = jnp.asarray(rng.normal(size=(8, 3)), dtype)
    found = gradients(decoder._product, x, w)
    for a, b in zip(found, gradients(jnp.matmul, x, w), strict=True):
        assert a.dtype == b.dtype == dtype
        rtol = 1e-5 if dtype == "float32" else 2e-2
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=rtol, atol=rtol
        )
