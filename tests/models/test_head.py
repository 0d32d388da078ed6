"""The fused head against the log-softmax of all scores, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mappa_jax.models import head as heads

M, D, V = 11, 8, 37


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(0, 0.5, (V, D)), jnp.float32)
    h = jnp.asarray(rng.normal(0, 1, (M, D)), jnp.float32)
    token = jnp.asarray(rng.integers(0, V, M), jnp.int32)
    temperature = jnp.asarray(rng.uniform(0.5, 1.5, M), jnp.float32)
    return w, h, token, temperature


def whole(w, h, token, temperature, softcap):
    """The three values by their definitions."""
    scores = h @ w.T
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = scores / temperature[:, None]
    logp = jax.nn.log_softmax(scores)
    own = jnp.take_along_axis(logp, token[:, None], 1)[:, 0]
    entropy = -(jnp.exp(logp) * logp).sum(-1)
    return heads.Scores(own, jax.nn.logsumexp(scores, -1), entropy)


@pytest.mark.parametrize("block", [1, 4, 256])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_values_and_gradients_are_those_of_all_scores(inputs, block, softcap):
    w, h, token, temperature = inputs
    head = heads.Head(block, softcap=softcap, entropy=True)
    mix = jnp.asarray(np.random.default_rng(1).normal(0, 1, (3, M)), jnp.float32)
    blocks = jnp.int32(-(-M // min(block, M)))

    def ours(w, h):
        return heads.token_scores(head, w, h, token, temperature, blocks)

    def theirs(w, h):
        return whole(w, h, token, temperature, softcap)

    def total(function):
        return lambda w, h: sum(m @ x for m, x in zip(mix, function(w, h), strict=True))

    for got, want in zip(jax.jit(ours)(w, h), theirs(w, h), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
    got = jax.jit(jax.grad(total(ours), (0, 1)))(w, h)
    want = jax.grad(total(theirs), (0, 1))(w, h)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_entropy_is_zero_unless_asked_for(inputs):
    w, h, token, temperature = inputs
    found = heads.token_scores(heads.Head(4), w, h, token, temperature, jnp.int32(3))
    assert not found.entropy.any()
    assert found.logprob.all()


def test_tokens_after_the_last_block_cost_and_change_nothing(inputs):
    """Not even where they are not finite."""
    w, h, token, temperature = inputs
    h = h.at[8:].set(jnp.nan)
    head = heads.Head(4)

    def total(w, h, count, blocks):
        args = (w, h[:count], token[:count], temperature[:count], blocks)
        return heads.token_scores(head, *args).logprob.sum()

    got = jax.grad(total, (0, 1))(w, h, M, jnp.int32(2))
    want = jax.grad(total, (0, 1))(w, h, 8, jnp.int32(2))
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])
    assert not got[1][8:].any()


def test_the_projection_is_computed_with_in_the_hidden_states_dtype(inputs):
    """Its gradient comes in its own."""
    w, h, token, temperature = inputs
    head = heads.Head(4)

    def total(w, h):
        args = (w, h, token, temperature, jnp.int32(3))
        return heads.token_scores(head, *args).logprob.sum()

    dw, dh = jax.grad(total, (0, 1))(w, h.astype(jnp.bfloat16))
    assert (dw.dtype, dh.dtype) == (jnp.float32, jnp.bfloat16)
    want = jax.grad(total, (0, 1))(w, h)
    np.testing.assert_allclose(dw, want[0], rtol=0.1, atol=0.05)
    np.testing.assert_allclose(dh.astype(jnp.float32), want[1], rtol=0.1, atol=0.05)


def test_a_frozen_projection_has_no_gradient_computed(inputs):
    """Adapters train over a frozen head: XLA drops what nobody asks for."""
    w, h, token, temperature = inputs
    head = heads.Head(4)

    def total(h, w):
        args = (w, h, token, temperature, jnp.int32(3))
        return heads.token_scores(head, *args).logprob.sum()

    program = jax.jit(jax.grad(total)).lower(h, w).compile().as_text()
    assert f"f32[{V},{D}]" in program  # the projection itself
    carried = [line for line in program.splitlines() if " while(" in line]
    assert carried
    both = jax.jit(jax.grad(total, (0, 1))).lower(h, w).compile().as_text()

    def arrays(text):
        return sum(
            line.split(" while(")[0].count(f"f32[{V},{D}]")
            for line in text.splitlines()
            if " while(" in line
        )

    assert arrays(program) < arrays(both)
