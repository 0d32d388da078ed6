"""The slot engine: a request's sample depends on the request alone."""

import asyncio
import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from restored import restored
from scopes_of import scopes

from mappa_jax.config import ConfigError, SamplerConfig
from mappa_jax.hosts import Stopped
from mappa_jax.models import int8
from mappa_jax.sampling import engine as engines
from mappa_jax.sampling.engine import Engine, Options, PromptTooLong

CONFIG = SamplerConfig(
    slots=8,
    prefill_rows=2,
    prompt_buckets=(8, 16),
    context=32,
    cache_block=8,
    chunk=4,
)
OPTIONS = Options(
    temperature=1.0, top_k=0, top_p=1.0, min_new=0, max_new=9, stop_ids=()
)


@pytest.fixture(scope="module")
def served(serve):
    """Warm engines by mode and mesh."""
    return functools.partial(serve, CONFIG)


@pytest.fixture(params=["full", "lora"])
def both(request, served):
    return served(request.param)


def make_requests(count, **changes):
    """Of both agents, of many lengths, temperatures and filters."""
    rng = np.random.default_rng(count)
    out = []
    for i in range(count):
        options = dataclasses.replace(
            OPTIONS,
            temperature=(1.0, 0.0, 0.7, 1.4)[i % 4],
            top_k=(0, 0, 5)[i % 3],
            top_p=(1.0, 0.9)[i % 2],
            max_new=1 + 3 * i % 14,
            stop_ids=((), (3,), (3, 17))[i % 3],
        )
        options = dataclasses.replace(options, **changes)
        prompt = rng.integers(0, 40, 1 + i * 5 % 16).astype(np.int32)
        out.append((i % 2, prompt, options, (0, 1, i, i % 2, 0, 0)))
    return out


def assert_same(a, b):
    np.testing.assert_array_equal(a.token_ids, b.token_ids)
    np.testing.assert_array_equal(a.logprobs, b.logprobs)
    assert a.finish == b.finish


async def test_its_load_is_told_by_agent(both):
    """More of agent 1 than there are slots; all tokens are counted, none before."""
    before = both.engine.load()
    assert before.waiting == before.sampling == (0, 0)
    requests = [r for r in make_requests(40) if r[0] == 1]
    async with both.running() as engine:
        asked = [asyncio.create_task(engine.generate(*r)) for r in requests]
        seen = []
        while not all(task.done() for task in asked):
            await asyncio.sleep(0)
            seen.append(engine.load())
    assert max(load.waiting[1] for load in seen) > 0
    assert max(load.sampling[1] for load in seen) >= 4
    assert all(load.waiting[0] == load.sampling[0] == 0 for load in seen)
    new = sum(len(task.result().token_ids) for task in asked)
    assert both.engine.load().tokens - before.tokens >= new > 0


async def test_a_sample_is_bit_identical_whatever_its_company(both):
    """Alone, with others (more than there are slots), and in another order."""
    requests = make_requests(20)
    together = await both.ask(requests)
    backwards = (await both.ask(requests[::-1]))[::-1]
    for i in (0, 1, 6, 11, 19):
        (alone,) = await both.ask([requests[i]])
        assert_same(alone, together[i])
    for a, b in zip(together, backwards, strict=True):
        assert_same(a, b)
    assert len({s.token_ids.tobytes() for s in together}) > 10


async def test_a_prompt_that_several_have_in_common_is_prefilled_once(both):
    """Samples of one task, more than a prefill has rows; to each as if it were alone.
    The same prompt of another agent is another's."""
    (_, prompt, options, _), *_ = make_requests(7)
    options = dataclasses.replace(options, temperature=1.0, stop_ids=(), max_new=9)
    requests = [(0, prompt, options, (0, 1, i, 0, 0, 0)) for i in range(5)]
    requests += [(1, prompt, options, (0, 1, 9, 1, 0, 0))]
    both.engine.take_stats()
    together = await both.ask(requests)
    stats = both.engine.take_stats()
    assert stats.prompt_tokens == 6 * len(prompt)
    assert stats.prefilled_tokens == 2 * len(prompt)
    for request, sample in zip(requests, together, strict=True):
        assert_same((await both.ask([request]))[0], sample)
    assert len({s.token_ids.tobytes() for s in together}) > 4


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 2, 1, 1)])
async def test_the_last_rows_are_decoded_together(serve, served, mode, sizes):
    """Lengths from 1 to 16: rows that are left move, and fewer places are computed. On
    a mesh every device has two or four rows."""
    config = dataclasses.replace(CONFIG, widths=(2, 4))
    narrow, wide = serve(config, mode, sizes), served(mode, sizes)
    requests = [
        (agent, prompt, dataclasses.replace(options, max_new=1 + 3 * (i % 6)), address)
        for i, (agent, prompt, options, address) in enumerate(
            make_requests(13, stop_ids=(), temperature=1.0)
        )
    ]
    wide.engine.take_stats()
    want, got = await wide.ask(requests), await narrow.ask(requests)
    for a, b in zip(want, got, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
        assert a.finish == b.finish
    before, after = wide.engine.take_stats(), narrow.engine.take_stats()
    assert before.new_tokens == after.new_tokens == sum(len(s.token_ids) for s in want)
    assert after.new_tokens <= after.row_steps < 0.9 * before.row_steps
    again = await narrow.ask(requests[::-1])
    assert [s.finish for s in again[::-1]] == [s.finish for s in want]


async def test_rows_that_meet_a_stop_string_do_not_come_back_when_others_move(
    serve, served
):
    """Their slots run on until the others hear of it; a row that moves there lives."""
    plain = served("lora")
    narrow = serve(dataclasses.replace(CONFIG, widths=(1, 2, 4)), "lora")

    def cut(tokens):
        return 3 if len(tokens) >= 3 else None

    requests = []
    for i, request in enumerate(make_requests(8, max_new=14, stop_ids=())):
        options = dataclasses.replace(
            request[2],
            temperature=1.0,
            stopped_at=cut if i in (0, 1, 2, 4, 5) else None,
        )
        requests.append((*request[:2], options, request[3]))
    want, got = await plain.ask(requests), await narrow.ask(requests)
    for a, b in zip(want, got, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
    assert [len(s.token_ids) for s in got] == [3, 3, 3, 14, 3, 3, 14, 14]


def test_profiles_name_the_parts_of_sampling(served):
    team = served("lora").team
    programs = served("lora").engine.lowered([team.trainable], [team.frozen])
    assert {"decode", "cache_attention", "sample"} <= scopes(programs["decode/0"])
    assert {"prefill", "attention"} <= scopes(programs["prefill/16/0"])


async def test_requests_that_come_later_change_nothing(both):
    requests = make_requests(6, max_new=12, stop_ids=())
    together = await both.ask(requests)
    async with both.running() as engine:
        early = asyncio.create_task(engine.generate(*requests[0]))
        while not engine.stats.new_tokens:
            await asyncio.sleep(0.001)
        late = await asyncio.gather(*(engine.generate(*r) for r in requests[1:]))
        for a, b in zip(together, [await early, *late], strict=True):
            assert_same(a, b)
    engine.take_stats()


async def test_each_agent_samples_from_its_own_weights(both):
    """Greedy tokens are the argmax of that agent's own full forward."""
    requests = make_requests(4, temperature=0.0, max_new=6, stop_ids=())
    for (agent, prompt, *_), sample in zip(
        requests, await both.ask(requests), strict=True
    ):
        tokens = np.concatenate([prompt, sample.token_ids])
        scores = both.team.scores(agent, tokens)[len(prompt) - 1 : -1]
        np.testing.assert_array_equal(sample.token_ids, scores.argmax(1))


async def test_logprobs_are_those_of_the_full_forward(both):
    requests = make_requests(4, temperature=0.8, top_k=0, top_p=1.0, stop_ids=())
    for (agent, prompt, *_), sample in zip(
        requests, await both.ask(requests), strict=True
    ):
        tokens = np.concatenate([prompt, sample.token_ids])
        scores = both.team.scores(agent, tokens)[len(prompt) - 1 : -1] / 0.8
        logp = np.asarray(jax.nn.log_softmax(scores))
        want = logp[np.arange(len(sample.token_ids)), sample.token_ids]
        np.testing.assert_allclose(sample.logprobs, want, atol=1e-4)


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 1, 2, 2)])
async def test_weights_in_int8_sample_as_the_numbers_they_stand_for(serve, mode, sizes):
    """And with them the weights that are trained stay as they are."""
    config = dataclasses.replace(CONFIG, weights="int8", extend_buckets=(8,))
    one = serve(config, mode, sizes)
    own, base = one.team.trainable, one.team.frozen
    small = one.engine._programs[0].hand_over(own, base)
    weights = jax.tree.leaves(small[1 if mode == "lora" else 0])
    assert {str(x.dtype) for x in weights} == {"int8", "float32"}
    own, base = jax.device_get(one.team.policy.in_int8(own, base, int8.params))
    floats = (own, restored(base)) if mode == "lora" else (restored(own), base)
    rounded = dataclasses.replace(one.team, trainable=floats[0], frozen=floats[1])
    requests = make_requests(4, temperature=0.8, top_k=0, top_p=1.0, stop_ids=())
    for (agent, prompt, *_), sample in zip(
        requests, await one.ask(requests), strict=True
    ):
        tokens = np.concatenate([prompt, sample.token_ids])
        scores = rounded.scores(agent, tokens)[len(prompt) - 1 : -1] / 0.8
        logp = np.asarray(jax.nn.log_softmax(scores))
        want = logp[np.arange(len(sample.token_ids)), sample.token_ids]
        np.testing.assert_allclose(sample.logprobs, want, atol=1e-4)


@pytest.mark.parametrize("mode", ["full", "lora", "shared"])
@pytest.mark.parametrize("weights", ["compute", "int8"])
async def test_beside_an_update_the_sampler_keeps_the_weights_it_was_given(
    make_team, weights, mode
):
    team = make_team(mode, (1, 1, 1, 1), jnp.float32)
    config = dataclasses.replace(CONFIG, weights=weights)
    own = jax.tree.map(jnp.copy, team.trainable)
    requests = make_requests(4)
    samples = []
    for beside in (False, True):
        engine = Engine(
            [team.policy], config, team.mesh, seed=11, stop_ids=2, beside=beside
        )
        engine.warm_up([own], [team.frozen])
        serving = engine.running([own], [team.frozen], donated=beside)
        if beside:  # as an update does to which they are donated
            jax.tree.map(lambda x: x.delete(), own)
        async with serving:
            asked = [engine.generate(*r) for r in requests]
            samples.append(await asyncio.gather(*asked))
    for one, other in zip(*samples, strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_array_equal(one.logprobs, other.logprobs)


@pytest.mark.parametrize("mode", ["full", "lora"])
async def test_in_bfloat16_logprobs_are_those_of_the_full_forward(serve, mode):
    """On average within a hundredth: a bfloat16 has eight bits."""
    one, gaps = serve(CONFIG, mode, dtype=jnp.bfloat16), []
    requests = make_requests(8, temperature=1.0, top_k=0, top_p=1.0, stop_ids=())
    for (agent, prompt, *_), sample in zip(
        requests, await one.ask(requests), strict=True
    ):
        tokens = np.concatenate([prompt, sample.token_ids])
        scores = one.team.scores(agent, tokens)[len(prompt) - 1 : -1]
        logp = np.asarray(jax.nn.log_softmax(scores))
        want = logp[np.arange(len(sample.token_ids)), sample.token_ids]
        gaps.append(np.abs(sample.logprobs - want))
    assert 0 < np.concatenate(gaps).mean() < 1e-2


def request(prompt=(1, 2, 3), agent=0, **changes):
    options = dataclasses.replace(OPTIONS, **changes)
    return agent, np.asarray(prompt, np.int32), options, (0,) * 6


async def test_a_sample_ends_with_its_stop_token_or_at_its_limit(served):
    one = served()
    (free,) = await one.ask([request(temperature=0.0)])
    assert (free.finish, len(free.token_ids)) == ("length", OPTIONS.max_new)
    stop = int(free.token_ids[5])
    first = free.token_ids.tolist().index(stop)
    (cut,) = await one.ask([request(temperature=0.0, stop_ids=(stop,))])
    assert cut.finish == "stop"
    np.testing.assert_array_equal(cut.token_ids, free.token_ids[: first + 1])
    (late,) = await one.ask(
        [request(temperature=0.0, stop_ids=(stop,), min_new=first + 1)]
    )
    assert len(late.token_ids) > first + 1
    assert late.token_ids[first] != stop


async def test_a_stop_string_cuts_and_frees_the_slot(served):
    """Found in the middle of a chunk; what was decoded after it is dropped."""
    one = served()
    (free,) = await one.ask([request(max_new=20)])

    def stopped_at(tokens):
        return 6 if len(tokens) >= 6 else None

    asked = [request(max_new=20, stopped_at=stopped_at)] * (CONFIG.slots + 1)
    for sample in await one.ask(asked):
        assert sample.finish == "stop"
        np.testing.assert_array_equal(sample.token_ids, free.token_ids[:6])
        np.testing.assert_array_equal(sample.logprobs, free.logprobs[:6])


async def test_a_stopped_row_is_not_decoded_further(served, monkeypatch):
    """Beside a row that goes on: two chunks of four, then nothing."""
    one, emitted = served(), []
    harvest = one.engine._harvest

    def spy(pool, chunk):
        emitted.append(chunk.emitted)
        harvest(pool, chunk)

    monkeypatch.setattr(one.engine, "_harvest", spy)
    stops = request(max_new=20, stopped_at=lambda t: 6 if len(t) >= 6 else None)
    await one.ask([stops, request(max_new=20)])
    np.testing.assert_array_equal(np.sum(emitted, 0)[:3], [8, 20, 0])


async def test_prompts_that_do_not_fit_are_refused(served):
    async with served().running() as engine:
        with pytest.raises(PromptTooLong, match="prompt_buckets ends at 16"):
            await engine.generate(*request(range(17)))
        with pytest.raises(PromptTooLong, match="sampler.context=32"):
            await engine.generate(*request(range(16), max_new=17))
        sample = await engine.generate(*request(range(16), max_new=16))
    assert len(sample.token_ids) == 16


@contextlib.contextmanager
def compilations():
    found = []

    def listen(event, duration, **_):
        if "backend_compile" in event:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


async def test_nothing_compiles_after_the_warm_up(both):
    with compilations() as found:
        jax.jit(lambda x: x + 1)(np.float32(0))  # the listener hears
        assert len(found) == 1
        await both.ask(make_requests(20))
        await both.ask(make_requests(3, temperature=0.33, stop_ids=(1, 2)))
        await both.ask(make_requests(1, top_k=3, top_p=0.5, min_new=1, max_new=2))
    assert len(found) == 1


async def test_an_error_in_the_driver_reaches_every_waiter(served):
    def broken(tokens):
        raise RuntimeError("boom")

    asked = [request(stopped_at=broken)] + [request()] * (CONFIG.slots + 3)
    async with served().running() as engine:
        tasks = [asyncio.create_task(engine.generate(*r)) for r in asked]
        done = await asyncio.wait_for(
            asyncio.gather(*tasks, return_exceptions=True), timeout=60
        )
    assert len(done) == len(asked)
    assert all(isinstance(e, RuntimeError) and str(e) == "boom" for e in done)
    (sample,) = await served().ask([request()])  # the next run is well
    assert len(sample.token_ids) == OPTIONS.max_new


async def test_a_request_after_the_driver_died_is_not_left_waiting(served):
    def broken(tokens):
        raise RuntimeError("boom")

    async with served().running() as engine:
        with pytest.raises(RuntimeError, match="boom"):
            await engine.generate(*request(stopped_at=broken))
        with pytest.raises(RuntimeError):
            await asyncio.wait_for(engine.generate(*request()), timeout=5)


async def test_what_is_open_when_the_engine_stops_is_cancelled(served):
    async with served().running() as engine:
        tasks = [
            asyncio.create_task(engine.generate(*request(max_new=20)))
            for _ in range(CONFIG.slots + 2)
        ]
        await asyncio.sleep(0)
    done = await asyncio.wait_for(
        asyncio.gather(*tasks, return_exceptions=True), timeout=60
    )
    assert all(isinstance(e, asyncio.CancelledError) for e in done)


async def test_a_cancelled_request_frees_its_slot(served):
    async with served().running() as engine:
        tasks = [
            asyncio.create_task(engine.generate(*request(max_new=20)))
            for _ in range(CONFIG.slots)
        ]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        sample = await asyncio.wait_for(engine.generate(*request()), timeout=60)
    assert_same(sample, (await served().ask([request()]))[0])


async def test_a_cancelled_request_is_not_decoded_further(served, monkeypatch):
    """Given up after its first chunk; what waits behind it is not begun at all."""
    one, emitted, begun = served(), [], asyncio.Event()
    harvest = one.engine._harvest

    def spy(pool, chunk):
        emitted.append(chunk.emitted)
        harvest(pool, chunk)
        begun.set()

    monkeypatch.setattr(one.engine, "_harvest", spy)
    async with one.running() as engine:
        tasks = [
            asyncio.create_task(engine.generate(*request(max_new=20)))
            for _ in range(CONFIG.slots + 3)
        ]
        await begun.wait()
        for task in tasks[1:]:
            task.cancel()
        await tasks[0]
    total = np.sum(emitted, 0)
    assert total[0] == 20 and len(emitted) == 5
    assert 4 <= total[1:].min() and total[1:].max() <= 8


async def test_what_is_sampled_can_be_watched(served):
    """Chunk by chunk, and not beyond a stop string."""
    seen = []
    options = {"max_new": 20, "on_tokens": lambda tokens: seen.append([*tokens])}
    (sample,) = await served().ask([request(**options)])
    assert [len(tokens) for tokens in seen] == [4, 8, 12, 16, 20]
    assert all(tokens == sample.token_ids[: len(tokens)].tolist() for tokens in seen)
    seen.clear()
    stopped_at = lambda tokens: 6 if len(tokens) >= 6 else None  # noqa: E731
    await served().ask([request(**options, stopped_at=stopped_at)])
    assert [len(tokens) for tokens in seen] == [4, 6]


async def test_statistics_count_tokens_and_start_anew(served):
    one = served()
    one.engine.take_stats()
    samples = await one.ask(make_requests(5))
    stats = one.engine.take_stats()
    assert stats.new_tokens == sum(len(s.token_ids) for s in samples)
    assert stats.prompt_tokens == sum(len(r[1]) for r in make_requests(5))
    assert stats.decode_seconds > 0
    assert one.engine.take_stats() == engines.Stats()


EVERY_PROGRAM = dataclasses.replace(
    CONFIG, extend_buckets=(8,), widths=(2, 4), weights="int8", kv_dtype="int8"
)


@pytest.mark.parametrize("config", [CONFIG, EVERY_PROGRAM])
@pytest.mark.parametrize("mode", ["full", "lora"])
async def test_nothing_is_moved_that_was_not_asked_to(serve, mode, config):
    """The engine puts requests on the devices by itself; whatever else came from the
    host would be a transfer that nobody wrote down."""
    one = serve(config, mode)
    before = jax.config.jax_transfer_guard  # a context would hold in this thread only
    jax.config.update("jax_transfer_guard", "disallow")
    try:
        async with one.running() as engine:
            requests = make_requests(5)
            alike = [(*requests[0][:3], (9, *requests[0][3][1:]))]
            with engine.conversation() as talk:
                agent, prompt, options, address = requests[0]
                asked = [engine.generate(agent, prompt, options, address, talk)]
                asked += [engine.generate(*r) for r in requests[1:] + alike]
                samples = await asyncio.gather(*asked)
                longer = np.concatenate([prompt, samples[0].token_ids[:2], prompt[:1]])
                await engine.generate(agent, longer, options, address, talk)
    finally:
        jax.config.update("jax_transfer_guard", before)
    assert all(len(sample.token_ids) for sample in samples)


def test_slots_that_do_not_divide_the_mesh_are_refused_by_name(make_team):
    team = make_team("full", (1, 8, 1, 1))
    config = dataclasses.replace(CONFIG, slots=6)
    with pytest.raises(ConfigError, match="config.sampler.slots=6 .* 8 devices"):
        Engine([team.policy], config, team.mesh, seed=0, stop_ids=2)


# -- several hosts ----------------------------------------------------------------


async def test_two_hosts_sample_what_one_does(two_hosts, served):
    """Each its own requests, unequally many, some with stop strings: both keep the
    same schedule, and the one that is done goes on taking part."""

    def stopped_at(tokens):
        return 3 if len(tokens) >= 3 else None

    requests = make_requests(9)
    requests.append(request(max_new=12, stopped_at=stopped_at))
    alone = await served().ask(requests)
    (one, _), (two, _) = two_hosts(served())
    first, second = await asyncio.gather(one.ask(requests[:2]), two.ask(requests[2:]))
    for got, want in zip([*first, *second], alone, strict=True):
        assert_same(got, want)
    assert alone[-1].finish == "stop"
    assert one.engine.stats.new_tokens == two.engine.stats.new_tokens


@pytest.mark.parametrize("told", [0, 1])
async def test_a_host_that_waits_elsewhere_stops_with_the_others(
    two_hosts, served, told
):
    """Nobody of the first asks for anything when the word comes."""
    hosts = two_hosts(served())

    async def busy(served):
        async with served.running() as engine:
            while True:
                await engine.generate(*request(max_new=2))

    async def elsewhere(served):  # a program, a grader
        async with served.running():
            await asyncio.sleep(0.3)

    async def tell():
        await asyncio.sleep(0.1)
        hosts[told][1].stopping = True

    done = await asyncio.wait_for(
        asyncio.gather(
            elsewhere(hosts[0][0]), busy(hosts[1][0]), tell(), return_exceptions=True
        ),
        timeout=60,
    )
    assert isinstance(done[0], Stopped) and isinstance(done[1], Stopped)
