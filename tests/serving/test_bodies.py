"""Hostile and mistaken bodies: each a clear 4xx, and the server lives on."""

import asyncio
import io
import json

import aiohttp
import pytest

from mappa_jax.serving.errors import ApiError
from mappa_jax.serving.protocol import MOST_FILES, parse_request

USER = {"role": "user", "content": "What is 2 + 3?"}
GOOD = {"model": "team", "messages": [USER]}


def body(**changes):
    return json.dumps(GOOD | changes)


def raw(key, value):
    """A body with a value that json would not write."""
    return body().removesuffix("}") + f', "{key}": {value}}}'


def message(**changes):
    return body(messages=[USER | changes])


BODIES = {
    "nothing": (b"", None),
    "not JSON": (b"hello", None),
    "cut short": (b'{"model": "team", ', None),
    "not an object": (b"[1]", None),
    "null": (b"null", None),
    "not UTF-8": (b'{"model": "\xff\xfe"}', None),
    "half a surrogate": (message(content="\ud800"), None),
    "deep": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, None),
    "deep lists": (b'{"model": "team", "messages": ' + b"[" * 50_000, None),
    "no model": (json.dumps({"messages": [USER]}), "model"),
    "no messages": (json.dumps({"model": "team"}), "messages"),
    "empty messages": (body(messages=[]), "messages"),
    "messages are text": (body(messages="hi"), "messages"),
    "unknown role": (message(role="wizard"), "messages.0.role"),
    "no content": (body(messages=[{"role": "user"}]), "messages.0.content"),
    "null content": (message(content=None), "messages.0.content"),
    "an image": (message(content=[{"type": "image_url"}]), "messages.0.content.0.type"),
    "a tool call": (message(tool_calls=[{"id": "1"}]), "messages.0.tool_calls"),
    "an unknown key of a message": (message(extra=1), "messages.0.extra"),
    "NaN temperature": (body(temperature=float("nan")), "temperature"),
    "infinite temperature": (body(temperature=float("inf")), "temperature"),
    "huge temperature": (raw("temperature", "1e999"), "temperature"),
    "hot": (body(temperature=3), "temperature"),
    "cold": (body(temperature=-1), "temperature"),
    "temperature is text": (body(temperature="1"), "temperature"),
    "top_p 0": (body(top_p=0), "top_p"),
    "no tokens": (body(max_tokens=0), "max_tokens"),
    "half a token": (body(max_tokens=1.5), "max_tokens"),
    "true tokens": (body(max_tokens=True), "max_tokens"),
    "no answers": (body(n=0), "n"),
    "many answers": (body(n=1000), "n"),
    "huge number": (raw("n", "9" * 300), "n"),
    "number without end": (raw("n", "9" * 5000), None),
    "huge seed": (body(seed=2**70), "seed"),
    "empty stop": (body(stop=""), "stop"),
    "many stops": (body(stop=["a"] * 5), "stop"),
    "tools": (body(tools=[{"type": "function"}]), "tools"),
    "logprobs": (body(logprobs=True), "logprobs"),
    "logprobs as 1": (body(logprobs=1), "logprobs"),
    "a penalty": (body(frequency_penalty=0.5), "frequency_penalty"),
    "JSON mode": (body(response_format={"type": "json_object"}), "response_format"),
    "unknown key": (body(max_token=5), "max_token"),
    "long unknown key": (body(**{"x" * 5000: 5}), "x" * 80),
    "stream options": (body(stream_options={}), "stream_options"),
    "files for none": (body(files={"a.csv": "1"}), "files"),
    "many files": (body(files={f"{i}.csv": "" for i in range(101)}), "files"),
    "the team without a task": (message(role="assistant"), "messages"),
    "too long for any context": (message(content="x" * 90_000), "messages"),
    "too long for the context": (message(content="x" * 5000), "messages"),
}  # fmt: skip


@pytest.fixture
def posted():
    async def post(server, body, **headers):
        headers = {"Content-Type": "application/json"} | headers
        async with aiohttp.ClientSession() as session:
            url = f"{server.url}/v1/chat/completions"
            async with session.post(url, data=body, headers=headers) as reply:
                return reply.status, await reply.json()

    return post


@pytest.mark.parametrize("stream", [False, True])
async def test_every_one_is_refused_by_name(engine, serve, posted, stream):
    async with serve(engine) as server:
        for name, (sent, param) in BODIES.items():
            if stream and isinstance(sent, str):
                sent = sent.replace("{", '{"stream": true, ', 1)
                if name == "stream options":
                    continue
            status, told = await posted(server, sent)
            error = told["error"]
            assert status == 400, (name, told)
            assert error.keys() == {"message", "type", "param", "code"}, name
            assert error["type"] == "invalid_request_error", name
            assert error["param"] == param, (name, told)
            assert len(error["message"]) < 400, name
        assert (await posted(server, json.dumps(GOOD)))[0] == 200
        assert server.service.admission.idle


def test_as_many_files_as_may_be():
    files = {f"{'x' * 96}{i:04}": "" for i in range(MOST_FILES)}
    assert parse_request(body(files=files).encode()).files == files
    with pytest.raises(ApiError, match="files: .* at most 100 items") as caught:
        parse_request(body(files=files | {"one.csv": ""}).encode())
    assert caught.value.status == 400


async def test_a_large_body_is_not_read(engine, serve, posted):
    async with serve(engine) as server:
        try:
            status, told = await posted(server, io.BytesIO(b"x" * 10_000_000))
        except aiohttp.ClientConnectionError:  # closed while it was being sent
            status = 413
        assert status == 413
        assert (await posted(server, json.dumps(GOOD)))[0] == 200


async def test_a_body_that_does_not_come_is_not_waited_for(engine, serve, posted):
    async def drip():
        yield b"{"
        while True:
            await asyncio.sleep(0.05)
            yield b" "

    async with serve(engine, read_seconds=0.3) as server:
        status, told = await posted(server, drip())
        assert status == 408 and told["error"]["code"] == "slow"
        assert (await posted(server, json.dumps(GOOD)))[0] == 200


async def test_other_types_methods_and_paths(engine, serve, posted):
    async with serve(engine) as server, aiohttp.ClientSession() as session:
        kind = {"Content-Type": "text/plain"}
        status, told = await posted(server, json.dumps(GOOD), **kind)
        assert status == 415 and told["error"]["code"] == "content_type"
        async with session.get(f"{server.url}/v1/chat/completions") as reply:
            assert reply.status == 405 and "POST" in reply.headers["Allow"]
            assert "error" in await reply.json()
        for path in ("/", "/v1/completions", "/../etc/passwd", "/v1/models/../x"):
            async with session.get(f"{server.url}{path}") as reply:
                assert reply.status == 404 and "error" in await reply.json()


async def test_an_unknown_model_is_404(engine, serve, posted):
    async with serve(engine) as server:
        status, told = await posted(server, body(model="gpt-9"))
        assert status == 404 and told["error"]["code"] == "model_not_found"
        assert "team, solver, coder, verifier" in told["error"]["message"]
