"""Prefill and chunked decoding as pure functions of arrays.

A `Slots` holds B rows in flight. `prefill` fills the cache of some slots from
prompts, `extend` goes on where their cache ends; `decode` advances all of them by up to
`chunk` tokens. Everything that a
request may choose (temperature, filters, stop ids, limits, key) is an array, so
nothing recompiles. A row's tokens depend on its own request alone.

Axes: B slots, P prefill rows, T prompt tokens, C tokens per chunk, V vocabulary,
K stop ids. "B.." stands for one axis of slots, or for several: `decode` also advances
slots that lie on a mesh, with leading axes for its parts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mappa_jax.models.cache import Cache, write_rows

NEVER = -1e30


class Request(NamedTuple):
    """What one row asks for; every field has a leading row axis.

    Attributes:
      address: [.., 6] int32: step, task, sample, agent, turn, and 1 in evaluation:
        what the row's random key is folded from.
      agent: [..] int32, whose adapter the row uses.
      temperature: [..] float32; 0 takes the likeliest token.
      top_k: [..] int32, 0 is off.
      top_p: [..] float32, 1 is off.
      min_new: [..] int32: no stop id before so many tokens.
      max_new: [..] int32, the limit of new tokens.
      stop_ids: [.., K] int32, padded with -1.
    """

    address: jax.Array
    agent: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_new: jax.Array
    max_new: jax.Array
    stop_ids: jax.Array


class Slots(NamedTuple):
    """Rows in flight.

    Attributes:
      cache: keys and values, [L, B, K, S, H].
      token: [B] int32, the next token to feed.
      position: [B] int32, its position.
      count: [B] int32, new tokens so far.
      done: [B] bool; true of a slot that is free, held, or half filled.
      request: what each row asked for.
    """

    cache: Cache
    token: jax.Array
    position: jax.Array
    count: jax.Array
    done: jax.Array
    request: Request


class Prompts(NamedTuple):
    """Prompts, or pieces of them, that go into slots; leading axis P.

    Attributes:
      slot: [P] int32, where each goes; B or more is a padding row.
      tokens: [P, T] int32, right-padded.
      start: [P] int32, the position of the first: so much is in the slot's cache.
      length: [P] int32, at least 1.
      ends: [P] bool, the prompt ends here; until it does nothing is sampled.
      request: what each asks for.
    """

    slot: jax.Array
    tokens: jax.Array
    start: jax.Array
    length: jax.Array
    ends: jax.Array
    request: Request


class Chunk(NamedTuple):
    """What one decode call gave: [B, C] tokens and log-probabilities, [B] counts."""

    tokens: jax.Array
    logprobs: jax.Array
    emitted: jax.Array
    done: jax.Array


def empty_slots(cache: Cache, stop_ids: int) -> Slots:
    """All slots free."""
    rows = cache.k.shape[1]
    ints = jnp.zeros((rows,), jnp.int32)
    floats = jnp.ones((rows,), jnp.float32)
    request = Request(
        address=jnp.zeros((rows, 6), jnp.int32),
        agent=ints,
        temperature=floats,
        top_k=ints,
        top_p=floats,
        min_new=ints,
        max_new=ints,
        stop_ids=jnp.full((rows, stop_ids), -1, jnp.int32),
    )
    return Slots(cache, ints, ints, ints, jnp.ones((rows,), bool), request)


@jax.named_scope("prefill")
def prefill(
    model: Callable[..., tuple[jax.Array, Cache]], slots: Slots, prompts: Prompts
) -> Slots:
    """Puts prompts, or their first pieces, into slots.

    The last prompt token is fed again by the first decode step, which samples the
    first new token: sampling lives in one place.

    Args:
      model: a Decoder with its weights.
      slots: the state.
      prompts: what goes where; every start is 0.
    """
    p, t = prompts.tokens.shape
    positions = jnp.broadcast_to(jnp.arange(t, dtype=jnp.int32), (p, t))
    length = prompts.length[:, None]
    ends = jnp.where(positions < length, length, 0)
    _, kept = model(prompts.tokens, positions, ends, keep_kv=True)
    cache = write_rows(slots.cache, prompts.slot, kept)
    return _begun(slots, prompts)._replace(cache=cache)


@jax.named_scope("extend")
def extend(
    model: Callable[..., tuple[jax.Array, Cache]],
    slots: Slots,
    prompts: Prompts,
    blocks: jax.Array,
) -> Slots:
    """Puts further tokens behind what the cache of some slots holds already: the next
    piece of a prompt, or what an agent's next turn has that its last one had not.

    Args:
      model: a Decoder with its weights.
      slots: the state.
      prompts: what goes where. What the cache holds from `start` on is given up.
      blocks: [] int32, blocks of the cache that are read.
    """
    place = jnp.arange(prompts.tokens.shape[1], dtype=jnp.int32)
    real = place < prompts.length[:, None]
    positions = jnp.where(real, prompts.start[:, None] + place, slots.cache.length)
    _, cache = model(
        prompts.tokens,
        positions,
        cache=slots.cache,
        blocks=blocks,
        slots=prompts.slot,
    )
    return _begun(slots, prompts)._replace(cache=cache)


def _begun(slots: Slots, prompts: Prompts) -> Slots:
    """The state of rows whose prompts have come into the cache, or a piece of them."""
    zeros = jnp.zeros_like(prompts.slot)
    # Every step of `decode` feeds the tokens of all rows. That of half a prompt has a
    # place beyond the cache, where nothing is written.
    last_at = prompts.start + prompts.length - 1
    last_at = jnp.where(prompts.ends, last_at, slots.cache.length)
    last = jnp.take_along_axis(prompts.tokens, prompts.length[:, None] - 1, 1)[:, 0]

    def put(table, part):
        return table.at[prompts.slot].set(part, mode="drop")

    return slots._replace(
        token=put(slots.token, last),
        position=put(slots.position, last_at),
        count=put(slots.count, zeros),
        done=put(slots.done, ~prompts.ends),
        request=jax.tree.map(put, slots.request, prompts.request),
    )


def clone(
    slots: Slots, source_P: jax.Array, slot_P: jax.Array, request: Request
) -> Slots:
    """Puts the prompts of some slots, which nothing has been sampled from yet, into
    others, as if they had been prefilled there.

    Args:
      slots: the state.
      source_P: where each prompt lies; anything for a padding row.
      slot_P: where it goes; B or more drops a padding row.
      request: what each asks for, leading axis P.
    """

    def put_rows(table, part):
        return table.at[slot_P].set(part, mode="drop")

    copied = _copied(slots, source_P, slot_P)
    return copied._replace(request=jax.tree.map(put_rows, slots.request, request))


def move(slots: Slots, source_P: jax.Array, slot_P: jax.Array) -> Slots:
    """Puts rows in flight into other slots; their own are free then.

    Args:
      slots: the state.
      source_P: where each row is; B or more for a padding row.
      slot_P: where it goes; B or more drops a padding row.
    """
    copied = _copied(slots, source_P, slot_P)
    return copied._replace(done=copied.done.at[source_P].set(True, mode="drop"))


def _copied(slots: Slots, source_P: jax.Array, slot_P: jax.Array) -> Slots:
    """Rows of some slots in further ones, the cache's one after the other: what is held
    beside it is one row. A slot of B or more takes none."""
    last = slots.cache.k.shape[1] - 1

    def put_rows(table):
        return table.at[slot_P].set(table[source_P], mode="drop")

    def body(p, cache):
        source = jnp.minimum(source_P[p], last)
        slot = jnp.where(slot_P[p] > last, source, slot_P[p])  # itself: no change

        def put(table):
            row = jax.lax.dynamic_slice_in_dim(table, source, 1, 1)
            return jax.lax.dynamic_update_slice_in_dim(table, row, slot, 1)

        return jax.tree.map(put, cache)

    cache = jax.lax.fori_loop(0, source_P.shape[0], body, slots.cache)
    return jax.tree.map(put_rows, slots._replace(cache=None))._replace(cache=cache)


# [B.., 1] tokens and their positions, the cache, how many blocks of it -> scores
# [B.., V] and the cache.
Forward = Callable[[jax.Array, jax.Array, Cache, jax.Array], tuple[jax.Array, Cache]]


@jax.named_scope("decode")
def decode(
    forward: Forward,
    slots: Slots,
    cancelled: jax.Array,
    seed: jax.Array,
    *,
    chunk: int,
    cache_block: int,
    width: int | None = None,
) -> tuple[Slots, Chunk]:
    """Advances every unfinished row by up to `chunk` tokens.

    Args:
      forward: the model, a token per row.
      slots: the state, leading axes B...
      cancelled: [B..] bool, rows to end before the first step (stop strings).
      seed: [] uint32, the run's seed.
      chunk: tokens per call, static.
      cache_block: tokens of a block of the cache, static.
      width: only the first so many rows of the last axis of B.., static; None: all. The
        others must be done.

    Returns:
      The state, and what was decoded of these rows.
    """
    whole = slots._replace(done=slots.done | cancelled)
    slots = whole._replace(cache=None)
    slots = jax.tree.map(lambda x: _first(x, cancelled.ndim, width), slots)
    slots = slots._replace(cache=whole.cache)
    rows = slots.token.shape
    request = slots.request
    keys = _over_rows(lambda a: row_key(seed, a), rows)(request.address)

    def more(carry):
        i, slots, *_ = carry
        return (i < chunk) & ~jnp.all(slots.done)

    def step(carry):
        i, slots, tokens, logps, emitted = carry
        live_to = jnp.max(jnp.where(slots.done, 0, slots.position))
        scores, cache = forward(
            slots.token[..., None],
            slots.position[..., None],
            slots.cache,
            live_to // cache_block + 1,
        )
        token, logp = sample(keys, scores, request, slots.count)
        live = ~slots.done
        count = slots.count + live
        stopped = jnp.any(token[..., None] == request.stop_ids, -1)
        new = slots._replace(
            cache=cache,
            token=jnp.where(live, token, slots.token),
            position=slots.position + live,
            count=count,
            done=slots.done | stopped | (count >= request.max_new),
        )
        return (
            i + 1,
            new,
            tokens.at[..., i].set(jnp.where(live, token, 0)),
            logps.at[..., i].set(jnp.where(live, logp, 0.0)),
            emitted + live,
        )

    start = (
        jnp.int32(0),
        slots,
        jnp.zeros((*rows, chunk), jnp.int32),
        jnp.zeros((*rows, chunk), jnp.float32),
        jnp.zeros(rows, jnp.int32),
    )
    _, slots, tokens, logps, emitted = jax.lax.while_loop(more, step, start)

    def put(table, part):
        return jax.lax.dynamic_update_slice(table, part, (0,) * table.ndim)

    own = slots._replace(cache=None)
    out = jax.tree.map(put, whole._replace(cache=None), own)
    return out._replace(cache=slots.cache), Chunk(tokens, logps, emitted, slots.done)


def _first(x: jax.Array, axes: int, width: int | None) -> jax.Array:
    """The first `width` rows along the last of the `axes` axes of slots."""
    return jax.lax.slice_in_dim(x, 0, width, axis=axes - 1)


def _over_rows(function: Callable, rows: tuple[int, ...]) -> Callable:
    """vmap over every axis of B..."""
    for _ in rows:
        function = jax.vmap(function)
    return function


def row_key(seed: jax.Array, address: jax.Array) -> jax.Array:
    """The key of one action, folded in from the seed and its [6] address."""
    key = jax.random.key(seed)
    for part in range(address.shape[0]):
        key = jax.random.fold_in(key, address[part])
    return key


@jax.named_scope("sample")
def sample(
    keys: jax.Array, scores_BxV: jax.Array, request: Request, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One token per row, and its log-probability under what was sampled from; all
    arguments have leading axes B...

    A row's noise depends on its key and on how many tokens it has, never on its
    neighbours. With temperature 0 the likeliest token has probability 1.
    """
    early = count < request.min_new
    scores = jax.lax.cond(
        jnp.any(early),
        lambda s: _without_stops(s, early, request.stop_ids),
        lambda s: s,
        scores_BxV,
    )
    greedy = request.temperature <= 0
    scores = scores / jnp.where(greedy, 1.0, request.temperature)[..., None]
    filtered = (request.top_k > 0) | (request.top_p < 1)
    scores = jax.lax.cond(
        jnp.any(filtered & ~greedy),
        lambda s: keep_top(s, request.top_k, request.top_p),
        lambda s: s,
        scores,
    )

    def uniform(key, n):
        return jax.random.uniform(jax.random.fold_in(key, n), (2,))

    drawn, logp = draw(_over_rows(uniform, count.shape)(keys, count), scores)
    token = jax.lax.cond(
        jnp.any(greedy),
        lambda: jnp.where(greedy, jnp.argmax(scores, -1).astype(jnp.int32), drawn),
        lambda: drawn,
    )
    return token, jnp.where(greedy, 0.0, logp)


def draw(uniform_Bx2: jax.Array, scores_BxV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A token per row from softmax(scores), and its log-probability.

    By inversion, in two steps: one number chooses among blocks of the vocabulary by
    their mass, the other a token within the block. That takes one exponential for each
    score, and no random number but the two; the cumulative sums are of a few hundred
    numbers, so that float32 does. A token of no mass is never chosen.

    Args:
      uniform_Bx2: float32 in [0, 1).
      scores_BxV: float32.
    """
    vocab = scores_BxV.shape[-1]
    top = scores_BxV.max(-1, keepdims=True)
    weights = jnp.exp(scores_BxV - top)
    blocks = weights.reshape(*weights.shape[:-1], block_count(vocab), -1)
    masses = blocks.sum(-1)
    block = _invert(masses, uniform_Bx2[..., 0])
    # Not a gather, which would bring together what lies apart along V.
    here = jnp.arange(masses.shape[-1]) == block[..., None]
    own = jnp.where(here[..., None], blocks, 0.0).sum(-2)
    place = _invert(own, uniform_Bx2[..., 1])
    chosen = jnp.take_along_axis(own, place[..., None], -1)[..., 0]
    token = block * own.shape[-1] + place
    return token.astype(jnp.int32), jnp.log(chosen) - jnp.log(masses.sum(-1))


def block_count(vocab: int) -> int:
    """The divisor of `vocab` nearest to its root, of those that powers of two up to 64
    divide as often as they divide `vocab`: blocks then lie on a mesh as V does."""
    step = math.gcd(vocab, 64)
    counts = [n for n in range(step, vocab + 1, step) if vocab % n == 0]
    return min(counts, key=lambda n: abs(math.log(n * n / vocab)))


def _invert(masses_BxN: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The first place whose cumulative mass exceeds the share `uniform` of the whole;
    where rounding leaves none, the heaviest."""
    sums = jnp.cumsum(masses_BxN, -1)
    limit = uniform_B[..., None] * sums[..., -1:]
    passed = (sums <= limit) | (masses_BxN == 0)
    return jnp.where(passed.all(-1), jnp.argmax(masses_BxN, -1), jnp.argmin(passed, -1))


def _without_stops(scores_BxV, early, stop_ids_BxK) -> jax.Array:
    ids = jnp.arange(scores_BxV.shape[-1])
    parts = [ids == stop_ids_BxK[..., k, None] for k in range(stop_ids_BxK.shape[-1])]
    stops = functools.reduce(jnp.logical_or, parts)
    return jnp.where(early[..., None] & stops, NEVER, scores_BxV)


def keep_top(scores_BxV: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Masks all but the top-k, then all but the nucleus (arXiv 1904.09751).

    Both keep every score at or above a threshold, ties included; the threshold is
    found by bisection over the bits of a float32, without sorting the vocabulary.
    top_k = 0 and top_p = 1 keep everything.
    """
    vocab = scores_BxV.shape[-1]
    want = jnp.where(top_k > 0, top_k, vocab)[..., None]
    order = _sortable(scores_BxV)
    kept = order >= _largest(
        lambda t: jnp.sum(order >= t, -1, keepdims=True) >= want, order
    )
    scores = jnp.where(kept, scores_BxV, NEVER)
    probs = jax.nn.softmax(scores, -1)
    order = _sortable(scores)
    mass = jnp.minimum(top_p[..., None], 1.0)

    def enough(t):
        return jnp.sum(jnp.where(order >= t, probs, 0.0), -1, keepdims=True) >= mass

    nucleus = (order >= _largest(enough, order)) | (top_p[..., None] >= 1)
    return jnp.where(nucleus, scores, NEVER)


def _sortable(x: jax.Array) -> jax.Array:
    """float32 -> uint32 in the same order."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign = bits >> 31
    return jnp.where(sign == 1, ~bits, bits | jnp.uint32(1 << 31))


def _largest(holds, order_BxV: jax.Array) -> jax.Array:
    """The largest [B.., 1] uint32 threshold for which `holds` (0 always does)."""

    def body(i, t):
        trial = t | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(holds(trial), trial, t)

    start = jnp.zeros((*order_BxV.shape[:-1], 1), jnp.uint32)
    return jax.lax.fori_loop(0, 32, body, start)
