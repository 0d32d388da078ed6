"""The Gemini judge, through the real SDK, against a local server of its protocol."""

import asyncio
import json
import math
import time

import pytest
from aiohttp import web
from judge_server import VERDICT as GOOD
from judge_server import Gemini, Server

from mappa_jax.config import JudgeConfig
from mappa_jax.judges import JudgeError, Ledger, make_judge
from mappa_jax.types import Missing, MissingReason, Verdict

# The SDK's own affair with aiohttp.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession")

answer, failure = Gemini.answer, Gemini.failure


def ask(request, *script, **changes):
    """(verdict, server) of one scored request."""

    async def main():
        server = Server(Gemini, *script)
        async with server.judge(**changes) as judge:
            return await judge.score(request), server

    return asyncio.run(main())


@pytest.fixture
def request_(make_request):
    return make_request("verifier", "\\boxed{80}", reference="80")


def good():
    return answer(json.dumps(GOOD))


async def hang():
    await asyncio.sleep(30)


def test_a_good_answer(request_):
    verdict, server = ask(request_, good)
    assert isinstance(verdict, Verdict)
    assert (verdict.score, verdict.rationale, verdict.correct) == (8.5, "clear", True)
    call = verdict.call
    assert (call.judge, call.model) == ("gemini", "gemini-2.5-flash")
    assert (call.tokens_in, call.tokens_out, call.attempts) == (100, 25, 1)
    # 90 tokens read, 10 of the cache, 25 written, by the table of prices.
    cost = (90 * 0.30 + 10 * 0.03 + 25 * 2.50) / 1e6
    assert call.cost == pytest.approx(cost)
    assert len(call.prompt_hash) == 64 and 0 < call.latency_s < 5 and not call.cached


def test_what_is_sent(request_):
    _, server = ask(request_, good, max_output_tokens=77, thinking_tokens=33)
    (sent,) = server.requests
    assert sent.path == "/v1beta/models/gemini-2.5-flash:generateContent"
    assert sent.headers["x-goog-api-key"] == "SECRETKEY"
    body = json.loads(sent.body)
    settings = body["generationConfig"]
    assert settings["thinkingConfig"] == {"thinking_budget": 33}  # as the SDK spells
    assert settings["temperature"] == 0 and settings["maxOutputTokens"] == 77
    assert settings["responseMimeType"] == "application/json"
    assert settings["responseSchema"]["required"] == ["rationale", "score"]
    assert "\\boxed{80}" in body["contents"][0]["parts"][0]["text"]


def test_thoughts_are_not_the_answer(request_):
    parts = [{"text": "10!", "thought": True}, {"text": json.dumps(GOOD)}]
    candidate = {"content": {"parts": parts}, "finishReason": "STOP"}
    verdict, _ = ask(request_, lambda: answer("", candidates=[candidate]))
    assert verdict.score == 8.5


def test_correct_is_the_last_agents_only(make_request):
    verdict, _ = ask(make_request("solver", "80"), good)
    assert verdict.correct is None


MISSING = {
    "safety": (lambda: answer("", "SAFETY"), MissingReason.BLOCKED),
    "recitation": (lambda: answer("", "RECITATION"), MissingReason.BLOCKED),
    "prompt blocked": (
        lambda: web.json_response({"promptFeedback": {"blockReason": "SAFETY"}}),
        MissingReason.BLOCKED,
    ),
    "max tokens": (
        lambda: answer('{"rationale": "cl', "MAX_TOKENS"),
        MissingReason.TRUNCATED,
    ),
    "max tokens, no content": (
        lambda: answer("", candidates=[{"finishReason": "MAX_TOKENS"}]),
        MissingReason.TRUNCATED,
    ),
    "no candidates": (
        lambda: answer("", candidates=[]),
        MissingReason.UNPARSABLE,
    ),
    "no parts": (
        lambda: answer("", candidates=[{"finishReason": "STOP"}]),
        MissingReason.UNPARSABLE,
    ),
    "malformed": (lambda: answer('{"score": 8'), MissingReason.UNPARSABLE),
    "not JSON": (lambda: answer("I give it an 8."), MissingReason.UNPARSABLE),
    "score 11": (
        lambda: answer(json.dumps(GOOD | {"score": 11})),
        MissingReason.OUT_OF_RANGE,
    ),
    "NaN": (
        lambda: answer(json.dumps(GOOD | {"score": math.nan})),
        MissingReason.OUT_OF_RANGE,
    ),
    "401": (lambda: failure(401), MissingReason.AUTH),
    "403": (lambda: failure(403), MissingReason.AUTH),
    "400 key": (lambda: failure(400, "API_KEY_INVALID"), MissingReason.AUTH),
    "400": (lambda: failure(400), MissingReason.INFRASTRUCTURE),
    "404": (lambda: failure(404), MissingReason.INFRASTRUCTURE),
}


@pytest.mark.parametrize("response, reason", MISSING.values(), ids=MISSING)
def test_faults_are_told_apart_and_not_retried(request_, response, reason):
    verdict, server = ask(request_, response)
    assert isinstance(verdict, Missing)
    assert verdict.reason is reason and verdict.detail
    assert len(server.requests) == 1
    assert len(verdict.call.prompt_hash) == 64


@pytest.mark.parametrize(
    "first",
    [
        lambda: failure(429, **{"Retry-After": "0"}),
        lambda: failure(500, **{"Retry-After": "0"}),
        lambda: failure(503, **{"Retry-After": "0"}),
        lambda: web.Response(text="<html>", content_type="application/json"),
    ],
)
def test_passing_faults_are_retried(request_, first):
    verdict, server = ask(request_, first, good)
    assert isinstance(verdict, Verdict), verdict
    assert len(server.requests) == 2


def test_retry_after_is_honoured(request_):
    began = time.monotonic()
    verdict, _ = ask(request_, lambda: failure(429, **{"Retry-After": "1"}), good)
    assert isinstance(verdict, Verdict)
    assert time.monotonic() - began > 1.0


def test_a_retry_delay_in_the_body_is_honoured(request_):
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.2s"}
    error = {"code": 429, "message": "quota", "status": "X", "details": [info]}
    began = time.monotonic()
    busy = lambda: web.json_response({"error": error}, status=429)  # noqa: E731
    verdict, _ = ask(request_, busy, good)
    assert isinstance(verdict, Verdict)
    assert time.monotonic() - began > 1.2


def test_a_pause_beyond_the_deadline_is_not_waited_for(request_):
    began = time.monotonic()
    verdict, _ = ask(request_, lambda: failure(429, **{"Retry-After": "60"}))
    assert verdict.reason is MissingReason.RATE_LIMITED
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "response, reason",
    [
        (hang, MissingReason.TIMEOUT),
        (lambda: failure(500), MissingReason.SERVER_ERROR),
        (lambda: failure(429), MissingReason.RATE_LIMITED),
    ],
)
def test_the_deadline_holds(request_, response, reason):
    began = time.monotonic()
    verdict, server = ask(request_, response, deadline_s=0.7)
    assert verdict.reason is reason
    assert time.monotonic() - began < 2
    assert 1 <= len(server.requests) <= 3


def test_nobody_there(request_):
    async def main():
        config = JudgeConfig(
            provider="gemini", base_url="http://127.0.0.1:9/", deadline_s=0.7
        )
        keys = {"gemini": "KEY"}
        judge = make_judge(config, roles=["verifier"], keys=keys, ledger=Ledger(None))
        try:
            verdict = await judge.score(request_)
            with pytest.raises(JudgeError, match="gemini.*first call"):
                await judge.check()
            return verdict
        finally:
            await judge.aclose()

    assert asyncio.run(main()).reason is MissingReason.INFRASTRUCTURE


def test_concurrency_is_bounded(make_request):
    async def slow():
        await asyncio.sleep(0.05)
        return good()

    async def main():
        server = Server(Gemini, slow)
        requests = [make_request("solver", str(n)) for n in range(6)]
        async with server.judge(concurrency=2) as judge:
            verdicts = await asyncio.gather(*map(judge.score, requests))
        assert all(isinstance(verdict, Verdict) for verdict in verdicts)
        return server.most_busy

    assert asyncio.run(main()) == 2


def check(*script, **changes):
    async def main():
        server = Server(Gemini, *script)
        server.script_probes = True
        async with server.judge(**changes) as judge:
            await judge.check()
        return server

    return asyncio.run(main())


def test_check_is_one_short_call():
    server = check(good)
    (sent,) = server.requests
    assert sent.path.endswith(":generateContent")
    assert len(Gemini.prompt(sent.body)) < 500


@pytest.mark.parametrize(
    "response, message",
    [
        (lambda: failure(401), "auth: .*aistudio.google.com/apikey"),
        (lambda: failure(403), "auth: .*aistudio.google.com/apikey"),
        (lambda: failure(400, "API_KEY_INVALID"), "auth: "),
        (lambda: failure(404, "unknown"), "judge.model='gemini-2.5-flash'"),
        (lambda: failure(429, "quota exceeded"), "rate_limited: .*quota exceeded"),
        (lambda: failure(500), "server_error: 500"),
        (lambda: answer("I am a teapot"), "unparsable: .*teapot"),
        (hang, "judge.deadline_s"),
    ],
)
def test_check_names_the_fault_and_the_remedy(response, message):
    with pytest.raises(JudgeError, match=message):
        check(response, deadline_s=0.5)


@pytest.mark.parametrize("key", [None, ""])
def test_no_key_is_refused_even_if_the_environment_has_one(key, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "from the environment")
    monkeypatch.setenv("GOOGLE_API_KEY", "from the environment")
    with pytest.raises(JudgeError, match="aistudio.google.com/apikey"):
        make(JudgeConfig(provider="gemini"), key)


def test_vertex_without_credentials_is_refused_at_the_door(monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    monkeypatch.setenv("HOME", str(tmp_path))
    config = JudgeConfig(provider="gemini", vertex_project="p", deadline_s=5.0)

    async def main():
        judge = make(config, None)
        try:
            await judge.check()
        finally:
            await judge.aclose()

    with pytest.raises(JudgeError, match="auth: .*none.json"):
        asyncio.run(main())


def make(config, key):
    keys = {"gemini": key}
    return make_judge(config, roles=["solver"], keys=keys, ledger=Ledger(None))


def test_an_unknown_provider_is_refused():
    with pytest.raises(JudgeError, match="judge.provider='oracle'"):
        make(JudgeConfig(provider="oracle"), None)
