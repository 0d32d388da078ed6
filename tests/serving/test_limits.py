"""What is sent away, what is given up, and that the server lives on."""

import asyncio
import contextlib

import aiohttp
import openai
import pytest

TASK = [{"role": "user", "content": "What is 2 + 3?"}]


async def health(server):
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{server.url}/health") as reply:
            return reply.status, await reply.json()


async def test_a_full_queue_says_when_to_come_again(engine, serve, eventually):
    engine.gate.clear()
    async with serve(engine, running=1, waiting=2) as server:
        asked = [
            asyncio.create_task(server.create(model="solver", messages=TASK))
            for _ in range(3)
        ]
        await eventually(lambda: server.service.admission.waiting == 2)
        assert (await health(server))[1]["running"] == 1
        with pytest.raises(openai.RateLimitError) as refused:
            await server.create(model="solver", messages=TASK)
        assert int(refused.value.response.headers["Retry-After"]) >= 1
        assert refused.value.code == "queue_full"
        engine.gate.set()
        assert len(await asyncio.gather(*asked)) == 3
        assert engine.peak == 1
        await server.create(model="solver", messages=TASK)


async def test_more_answers_than_there_will_ever_be_room_for(engine, serve):
    async with serve(engine, running=1, waiting=1, choices=4) as server:
        with pytest.raises(openai.BadRequestError) as refused:
            await server.create(model="solver", messages=TASK, n=3)
        assert refused.value.param == "n"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_time_limit_gives_up(engine, serve, stream):
    """Of a stream that has begun, within the stream."""
    engine.gate.clear()
    async with serve(engine, seconds=0.3) as server:
        with pytest.raises(openai.APIError) as refused:
            done = await server.create(model="solver", messages=TASK, stream=stream)
            async for _ in done:
                pass
        assert refused.value.code == "time_limit"
        if not stream:
            assert refused.value.status_code == 504
        assert (engine.active, engine.cancelled) == (0, 1)
        assert server.service.admission.idle
        engine.gate.set()
        await server.create(model="solver", messages=TASK)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["solver", "team"])
async def test_a_dropped_connection_ends_the_work(
    engine, serve, eventually, model, stream
):
    engine.gate.clear()
    async with serve(engine, running=2) as server:
        body = {"model": model, "messages": TASK, "n": 3, "stream": stream}
        async with aiohttp.ClientSession() as session:
            url = f"{server.url}/v1/chat/completions"
            asked = asyncio.create_task(session.post(url, json=body))
            await eventually(lambda: engine.active == 2)
            asked.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                (await asked).close()  # a stream may have begun
        await eventually(lambda: engine.active == 0 and server.service.admission.idle)
        assert engine.cancelled == 2 and engine.asked == 2  # the third never began
        engine.gate.set()
        await server.create(model=model, messages=TASK)


async def test_a_stream_that_is_left_ends_the_work(engine, serve, eventually):
    engine.gate.clear()
    async with serve(engine) as server:
        stream = await server.create(model="solver", messages=TASK, stream=True)
        await anext(aiter(stream))
        assert engine.active == 1
        await stream.close()
        await eventually(lambda: engine.active == 0 and server.service.admission.idle)
        assert engine.cancelled == 1


async def test_a_key_is_asked_for(engine, serve):
    async with serve(engine, key="s3cret") as server:
        await server.create(model="solver", messages=TASK)
        for key in ("s3cre", "", "s3cret\u00e9", "S3CRET"):
            headers = {"Authorization": f"Bearer {key}".encode().decode("latin-1")}
            body = {"model": "solver", "messages": TASK}
            async with aiohttp.ClientSession(headers=headers) as session:
                url = f"{server.url}/v1/chat/completions"
                async with session.post(url, json=body) as reply:
                    assert reply.status == 401
                    told = await reply.json()
                    assert told["error"]["code"] == "invalid_api_key"
                async with session.get(f"{server.url}/v1/models") as reply:
                    assert reply.status == 401
        assert (await health(server))[1] == {"status": "ok"}  # and nothing else


OTHERS = (
    *("evil.example", "evil.example:80", "127.0.0.1.evil.example", "a@127.0.0.1"),
    *("[", "[::1", "]", "[x]", ":", "127.0.0.1/x"),
)
OWN = ("localhost:1", "localhost", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:80")


async def test_without_a_key_only_this_machines_names_are_answered(engine, serve):
    """A page of another site may have its own name point here."""
    async with serve(engine) as server, aiohttp.ClientSession() as session:
        url = f"{server.url}/v1/models"
        for host in OTHERS:
            async with session.get(url, headers={"Host": host}) as reply:
                assert reply.status == 403, host
                assert (await reply.json())["error"]["code"] == "wrong_host"
        for host in OWN:
            async with session.get(url, headers={"Host": host}) as reply:
                assert reply.status == 200
                assert "Access-Control-Allow-Origin" not in reply.headers


async def test_starting_stopping_and_failing_are_told(engine, serve, eventually):
    async with serve(engine) as server:
        status, told = await health(server)
        assert (status, told["status"], told["step"]) == (200, "ok", 7)
        assert told["models"][0] == "team" and told["uptime_s"] >= 0

        served, server.service.served = server.service.served, None
        assert (await health(server))[1]["status"] == "starting"
        with pytest.raises(openai.InternalServerError) as refused:
            await server.create(model="solver", messages=TASK)
        assert refused.value.status_code == 503
        server.service.served = served

        engine.error = RuntimeError("broken")
        assert (await health(server))[0] == 503
        engine.error = None

        engine.gate.clear()
        asked = asyncio.create_task(server.create(model="solver", messages=TASK))
        await eventually(lambda: engine.active == 1)
        stopping = asyncio.create_task(server.service.finish(20))
        await eventually(lambda: server.service.closing)
        with pytest.raises(openai.InternalServerError):
            await server.create(model="solver", messages=TASK)
        assert not stopping.done()
        engine.gate.set()
        assert (await asked).choices
        await stopping


async def test_an_error_of_ours_tells_nothing_and_ends_nothing(make_engine, serve):
    said = [RuntimeError("secret path"), "fine"]
    engine = make_engine(lambda *_: said.pop(0))
    async with serve(engine) as server:
        with pytest.raises(openai.InternalServerError) as refused:
            await server.create(model="solver", messages=TASK)
        assert "secret" not in str(refused.value)
        done = await server.create(model="solver", messages=TASK)
        assert done.choices[0].message.content == "fine"
