"""Gemini, through Google's SDK: an API key, or Vertex AI."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import aiohttp
import pydantic
from google import genai
from google.auth import exceptions as auth_errors
from google.genai import errors, types

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

ENDPOINT = "https://generativelanguage.googleapis.com/"
API_VERSION = "v1beta"
KEY_PAGE = "https://aistudio.google.com/apikey"

SCHEMA = types.Schema(
    type=types.Type.OBJECT,
    properties={
        "rationale": types.Schema(type=types.Type.STRING),
        "score": types.Schema(type=types.Type.NUMBER, minimum=0, maximum=10),
        "correct": types.Schema(type=types.Type.BOOLEAN, nullable=True),
    },
    required=["rationale", "score"],
    property_ordering=["rationale", "score", "correct"],
)
BLOCKED = frozenset(
    {
        types.FinishReason.SAFETY,
        types.FinishReason.RECITATION,
        types.FinishReason.LANGUAGE,
        types.FinishReason.BLOCKLIST,
        types.FinishReason.PROHIBITED_CONTENT,
        types.FinishReason.SPII,
    }
)


class GeminiProvider:
    """See `Provider`. One client and its connections are shared by all calls."""

    name = "gemini"
    forms = ("schema",)
    at_once = 0

    def __init__(self, config: JudgeConfig, api_key: str | None):
        self.model = config.model
        self._url = config.base_url or ENDPOINT
        thinking = None
        if config.thinking_tokens >= 0:
            thinking = types.ThinkingConfig(thinking_budget=config.thinking_tokens)
        self._asked = types.GenerateContentConfig(
            temperature=0.0,
            max_output_tokens=config.max_output_tokens,
            thinking_config=thinking,
            response_mime_type="application/json",
            response_schema=SCHEMA,
        )
        self._client = _client(config, api_key).aio

    def settings(self, form: Form) -> Mapping[str, Any]:
        return self._asked.model_dump(mode="json", exclude_none=True)

    async def open(self) -> None:
        """Nothing has to be settled."""

    async def ask(self, prompt: Prompt) -> Reply | Fault:
        try:
            answer = await self._client.models.generate_content(
                model=self.model, contents=prompt.text, config=self._asked
            )
        except errors.APIError as error:
            return classify(error, self.model)
        except auth_errors.GoogleAuthError as error:  # Vertex AI's credentials
            return Fault(MissingReason.AUTH, repr(error))
        except (aiohttp.ClientError, OSError) as error:
            return Fault(
                MissingReason.INFRASTRUCTURE, repr(error), passing=True, down=True
            )
        except json.JSONDecodeError as error:  # cut off, or of something on the way
            said = f"{self._url} said {error.doc[:SHOWN_CHARS]!r}, which is not JSON"
            return Fault(MissingReason.SERVER_ERROR, said, passing=True)
        except (
            pydantic.ValidationError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as e:
            # The SDK does not look at the shape of what it converts.
            said = (
                f"{self._url} gave no answer of the protocol: {repr(e)[:SHOWN_CHARS]}"
            )
            return Fault(MissingReason.UNPARSABLE, said)
        except ValueError as error:
            return Fault(MissingReason.SERVER_ERROR, repr(error), passing=True)
        return read(answer)

    async def aclose(self) -> None:
        await self._client.aclose()


def _client(config: JudgeConfig, api_key: str | None) -> genai.Client:
    # All that the SDK would otherwise take from the environment is given here. One
    # attempt: retries that we do not see would break the deadline.
    retry = types.HttpRetryOptions(attempts=1)
    if config.vertex_project:
        try:
            return genai.Client(
                vertexai=True,
                project=config.vertex_project,
                location=config.vertex_location,
                http_options=types.HttpOptions(
                    base_url=config.base_url or None, retry_options=retry
                ),
            )
        except (ValueError, auth_errors.GoogleAuthError) as e:
            raise JudgeError(
                f"judge.vertex_project={config.vertex_project!r}: {e}; sign in with "
                "`gcloud auth application-default login`"
            ) from e
    if not api_key:
        raise JudgeError(
            "judge.provider='gemini' needs an API key in GEMINI_API_KEY: get one at "
            f"{KEY_PAGE}, set judge.vertex_project, or set judge.provider='rubric'"
        )
    return genai.Client(
        vertexai=False,
        api_key=api_key,
        http_options=types.HttpOptions(
            base_url=config.base_url or ENDPOINT,
            api_version=API_VERSION,
            retry_options=retry,
        ),
    )


def read(answer: types.GenerateContentResponse) -> Reply | Fault:
    """The text of an answer, or why it has none."""
    usage = _usage(answer.usage_metadata)
    feedback = answer.prompt_feedback
    if feedback is not None and feedback.block_reason is not None:
        detail = f"prompt: {feedback.block_reason}"
        return Fault(MissingReason.BLOCKED, detail, usage=usage)
    if not answer.candidates:
        detail = "the answer has no candidate"
        return Fault(MissingReason.UNPARSABLE, detail, usage=usage)
    candidate = answer.candidates[0]
    finish = candidate.finish_reason
    if finish in BLOCKED:
        return Fault(MissingReason.BLOCKED, f"answer: {finish}", usage=usage)
    if finish is types.FinishReason.MAX_TOKENS:
        detail = (
            f"cut off after {usage.thinking} tokens of thinking and {usage.answer} of "
            "answer: raise judge.max_output_tokens or lower judge.thinking_tokens"
        )
        return Fault(MissingReason.TRUNCATED, detail, usage=usage)
    parts = (candidate.content.parts or []) if candidate.content else []
    return Reply("".join(p.text or "" for p in parts if not p.thought), usage)


def _usage(told: types.GenerateContentResponseUsageMetadata | None) -> Usage:
    if told is None:
        return Usage()
    return Usage(
        prompt=told.prompt_token_count or 0,
        cached=told.cached_content_token_count or 0,
        answer=told.candidates_token_count or 0,
        thinking=told.thoughts_token_count or 0,
    )


def classify(error: errors.APIError, model: str) -> Fault:
    """The fault behind an HTTP error."""
    detail = f"{error.code} {error.status}: {error.message}"
    # An ill-formed key is a 400 that only its details tell from other bad requests.
    if error.code in (401, 403) or "API_KEY_INVALID" in str(error.details):
        return Fault(MissingReason.AUTH, f"{detail} (keys: {KEY_PAGE})")
    if error.code == 404:
        return Fault(MissingReason.INFRASTRUCTURE, f"judge.model={model!r}: {detail}")
    headers = getattr(error.response, "headers", None) or {}
    after = headers.get("Retry-After", "") or _retry_delay(error.details)
    passing = passing_fault(error.code, detail, after)
    return passing or Fault(MissingReason.INFRASTRUCTURE, detail)


def _retry_delay(details: Any) -> str:
    """The seconds of a google.rpc.RetryInfo in an error's body; "" without one."""
    found = re.search(r"""["']retryDelay["']: *["']([\d.]+)s["']""", str(details))
    return found[1] if found else ""
