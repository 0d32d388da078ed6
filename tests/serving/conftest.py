"""A team of scripted agents behind the real server, and the real client."""

import asyncio
import contextlib
import dataclasses
import zlib
from types import SimpleNamespace

import numpy as np
import openai
import pytest
from aiohttp import web

from mappa_jax.config import resolve
from mappa_jax.rollout import Stage
from mappa_jax.sampling.engine import PromptTooLong
from mappa_jax.sampling.team import Seat
from mappa_jax.serving.app import Service, make_app
from mappa_jax.serving.episodes import Served
from mappa_jax.serving.limits import Limits
from mappa_jax.testing import CharTokenizer, ScriptedGrader, ScriptedTools
from mappa_jax.workflows import WORKFLOWS
from mappa_jax.workflows.base import brief, seated

CONTEXT = 4000
LIMITS = Limits(
    body_bytes=100_000,
    read_seconds=5.0,
    seconds=20.0,
    running=4,
    waiting=8,
    choices=4,
)


class ChatEngine:
    """Says what `say(agent, address, prompt)` says, a few characters at a time.

    `gate` is waited for before the last of them. Counts how many are `active`, how many
    were at most (`peak`), were asked for (`asked`), and were `cancelled`.
    """

    def __init__(self, say=None):
        self.say = say or (
            lambda agent, address, prompt: (
                f"agent {agent}: {zlib.crc32(repr(address).encode())}"
            )
        )
        self.gate = asyncio.Event()
        self.gate.set()
        self.active = self.peak = self.asked = self.cancelled = 0
        self.options = []
        self.error = None

    def conversation(self):
        return contextlib.nullcontext()

    async def generate(
        self, agent, prompt, options, address, conversation=None, *, last=False
    ):
        if len(prompt) + options.max_new > CONTEXT:
            raise PromptTooLong(f"{len(prompt)} tokens")
        self.asked += 1
        self.active += 1
        self.peak = max(self.peak, self.active)
        self.options.append(options)
        try:
            return await self._say(agent, prompt, options, address)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.active -= 1

    async def _say(self, agent, prompt, options, address):
        said = self.say(agent, address, "".join(map(chr, prompt)))
        if isinstance(said, Exception):
            raise said
        tokens, kept = [ord(c) for c in said][: options.max_new], None
        for end in range(3, len(tokens) + 3, 3):
            await asyncio.sleep(0)
            so_far = tokens[:end]
            if options.stopped_at:
                kept = options.stopped_at(so_far)
            if options.on_tokens:
                options.on_tokens(so_far[:kept])
            if kept is not None:
                break
        await self.gate.wait()
        tokens = tokens[:kept]
        ended = kept is not None or len(said) <= options.max_new
        return SimpleNamespace(
            token_ids=np.asarray(tokens, np.int32),
            logprobs=np.zeros(len(tokens)),
            finish="stop" if ended else "length",
        )


@pytest.fixture(scope="session")
def make_served(tiny):
    """(engine, tools, workflow) -> a team that can be asked."""

    def make(engine, tools=None, workflow="mathchat", **agent):
        config = resolve(tiny())
        own = dataclasses.replace(config.agents["solver"], max_new_tokens=200, **agent)
        roles = WORKFLOWS[workflow].roles
        agents = {
            role.name: dataclasses.replace(own, max_turns=min(2, role.max_turns))
            for role in roles
        }
        config = dataclasses.replace(
            config,
            agents=agents,
            workflow=dataclasses.replace(config.workflow, name=workflow),
        )
        tokenizer = CharTokenizer()
        stage = Stage(
            workflow=seated(WORKFLOWS[workflow], config),
            brief=brief(config, lambda text, limit: text[: 4 * limit]),
            seats={
                name: Seat(name, i, agent, tokenizer)
                for i, (name, agent) in enumerate(agents.items())
            },
            engine=engine,
            tools=tools or ScriptedTools(),
            judge=None,
            grader=ScriptedGrader(),
            show_reference="never",
        )
        return Served(stage, CONTEXT, step=7, fingerprint="abc-7")

    return make


@pytest.fixture(scope="session")
def serve(make_served):
    """(engine, tools and workflow of `make_served`, or what is served; key, limits) ->
    a context with the service, its address, OpenAI's client, and its `create`."""

    @contextlib.asynccontextmanager
    async def running(engine, tools=None, workflow="mathchat", key=None, **limits):
        service = Service(dataclasses.replace(LIMITS, **limits), key)
        whole = isinstance(engine, Served)
        service.served = engine if whole else make_served(engine, tools, workflow)
        app = make_app(service)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        url = f"http://{host}:{port}"
        made = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key=key or "any", max_retries=0, timeout=60
        )
        try:
            async with made as client:
                yield SimpleNamespace(
                    service=service,
                    url=url,
                    client=client,
                    create=client.chat.completions.create,
                )
        finally:
            await runner.cleanup()

    return running


@pytest.fixture
def engine():
    return ChatEngine()


@pytest.fixture(scope="session")
def make_engine():
    return ChatEngine


async def until(condition, seconds=5.0):
    """Waits for something that is about to become true."""
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come true")


@pytest.fixture(scope="session")
def eventually():
    return until
