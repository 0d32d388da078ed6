"""Any endpoint that speaks OpenAI's chat completions: vLLM, Ollama, llama.cpp, ..."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import pydantic

from mappa_jax.config import JudgeConfig
from mappa_jax.judges.base import JudgeError
from mappa_jax.judges.prompts import Form, Prompt
from mappa_jax.judges.provider import (
    SHOWN_CHARS,
    Fault,
    Reply,
    Usage,
    passing_fault,
)
from mappa_jax.types import MissingReason

ENDPOINT = "https://api.openai.com/v1"
RENAMED = "max_completion_tokens"
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
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
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

    With judge.form="auto" a server that does not take a JSON schema, or takes it and
    does not keep to it, writes its verdict fenced in free text.
    """

    name = "openai"
    at_once = 0

    def __init__(self, config: JudgeConfig, api_key: str | None):
        if not config.base_url and not api_key:
            raise JudgeError(
                "judge.provider='openai' needs OPENAI_API_KEY, or judge.base_url with "
                "the address of a server of your own (http://localhost:8000/v1)"
            )
        self.model = config.model
        self.forms: tuple[Form, ...] = (
            ("schema", "fenced") if config.form == "auto" else (config.form,)
        )
        self._base = (config.base_url or ENDPOINT).rstrip("/")
        self._url = self._base + "/chat/completions"
        self._limit = config.max_output_tokens
        self._limit_name = "max_tokens"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    def settings(self, form: Form) -> Mapping[str, Any]:
        # Two servers may give one name to two models.
        asked = _asked(form) | {"max_tokens": self._limit}
        return asked | {"base_url": self._base}

    async def open(self) -> None:
        """Nothing has to be settled."""

    async def ask(self, prompt: Prompt) -> Reply | Fault:
        limit_name = self._limit_name
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt.text}],
            limit_name: self._limit,
            **_asked(prompt.form),
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
        if response.status == 400 and RENAMED in raw and limit_name != RENAMED:
            # Newer models want the limit under another name, and say so.
            self._limit_name = RENAMED
            detail = f"{response.status}: {raw[:SHOWN_CHARS]}"
            return Fault(MissingReason.SERVER_ERROR, detail, passing=True)
        if response.status != 200:
            return classify(response.status, response.headers, raw, self.model)
        shown = f"{self._url} said {raw[:SHOWN_CHARS]!r}"
        try:
            completion = _Completion.model_validate(json.loads(raw))
        except json.JSONDecodeError:  # cut off, or of something on the way
            detail = f"{shown}, which is not JSON"
            return Fault(MissingReason.SERVER_ERROR, detail, passing=True)
        except (pydantic.ValidationError, RecursionError):
            detail = f"{shown}, which is no chat completion"
            return Fault(MissingReason.UNPARSABLE, detail)
        return read(completion)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


def _asked(form: Form) -> dict[str, Any]:
    asked: dict[str, Any] = {"temperature": 0.0}
    if form == "schema":
        named = {"name": "verdict", "strict": True, "schema": SCHEMA}
        asked["response_format"] = {"type": "json_schema", "json_schema": named}
    return asked


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
        prompt=told.prompt_tokens or 0,
        cached=(read_.cached_tokens or 0) if read_ else 0,
        answer=max((told.completion_tokens or 0) - thinking, 0),
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
    if status in (400, 422):
        if any(word in body for word in ("response_format", "schema")):
            detail += " (judge.form='fenced' asks without a schema)"
        return Fault(MissingReason.INFRASTRUCTURE, detail, refused=True)
    passing = passing_fault(status, detail, headers.get("Retry-After", ""))
    return passing or Fault(MissingReason.INFRASTRUCTURE, detail)
