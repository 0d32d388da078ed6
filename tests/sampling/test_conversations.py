"""Prompts that come into the cache piece by piece, and caches kept between turns."""

import asyncio
import dataclasses

import numpy as np
import pytest
from scopes_of import scopes

from mappa_jax.config import SamplerConfig
from mappa_jax.sampling.engine import Conversation, Options

WHOLE = SamplerConfig(
    slots=8,
    prefill_rows=2,
    prompt_buckets=(8, 16, 24),
    context=40,
    cache_block=8,
    chunk=4,
)
PIECES = dataclasses.replace(WHOLE, prompt_buckets=(4, 8), extend_buckets=(2, 6))
OPTIONS = Options(
    temperature=1.0, top_k=0, top_p=1.0, min_new=0, max_new=6, stop_ids=()
)
KINDS = [(m, s) for m in ("full", "lora") for s in ((1, 1, 1, 1), (2, 2, 1, 1))]


def requests_of(count, **options):
    """Of both agents; the lengths of their prompts are 1 to 24, and three are alike."""
    rng = np.random.default_rng(count)
    out = []
    for i in range(count):
        prompt = rng.integers(0, 40, 1 + i * 7 % 24).astype(np.int32)
        prompt = out[0][1] if i in (5, 9) else prompt
        changed = dataclasses.replace(OPTIONS, max_new=1 + i % 9, **options)
        out.append(
            (i % 2 if i not in (5, 9) else 0, prompt, changed, (0, 1, i, 0, 0, 0))
        )
    out[0] = (0, rng.integers(0, 40, 21).astype(np.int32), *out[0][2:])
    return [
        (a, out[0][1], *r) if i in (5, 9) else (a, p, *r)
        for i, (a, p, *r) in enumerate(out)
    ]


def assert_close(got, want):
    """The same tokens; sums in another order round otherwise."""
    np.testing.assert_array_equal(got.token_ids, want.token_ids)
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)
    assert got.finish == want.finish


def assert_same(got, want):
    np.testing.assert_array_equal(got.token_ids, want.token_ids)
    np.testing.assert_array_equal(got.logprobs, want.logprobs)


@pytest.mark.parametrize(("mode", "sizes"), KINDS)
async def test_prompts_in_pieces_are_as_prompts_in_one(serve, mode, sizes):
    requests = requests_of(14)
    whole, pieces = serve(WHOLE, mode, sizes), serve(PIECES, mode, sizes)
    pieces.engine.take_stats()
    for got, want in zip(
        await pieces.ask(requests), await whole.ask(requests), strict=True
    ):
        assert_close(got, want)
    assert pieces.engine.take_stats().prompt_tokens == sum(len(r[1]) for r in requests)


async def test_a_long_prompt_does_not_keep_others_from_decoding(serve):
    """24 tokens take four turns of 8 or 6, and a row beside them four chunks."""
    one = serve(PIECES)
    (short, long), seen = requests_of(2), []
    short = (0, short[1][:3], dataclasses.replace(OPTIONS, max_new=16), short[3])
    long = (0, np.arange(24, dtype=np.int32), OPTIONS, (0, 1, 1, 0, 0, 0))

    def watch(tokens):
        (pool,) = one.engine._pools.values()
        filled = [r.filled for r in pool.rows if r is not None and len(r.prompt) == 24]
        seen.append((len(tokens), *filled))

    watched = dataclasses.replace(short[2], stopped_at=watch)
    both = await one.ask([(*short[:2], watched, short[3]), long])
    for request, sample in zip((short, long), both, strict=True):
        assert_same(sample, (await one.ask([request]))[0])
    assert seen == [(4, 8), (8, 14), (12, 20), (16, 24)]


async def test_what_company_a_prompt_in_pieces_has_changes_nothing(serve):
    one, requests = serve(PIECES, "lora"), requests_of(19)
    together = await one.ask(requests)
    for i in (0, 4, 11, 18):
        assert_same((await one.ask([requests[i]]))[0], together[i])


async def talk(engine, agent, sample, turns, pause=0.0, **options):
    """Turns of one conversation, each the whole chat so far and something said between:
    (prompt, sample) of each."""
    rng = np.random.default_rng(sample)
    chat = rng.integers(0, 40, 3 + sample % 5).astype(np.int32)
    asked, out = dataclasses.replace(OPTIONS, **options), []
    with engine.conversation() as conversation:
        for turn in range(turns):
            address = (0, 1, sample, agent, turn, 0)
            got = await engine.generate(
                agent, chat, asked, address, conversation, last=turn + 1 == turns
            )
            out.append((chat, got))
            between = rng.integers(0, 40, 1 + turn).astype(np.int32)
            chat = np.concatenate([chat, got.token_ids, between])
            await asyncio.sleep(pause)
    return out


def fresh(turns, agent, sample, **options):
    """The same turns as requests that know of no conversation."""
    asked = dataclasses.replace(OPTIONS, **options)
    return [
        (agent, prompt, asked, (0, 1, sample, agent, turn, 0))
        for turn, (prompt, _) in enumerate(turns)
    ]


@pytest.mark.parametrize(("mode", "sizes"), KINDS)
async def test_a_turn_computes_only_what_the_last_one_had_not(serve, mode, sizes):
    """The last token of a turn, and what was said after it."""
    one, whole = serve(PIECES, mode, sizes), serve(WHOLE, mode, sizes)
    one.engine.take_stats()
    async with one.running() as engine:
        turns = await talk(engine, 1, 7, 3)
    stats = one.engine.take_stats()
    assert stats.prompt_tokens == sum(len(prompt) for prompt, _ in turns)
    assert stats.prefilled_tokens == len(turns[0][0]) + (1 + 1) + (1 + 2)
    for (_, got), want in zip(turns, await whole.ask(fresh(turns, 1, 7)), strict=True):
        assert_close(got, want)


async def test_more_conversations_than_slots_beside_other_requests(serve):
    """Each is what it is alone, whenever its turns come."""
    one, others = serve(PIECES, "lora"), requests_of(9)
    alone = []
    for i in range(12):
        async with one.running() as engine:
            alone.append(await talk(engine, i % 2, i, 3))
    want = await one.ask(others)
    async with one.running() as engine:
        talks = [talk(engine, i % 2, i, 3, pause=0.003 * (i % 4)) for i in range(12)]
        plain = [engine.generate(*r) for r in others]
        done = await asyncio.wait_for(asyncio.gather(*talks, *plain), timeout=300)
    for turns, before in zip(done[:12], alone, strict=True):
        for (_, got), (_, first) in zip(turns, before, strict=True):
            assert_same(got, first)
    for got, first in zip(done[12:], want, strict=True):
        assert_same(got, first)


async def test_a_slot_is_held_until_the_conversation_is_over(serve):
    """All slots are, so a further request waits; and gets one as soon as one ends."""
    one = serve(PIECES)
    release = asyncio.Event()

    async def half(engine, sample):
        with engine.conversation() as conversation:
            request = (0, np.arange(5, dtype=np.int32), OPTIONS)
            await engine.generate(*request, (0, 1, sample, 0, 0, 0), conversation)
            spoken.append(sample)
            await release.wait()

    spoken = []
    async with one.running() as engine:
        talks = [asyncio.create_task(half(engine, i)) for i in range(PIECES.slots)]
        while len(spoken) < PIECES.slots:
            await asyncio.sleep(0.001)
        late = asyncio.create_task(engine.generate(*requests_of(1)[0]))
        await asyncio.sleep(0.1)
        steps, step = [], engine._step
        engine._step = lambda: steps.append(None) or step()
        await asyncio.sleep(0.2)
        engine._step = step
        assert not late.done() and len(steps) <= 1  # nobody turns round and round
        talks[3].cancel()
        await asyncio.wait_for(late, timeout=60)
        release.set()
        await asyncio.gather(*talks, return_exceptions=True)


async def test_two_turns_of_a_conversation_at_once_are_refused(serve):
    request = (0, np.arange(5, dtype=np.int32), OPTIONS)
    async with serve(PIECES).running() as engine:
        with engine.conversation() as conversation:
            both = await asyncio.gather(
                engine.generate(*request, (0, 1, 0, 0, 0, 0), conversation),
                engine.generate(*request, (0, 1, 0, 0, 1, 0), conversation),
                return_exceptions=True,
            )
            assert len(both[0].token_ids) > 0
            assert "one after the other" in str(both[1])
            await engine.generate(*request, (0, 1, 0, 0, 2, 0), conversation)


async def test_a_conversation_given_up_in_the_middle_of_a_turn_frees_its_slot(serve):
    one = serve(PIECES)
    async with one.running() as engine:
        talks = [
            asyncio.create_task(talk(engine, 0, i, 3, max_new=16))
            for i in range(PIECES.slots)
        ]
        while not engine.stats.new_tokens:
            await asyncio.sleep(0.001)
        for each in talks:
            each.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        sample = await asyncio.wait_for(engine.generate(*requests_of(1)[0]), timeout=60)
    assert_same(sample, (await one.ask(requests_of(1)))[0])
    one.engine.take_stats()


async def test_turns_that_end_with_a_stop_string_go_on_from_there(serve):
    """The row runs on until the others hear of it; the next turn comes at once."""
    one, whole = serve(PIECES, "lora"), serve(WHOLE, "lora")

    def stops(tokens):
        return 3 if len(tokens) >= 3 else None

    async with one.running() as engine:
        talks = [talk(engine, 0, i, 3, stopped_at=stops, max_new=9) for i in range(10)]
        done = await asyncio.gather(*talks)
    for i, turns in enumerate(done):
        again = await whole.ask(fresh(turns, 0, i, stopped_at=stops, max_new=9))
        for (_, got), want in zip(turns, again, strict=True):
            assert len(got.token_ids) == 3
            assert_close(got, want)


async def test_rows_that_are_left_move_past_slots_that_are_held(serve):
    narrow = serve(dataclasses.replace(PIECES, widths=(1, 2, 4)), "lora")
    one = serve(PIECES, "lora")
    results = []
    for each in (one, narrow):
        async with each.running() as engine:
            talks = [
                talk(engine, i % 2, i, 3, pause=0.004 * (i % 3), max_new=3 + i % 8)
                for i in range(9)
            ]
            results.append(await asyncio.wait_for(asyncio.gather(*talks), timeout=300))
    for got, want in zip(results[1], results[0], strict=True):
        for (_, a), (_, b) in zip(got, want, strict=True):
            assert_close(a, b)


async def test_conversations_on_two_hosts_are_those_of_one(serve, two_hosts):
    """Numbers of conversations are each host's own; slots are held on both."""
    one = serve(PIECES, "lora")

    def stops(tokens):
        return 4 if len(tokens) >= 4 else None

    async def said(served, samples):
        async with served.running() as engine:
            talks = [
                talk(engine, i % 2, i, 3, stopped_at=stops if i % 3 == 0 else None)
                for i in samples
            ]
            return await asyncio.gather(*talks)

    want = await said(one, range(11))
    (first, _), (second, _) = two_hosts(one)
    told = await asyncio.wait_for(
        asyncio.gather(said(first, range(3)), said(second, range(3, 11))), timeout=300
    )
    for got, alone in zip([*told[0], *told[1]], want, strict=True):
        for (_, a), (_, b) in zip(got, alone, strict=True):
            assert_same(a, b)
    counts = [each.engine.stats.prefilled_tokens for each in (first, second)]
    assert counts[0] == counts[1] < first.engine.stats.prompt_tokens


def test_profiles_name_the_pieces(serve):
    one = serve(PIECES, "lora")
    programs = one.engine.lowered([one.team.trainable], [one.team.frozen])
    assert {"extend", "cache_attention"} <= scopes(programs["extend/6/0"])


def test_the_cache_serves_a_prompt_up_to_where_it_differs():
    def common(cached, prompt):
        return Conversation(0, np.asarray(cached)).common(np.asarray(prompt))

    assert common([1, 2, 3], [1, 2, 3, 4]) == 3
    assert common([1, 2, 3], [1, 2, 9, 4]) == 2
    assert common([1, 2, 3], [1, 2, 3]) == 2  # the last token is fed to sample from
    assert common([1, 2, 3], [1]) == 0
    assert common([1, 2, 3], [7, 2, 3, 4]) == 0
    assert common([], [7]) == 0
