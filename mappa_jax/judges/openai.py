"""Any endpoint that speaks OpenAI's chat completions: vLLM, Ollama, llama.cpp, ..."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import pydantic

from mappa_jax.config import JudgeConfig
from mappa_jax.judges.base import JudgeError
from mappa_jax.judges.prompts import Form, probe
from mappa_jax.judges.provider import Fault, Reply, Usage, passing_fault
from mappa_jax.types import MissingReason

ENDPOINT = "https://api.openai.com/v1"
SCHEMA = {
    "type": "object",
    "properties": {
        "rationale": {"type": "string"},
        "score": {"type": "number"},
        "correct": {"type": ["boolean", "null"]},
    },
    "required": ["rationale", "score", "correct"],
    "additionalProperties": False,
}


class _Details(pydantic.BaseModel):
    cached_tokens: int | None = 0
    reasoning_tokens: int | None = 0


class _Told(pydantic.BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Message(pydantic.BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(pydantic.BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(pydantic.BaseModel):
    """What we read of a chat completion; the rest is the server's own."""

    choices: list[_Choice]
    usage: _Told | None = None


class OpenAIProvider:
    """See `Provider`.

    With judge.form="auto" the server is asked once whether it takes a JSON schema;
    one that does not writes its verdict fenced in free text.
    """

    name = "openai"

    def __init__(self, config: JudgeConfig, api_key: str | None):
        if not config.base_url and not api_key:
            raise JudgeError(
                "judge.provider='openai' needs OPENAI_API_KEY, or judge.base_url with "
                "the address of a server of your own (http://localhost:8000/v1)"
            )
        self.model = config.model
        self.form: Form = "fenced" if config.form == "fenced" else "schema"
        self._auto = config.form == "auto"
        self._url = (config.base_url or ENDPOINT).rstrip("/") + "/chat/completions"
        self._limit = config.max_output_tokens
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    def settings(self) -> Mapping[str, Any]:
        settings = {"temperature": 0.0, "max_tokens": self._limit}
        if self.form == "schema":
            named = {"name": "verdict", "strict": True, "schema": SCHEMA}
            settings["response_format"] = {"type": "json_schema", "json_schema": named}
        return settings

    async def open(self) -> None:
        """Finds out whether the server takes a schema."""
        if not self._auto:
            return
        answer = await self.ask(probe("schema").text)
        if isinstance(answer, Fault) and answer.detail.startswith(("400", "422")):
            self.form = "fenced"

    async def ask(self, text: str) -> Reply | Fault:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            **self.settings(),
        }
        if self._session is None:  # made late, inside the event loop
            self._session = aiohttp.ClientSession(headers=self._headers)
        try:
            async with self._session.post(self._url, json=body) as response:
                raw = await response.text(errors="replace")
        except (aiohttp.ClientError, OSError) as error:
            return Fault(
                MissingReason.INFRASTRUCTURE, repr(error), passing=True, down=True
            )
        if response.status != 200:
            return classify(response.status, response.headers, raw, self.model)
        try:
            return read(_Completion.model_validate(json.loads(raw)))
        except ValueError as error:  # a body that is not the protocol's JSON
            return Fault(MissingReason.SERVER_ERROR, repr(error), passing=True)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


def read(completion: _Completion) -> Reply | Fault:
    """The text of a completion, or why it has none."""
    usage = _usage(completion.usage)
    if not completion.choices:
        return Fault(MissingReason.UNPARSABLE, "the answer has no choice", usage=usage)
    choice = completion.choices[0]
    if choice.message.refusal:
        return Fault(MissingReason.BLOCKED, choice.message.refusal, usage=usage)
    if choice.finish_reason == "content_filter":
        return Fault(MissingReason.BLOCKED, "content_filter", usage=usage)
    if choice.finish_reason == "length":
        detail = f"cut off at {usage.answer} tokens: raise judge.max_output_tokens"
        return Fault(MissingReason.TRUNCATED, detail, usage=usage)
    return Reply(choice.message.content or "", usage)


def _usage(told: _Told | None) -> Usage:
    if told is None:
        return Usage()
    read_, written = told.prompt_tokens_details, told.completion_tokens_details
    thinking = (written.reasoning_tokens or 0) if written else 0
    return Usage(
        prompt=told.prompt_tokens,
        cached=(read_.cached_tokens or 0) if read_ else 0,
        answer=told.completion_tokens - thinking,
        thinking=thinking,
    )


def classify(status: int, headers: Mapping[str, str], body: str, model: str) -> Fault:
    """The fault behind an HTTP status that is not 200."""
    detail = f"{status}: {body[:300]}"
    if status in (401, 403):
        return Fault(MissingReason.AUTH, f"{detail} (the key is OPENAI_API_KEY)")
    if status == 404:
        return Fault(
            MissingReason.INFRASTRUCTURE, f"judge.model={model!r} or its URL: {detail}"
        )
    if status == 429 and "insufficient_quota" in body:  # no pause will mend it
        return Fault(MissingReason.RATE_LIMITED, detail)
    passing = passing_fault(status, detail, headers.get("Retry-After", ""))
    return passing or Fault(MissingReason.INFRASTRUCTURE, detail)
