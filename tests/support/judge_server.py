"""A local server that speaks Gemini's and OpenAI's protocols, and fails as told."""

import asyncio
import contextlib
import dataclasses
import json
import random
import time

import numpy as np
from aiohttp import web

from mappa_jax.config import JudgeConfig
from mappa_jax.judges import Ledger, make_judge

ROLES = ("solver", "coder", "verifier")
VERDICT = {"rationale": "clear", "score": 8.5, "correct": True}
USAGE = {"prompt": 100, "cached": 10, "answer": 20, "thinking": 5}


class Gemini:
    """How Gemini says things."""

    provider, path, blocked = "gemini", "", "SAFETY"

    @staticmethod
    def answer(text, finish="STOP", **fields):
        candidate = {"content": {"role": "model", "parts": [{"text": text}]}}
        usage = {
            "promptTokenCount": USAGE["prompt"],
            "cachedContentTokenCount": USAGE["cached"],
            "candidatesTokenCount": USAGE["answer"],
            "thoughtsTokenCount": USAGE["thinking"],
        }
        body = {"candidates": [candidate | {"finishReason": finish}]}
        return web.json_response(body | {"usageMetadata": usage} | fields)

    @staticmethod
    def failure(status, message="no", **headers):
        body = {"error": {"code": status, "message": message, "status": "X"}}
        return web.json_response(body, status=status, headers=headers)

    @staticmethod
    def prompt(body):
        return json.loads(body)["contents"][0]["parts"][0]["text"]


class OpenAI:
    """How OpenAI says things."""

    provider, path, blocked = "openai", "v1", "content_filter"

    @staticmethod
    def answer(text, finish="stop", **fields):
        message = {"role": "assistant", "content": text} | fields
        usage = {
            "prompt_tokens": USAGE["prompt"],
            "prompt_tokens_details": {"cached_tokens": USAGE["cached"]},
            "completion_tokens": USAGE["answer"] + USAGE["thinking"],
            "completion_tokens_details": {"reasoning_tokens": USAGE["thinking"]},
        }
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return web.json_response({"choices": [choice], "usage": usage})

    @staticmethod
    def failure(status, message="no", **headers):
        body = {"error": {"message": message, "type": "x"}}
        return web.json_response(body, status=status, headers=headers)

    @staticmethod
    def prompt(body):
        return json.loads(body)["messages"][0]["content"]


@dataclasses.dataclass(frozen=True)
class Request:
    """One request as the server saw it; `answered` with a verdict or not."""

    path: str
    headers: dict
    body: str
    began: float
    answered: bool


class Server:
    """Answers probes well, and the rest from a script, whose last entry repeats.

    An entry makes a response; it may be a coroutine, and may raise `Reset` to lose the
    connection. Opened again it has the same address.
    """

    port = 0

    def __init__(self, says, *script):
        self.says, self.script = says, list(script)
        self.requests, self.busy, self.most_busy = [], 0, 0

    def next_entry(self):
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    async def handle(self, request):
        body, began, answered = await request.text(), time.monotonic(), False
        self.busy += 1
        self.most_busy = max(self.busy, self.most_busy)
        try:
            if "test of the connection" in body and not self.script_probes:
                return self.good()
            response = self.next_entry()()
            if asyncio.iscoroutine(response):
                response = await response
            answered = getattr(response, "is_verdict", False)
            return response
        except Reset:
            request.transport.abort()
            return web.Response()
        finally:
            self.busy -= 1
            seen = Request(request.path, dict(request.headers), body, began, answered)
            self.requests.append(seen)

    script_probes = False

    def good(self, score=8.5):
        response = self.says.answer(json.dumps(VERDICT | {"score": score}))
        response.is_verdict = True
        return response

    @property
    def asked(self):
        """The requests without the probe."""
        return [r for r in self.requests if "test of the connection" not in r.body]

    @contextlib.asynccontextmanager
    async def url(self):
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{self.port}/{self.says.path}"
        finally:
            await runner.cleanup()

    @contextlib.asynccontextmanager
    async def judge(self, ledger=None, key="SECRETKEY", **changes):
        async with self.url() as url:
            settings = {
                "provider": self.says.provider,
                "model": "gemini-2.5-flash",
                "deadline_s": 5.0,
                "base_url": url,
            }
            config = JudgeConfig(**settings | changes)
            judge = make_judge(
                config,
                roles=ROLES,
                keys={self.says.provider: key},
                ledger=ledger or Ledger(None),
            )
            try:
                yield judge
            finally:
                await judge.aclose()


class Plain(Server):
    """An OpenAI server that refuses a schema and writes its verdict in free text."""

    def __init__(self, refuse=400, score=lambda body: 3.0):
        super().__init__(OpenAI)
        self._refuse, self._score = refuse, score

    async def handle(self, request):
        raw, began = await request.text(), time.monotonic()
        plain = "response_format" not in raw
        self.requests.append(Request(request.path, {}, raw, began, plain))
        if not plain:
            return self.refusal()
        nonce = OpenAI.prompt(raw).rpartition("<<<")[2][:16]
        verdict = json.dumps(VERDICT | {"score": self._score(raw)})
        return OpenAI.answer(f"So.\n<<<{nonce} verdict\n{verdict}\n{nonce}>>>\n")

    def refusal(self):
        if self._refuse == 200:  # takes a schema, and does not keep to it
            return OpenAI.answer(f"Sure! ```json\n{json.dumps(VERDICT)}\n```")
        return OpenAI.failure(self._refuse, "unknown field response_format")


def most_above(times, amounts, per_minute):
    """By how much any stretch of the log exceeds the rate: what a bucket may hold."""
    order = np.argsort(times)
    times, amounts = np.asarray(times)[order], np.asarray(amounts, float)[order]
    after = np.cumsum(amounts) - per_minute / 60 * times
    before = np.minimum.accumulate(after - amounts)
    return float((after - before).max())


class Reset(Exception):
    """Lose the connection."""


class Faulty(Server):
    """Fails at a set rate, in every way there is; the rest are good verdicts.

    A content that was answered well is asserted never to be asked again: that would be
    paid for twice.
    """

    def __init__(self, says, rate, seed=0, seconds=0.0):
        super().__init__(says)
        self._rng, self._rate, self._seconds = random.Random(seed), rate, seconds
        self.faults = [
            lambda: says.failure(429, **{"Retry-After": "0"}),
            lambda: says.failure(429),
            lambda: says.failure(500, **{"Retry-After": "0"}),
            lambda: says.failure(503, **{"Retry-After": "0"}),
            self._reset,
            self._hang,
            lambda: web.Response(text='{"candid', content_type="application/json"),
            lambda: says.answer('{"grade": "good"}'),
            lambda: says.answer(json.dumps(VERDICT | {"score": 11})),
            lambda: says.answer(json.dumps(VERDICT | {"score": float("nan")})),
            lambda: says.answer('{"rationale": "half of a JS'),
            lambda: says.answer("", candidates=[], refusal="no"),
            lambda: says.answer("", says.blocked),
            self._drip,
        ]

    def next_entry(self):
        if self._rng.random() < self._rate:
            return self._rng.choice(self.faults)
        return self._slow

    async def _slow(self):
        await asyncio.sleep(self._seconds)
        return self.good()

    async def _hang(self):
        self.busy -= 1  # the client will have gone
        try:
            await asyncio.sleep(60)
        finally:
            self.busy += 1

    async def _drip(self):
        """A byte now and then, for longer than anybody waits."""
        return Drip(self)

    def _reset(self):
        raise Reset


class Drip(web.StreamResponse):
    """An answer that comes byte by byte and does not end."""

    def __init__(self, server):
        super().__init__(headers={"Content-Type": "application/json"})
        self._server = server

    async def prepare(self, request):
        writer = await super().prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(600):
                await self.write(b" ")
                await asyncio.sleep(0.1)
        return writer
