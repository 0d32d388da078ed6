"""Bodies that are not the protocol's, and settings that cannot work."""

import asyncio

import pytest
from aiohttp import web
from judge_server import ROLES, Gemini, OpenAI, Server

from mappa_jax.config import JudgeConfig
from mappa_jax.judges import JudgeError, Ledger, make_judge
from mappa_jax.types import Missing, MissingReason

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession")
BOTH = pytest.mark.parametrize("says", [Gemini, OpenAI], ids=["gemini", "openai"])
SHAPES = [
    *("[]", "null", "5", '"x"', "{}", '{"candidates": 5, "choices": 5}'),
    '{"candidates": [null], "choices": [null]}',
    '{"candidates": [{"content": "x"}], "choices": [{"message": "x"}]}',
    "[" * 100_000,
]


def score(says, request, make, **changes):
    server = Server(says, make)

    async def main():
        async with server.judge(**changes) as judge:
            return await judge.score(request)

    return asyncio.run(main()), server


@BOTH
@pytest.mark.parametrize("body", SHAPES, ids=lambda b: b[:20])
def test_another_shape_is_unparsable_and_not_asked_again(says, make_request, body):
    def make():
        return web.Response(text=body, content_type="application/json")

    verdict, server = score(says, make_request("solver", "x"), make)
    assert isinstance(verdict, Missing)
    assert verdict.reason is MissingReason.UNPARSABLE
    assert len(server.asked) == 1


@BOTH
def test_a_page_in_place_of_an_answer_is_shown(says, make_request):
    def make():
        return web.Response(text="<html>log in first</html>", content_type="text/html")

    verdict, server = score(says, make_request("solver", "x"), make, deadline_s=0.6)
    assert verdict.reason is MissingReason.SERVER_ERROR
    assert "http://127.0.0.1:" in verdict.detail and "log in first" in verdict.detail
    assert len(server.asked) > 1  # it may have been something on the way


@pytest.mark.parametrize("key", ["abc\n", "abc\r", " abc ", "a\x00b", "schl\u00fcssel"])
@pytest.mark.parametrize("provider", ["gemini", "openai"])
def test_a_key_that_none_can_be_is_refused_and_not_shown(provider, key):
    with pytest.raises(JudgeError, match=f"{provider.upper()}_API_KEY") as e:
        make(provider, key=key)
    assert key.strip() not in str(e.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "http://", "ftp://x/", "x y"])
@pytest.mark.parametrize("provider", ["gemini", "openai"])
def test_an_address_that_none_can_be_is_refused(provider, url):
    with pytest.raises(JudgeError, match="judge.base_url=.*http://localhost"):
        make(provider, base_url=url)


def make(provider, key="K", **changes):
    config = JudgeConfig(provider=provider, model="m", **changes)
    return make_judge(config, roles=ROLES, keys={provider: key}, ledger=Ledger(None))


def test_a_replay_by_the_rubric_is_refused():
    config = JudgeConfig(provider="rubric", replay="ledger.jsonl")
    with pytest.raises(JudgeError, match="judge.replay.*rubric"):
        make_judge(config, roles=ROLES, keys={}, ledger=Ledger(None))
