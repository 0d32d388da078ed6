"""Weights in int8: what they stand for, and that the model computes with that."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from restored import restored

from mappa_jax.models import hf, int8
from mappa_jax.models.decoder import Decoder, logits


def make_params(cfg, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: rng.normal(0, 0.1, s.shape).astype(s.dtype),
        hf.param_shapes(cfg, jnp.float32),
    )


@pytest.mark.parametrize("axis", [-1, -2, 1])
def test_numbers_are_within_half_a_step(axis):
    x = np.random.default_rng(1).normal(size=(3, 5, 7)).astype(np.float32)
    x[:, :, 2] = x[0] = 0
    steps, scale = int8.rounded(jnp.asarray(x), axis)
    assert steps.dtype == jnp.int8 and scale.shape[axis] == 1
    half = np.abs(x).max(axis, keepdims=True) / 254
    assert (np.abs(np.asarray(steps * scale) - x) <= half * 1.001).all()


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_computes_with_what_the_integers_stand_for(micro, tied):
    cfg = dataclasses.replace(micro, tie_embeddings=tied, qkv_bias=True)
    params = make_params(cfg)
    small = int8.params(params)
    kinds = {str(x.dtype) for x in jax.tree.leaves(small)}
    assert kinds == {"int8", "float32"}
    tokens = np.arange(12)[None] % cfg.vocab_size
    where = (np.arange(12)[None], np.full((1, 12), 12))

    def scores(params):
        hidden, _ = Decoder(cfg).apply({"params": params}, tokens, *where)
        return np.asarray(logits(params, cfg, hidden))

    np.testing.assert_allclose(scores(small), scores(restored(small)), atol=1e-4)
    assert 1e-4 < np.abs(scores(small) - scores(params)).max() < 0.3
