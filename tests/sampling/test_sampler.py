"""Filters, greedy choice, log-probabilities and frequencies of the sampler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mappa_jax.models.cache import init_cache
from mappa_jax.models.decoder import Decoder, logits
from mappa_jax.models.policy import agent_params
from mappa_jax.sampling import sampler

keep_top = jax.jit(sampler.keep_top)
sample = jax.jit(sampler.sample)


def request_of(rows, **changes):
    fields = dict(
        address=np.zeros((rows, 6), np.int32),
        agent=np.zeros((rows,), np.int32),
        temperature=np.ones((rows,), np.float32),
        top_k=np.zeros((rows,), np.int32),
        top_p=np.ones((rows,), np.float32),
        min_new=np.zeros((rows,), np.int32),
        max_new=np.full((rows,), 10, np.int32),
        stop_ids=np.full((rows, 2), -1, np.int32),
    )
    for name, value in changes.items():
        fields[name] = np.broadcast_to(value, fields[name].shape).astype(
            fields[name].dtype
        )
    return sampler.Request(**fields)


def by_sorting(scores, top_k, top_p):
    """Which tokens of one row stay: a plain reference. Ties of the last one stay."""
    order = np.sort(scores)[::-1]
    kept = scores >= order[min(top_k, len(order)) - 1 if top_k else -1]
    if top_p >= 1:
        return kept
    weights = np.where(kept, np.exp(scores.astype(np.float64) - scores.max()), 0)
    probs = weights / weights.sum()
    for value in np.unique(scores[kept])[::-1]:  # from the top down
        nucleus = kept & (scores >= value)
        if probs[nucleus].sum() >= top_p:
            return nucleus
    return kept


# Few distinct values, so that ties are common; exact in float32.
SCORES = st.lists(
    st.sampled_from([-7.0, -1.5, -0.25, 0.0, 0.5, 1.0, 2.0, 3.75]),
    min_size=7,
    max_size=7,
)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(SCORES, min_size=2, max_size=2),
    top_k=st.integers(0, 9),
    # Away from sums of probabilities that rounding could tip over.
    top_p=st.sampled_from([0.0731, 0.313, 0.517, 0.7713, 0.931, 1.0]),
)
def test_filters_keep_what_sorting_keeps(rows, top_k, top_p):
    scores = np.asarray(rows, np.float32)
    got = keep_top(scores, np.full((2,), top_k), np.full((2,), top_p, np.float32))
    want = np.stack([by_sorting(row, top_k, top_p) for row in scores])
    np.testing.assert_array_equal(np.asarray(got) > sampler.NEVER, want)
    np.testing.assert_array_equal(np.asarray(got)[want], scores[want])


def test_each_row_has_its_own_filter():
    scores = np.tile(np.asarray([3.0, 2.0, 1.0, 0.0], np.float32), (4, 1))
    got = keep_top(scores, np.array([0, 1, 3, 0]), np.float32([1, 1, 1, 0.7]))
    kept = (np.asarray(got) > sampler.NEVER).sum(1)
    np.testing.assert_array_equal(kept, [4, 1, 3, 2])  # 0.64 < 0.7 <= 0.88


def test_the_likeliest_token_always_stays():
    scores = np.asarray([[5.0, 0, 0]], np.float32)
    got = keep_top(scores, np.array([0]), np.float32([1e-6]))
    np.testing.assert_array_equal(np.asarray(got) > sampler.NEVER, [[1, 0, 0]])


def test_frequencies_match_the_distribution():
    """Chi square with two degrees of freedom: above 13.8 once in a thousand."""
    probs, n = np.array([0.6, 0.3, 0.1]), 4000
    scores = np.tile(np.log(probs).astype(np.float32) * 2, (n, 1))
    keys = jax.random.split(jax.random.key(7), n)
    request = request_of(n, temperature=2.0)  # undoes the factor
    tokens, logps = sample(keys, scores, request, np.zeros((n,), np.int32))
    counts = np.bincount(tokens, minlength=3)
    assert ((counts - n * probs) ** 2 / (n * probs)).sum() < 13.8
    np.testing.assert_allclose(np.exp(logps), probs[tokens], rtol=1e-5)


def test_filtered_frequencies_match_the_renormalised_distribution():
    probs, n = np.array([0.5, 0.3, 0.2]), 2000
    scores = np.tile(np.log(probs).astype(np.float32), (n, 1))
    keys = jax.random.split(jax.random.key(8), n)
    tokens, logps = sample(
        keys, scores, request_of(n, top_k=2), np.zeros((n,), np.int32)
    )
    want = np.array([0.625, 0.375])
    counts = np.bincount(tokens, minlength=3)
    assert counts[2] == 0
    assert ((counts[:2] - n * want) ** 2 / (n * want)).sum() < 10.8
    np.testing.assert_allclose(np.exp(logps), want[tokens], rtol=1e-5)


@pytest.mark.parametrize("vocab", [37, 48, 320])
def test_a_draw_is_the_inverse_of_the_distribution(vocab):
    """A grid of numbers in place of random ones: frequencies to a grid's precision."""
    rng = np.random.default_rng(vocab)
    scores = rng.normal(0, 1, vocab).astype(np.float32)
    scores[::3] = sampler.NEVER
    count, width = sampler.block_count(vocab), 2000
    probs = np.exp(scores - scores.max(), dtype=np.float64)
    probs /= probs.sum()
    blocks = probs.reshape(count, -1)
    grid = (np.arange(width, dtype=np.float32) + 0.5) / width
    rows = np.tile(scores, (width, 1))
    for which, want in enumerate([blocks.sum(1), None]):
        fixed = np.full((width,), 0.5, np.float32)
        pair = [grid, fixed] if which == 0 else [fixed, grid]
        tokens, logps = jax.jit(sampler.draw)(np.stack(pair, 1), rows)
        tokens = np.asarray(tokens)
        np.testing.assert_allclose(logps, np.log(probs[tokens]), atol=1e-5)
        block, place = np.divmod(tokens, blocks.shape[1])
        if want is not None:
            got = np.bincount(block, minlength=count) / width
        else:
            assert len(set(block)) == 1
            want = blocks[block[0]] / blocks[block[0]].sum()
            got = np.bincount(place, minlength=len(want)) / width
        np.testing.assert_allclose(got, want, atol=1.5 / width)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-23])
def test_a_draw_at_either_end_has_mass(u):
    """Tokens of no probability at both ends of the vocabulary and of a block."""
    scores = np.full((1, 64 * 9), sampler.NEVER, np.float32)
    scores[0, [100, 101, 400]] = [0.0, -3.0, -80.0]
    token, logp = sampler.draw(np.full((1, 2), u, np.float32), scores)
    assert int(token[0]) in (100, 101, 400)
    assert np.isfinite(logp[0])


@pytest.mark.parametrize("vocab", [7, 320, 32003, 49152, 128256, 151936, 262144])
def test_blocks_divide_the_vocabulary_as_a_mesh_may(vocab):
    count = sampler.block_count(vocab)
    assert vocab % count == 0
    for ways in (2, 4, 8, 16):
        assert vocab % ways or count % ways == 0


def test_a_stop_token_is_not_sampled_before_min_new():
    """The likeliest token is a stop; the second row has had enough already."""
    scores = np.tile(np.asarray([9.0, 1.0, 0.0], np.float32), (2, 1))
    keys = jax.random.split(jax.random.key(0), 2)
    request = request_of(2, temperature=0.0, min_new=3, stop_ids=[0, -1])
    tokens, _ = sample(keys, scores, request, np.array([2, 3], np.int32))
    np.testing.assert_array_equal(tokens, [1, 0])


def test_noise_changes_with_key_and_count_only():
    scores = np.zeros((4, 1000), np.float32)
    key = jax.vmap(sampler.row_key, (None, 0))
    address = np.zeros((4, 6), np.int32)
    address[3, 2] = 1  # another sample of the task
    keys = key(np.uint32(5), address)
    count = np.array([0, 0, 1, 0], np.int32)
    tokens = np.asarray(sample(keys, scores, request_of(4), count)[0])
    assert tokens[0] == tokens[1]
    assert len({int(t) for t in tokens}) == 3


@pytest.mark.parametrize("part", range(6))
def test_every_part_of_an_address_counts(part):
    address = np.zeros((6,), np.int32)
    changed = address.copy()
    changed[part] = 1
    data = [
        np.asarray(jax.random.key_data(sampler.row_key(np.uint32(0), a)))
        for a in (address, changed)
    ]
    assert (data[0] != data[1]).any()


# -- with a model ------------------------------------------------------------------

B, CONTEXT, NEW = 4, 32, 8
PROMPTS = [[1, 5, 9], [7], [3, 3, 8, 20, 21, 22, 23, 24], [30, 2]]


@pytest.fixture(scope="module")
def run(make_team, micro):
    """Options by row -> [(tokens, log-probabilities, scores over V)] of agent 0."""
    team = make_team("full")
    params = agent_params(team.policy, team.trainable, team.frozen, 0)
    model = Decoder(micro, cache_block=8)

    @jax.jit
    def both(request, tokens, lengths):
        slots = sampler.empty_slots(init_cache(micro, B, CONTEXT), 2)
        whole = functools.partial(model.apply, {"params": params})
        prompts = sampler.Prompts(
            slot=jnp.arange(B),
            tokens=tokens,
            start=jnp.zeros_like(lengths),
            length=lengths,
            ends=jnp.ones((B,), bool),
            request=request,
        )
        slots = sampler.prefill(whole, slots, prompts)
        cancelled = jnp.zeros((B,), bool)

        def forward(tokens, positions, cache, blocks):
            hidden, cache = model.apply(
                {"params": params}, tokens, positions, cache=cache, blocks=blocks
            )
            return logits(params, micro, hidden[:, 0]), cache

        return sampler.decode(
            forward, slots, cancelled, jnp.uint32(3), chunk=NEW, cache_block=8
        )[1]

    def go(**options):
        options = {"max_new": NEW} | options
        address = np.zeros((B, 6), np.int32)
        address[:, 2] = np.arange(B)
        tokens = np.zeros((B, 8), np.int32)
        for i, prompt in enumerate(PROMPTS):
            tokens[i, : len(prompt)] = prompt
        lengths = np.array([len(p) for p in PROMPTS], np.int32)
        request = request_of(B, address=address, **options)
        chunk = jax.device_get(both(request, tokens, lengths))
        rows = []
        for i, prompt in enumerate(PROMPTS):
            n = chunk.emitted[i]
            new = chunk.tokens[i, :n]
            scores = team.scores(0, [*prompt, *new])[len(prompt) - 1 : -1]
            rows.append((new, chunk.logprobs[i, :n], scores))
        return rows

    return go


def test_greedy_takes_the_models_own_argmax(run):
    for tokens, logps, scores in run(temperature=0.0):
        assert len(tokens) == NEW
        np.testing.assert_array_equal(tokens, scores.argmax(1))
        np.testing.assert_array_equal(logps, 0.0)  # it was certain


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.7, 5, 1.0), (1.3, 0, 0.83), (0.9, 7, 0.71)],
)
def test_logprobs_are_of_what_was_sampled_from(run, temperature, top_k, top_p):
    """log_softmax of the filtered logits of the model's full forward."""
    rows = run(temperature=temperature, top_k=top_k, top_p=top_p)
    for tokens, logps, scores in rows:
        scores = scores / np.float32(temperature)
        kept = np.stack([by_sorting(row, top_k, top_p) for row in scores])
        scores = np.where(kept, scores, -np.inf)
        want = np.asarray(jax.nn.log_softmax(scores))[np.arange(NEW), tokens]
        assert np.isfinite(want).all()
        np.testing.assert_allclose(logps, want, atol=1e-4)


def test_rows_differ_in_length(run):
    rows = run(max_new=[1, 8, 3, 5])
    assert [len(tokens) for tokens, _, _ in rows] == [1, 8, 3, 5]


def test_a_stop_token_ends_its_row_and_is_kept(run):
    greedy = run(temperature=0.0)
    stop = int(greedy[0][0][2])
    cut = run(temperature=0.0, stop_ids=[stop, -1])
    for (tokens, _, _), (free, _, _) in zip(cut, greedy, strict=True):
        where = np.flatnonzero(free == stop)
        end = where[0] + 1 if len(where) else NEW
        np.testing.assert_array_equal(tokens, free[:end])
