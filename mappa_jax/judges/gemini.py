"""Gemini as the judge, through Google's SDK.

The life of a call: render the prompt; wait for one of `concurrency` slots; ask, and ask
again after a pause as long as the fault is one that passes (429, 5xx, a lost
connection) and the deadline allows; read the answer strictly. Every way in which this
fails has its own `MissingReason`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time

import aiohttp
from google import genai
from google.genai import errors, types

from mappa_jax.config import JudgeConfig
from mappa_jax.judges.base import JudgeError
from mappa_jax.judges.gemini_faults import ENDPOINT, Fault, classify, explain
from mappa_jax.judges.prompts import Prompt, render
from mappa_jax.judges.schema import parse_verdict
from mappa_jax.types import JudgeCall, JudgeRequest, Missing, MissingReason, Verdict

API_VERSION = "v1beta"
# Pauses between attempts: exponential from the first to the longest, with jitter.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
SHOWN_CHARS = 200  # of a faulty answer, in the detail of a Missing

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


class GeminiJudge:
    """See `Judge`. One client and its connections are shared by all calls."""

    name = "gemini"

    def __init__(self, config: JudgeConfig, api_key: str | None):
        if not api_key:
            raise JudgeError(
                "judge.provider='gemini' needs an API key and was given none: get one "
                "at https://aistudio.google.com/apikey, or set judge.provider='rubric'"
            )
        self._config = config
        self._slots = asyncio.Semaphore(config.concurrency)
        self._jitter = random.Random(0)  # its draws reach no result
        # All that the SDK would otherwise take from the environment is given here.
        # One attempt: retries that we do not see would break the deadline.
        self._client = genai.Client(
            vertexai=False,
            api_key=api_key,
            http_options=types.HttpOptions(
                base_url=config.base_url or ENDPOINT,
                api_version=API_VERSION,
                retry_options=types.HttpRetryOptions(attempts=1),
            ),
        ).aio

    async def check(self) -> None:
        """Asks for the model's description, which costs no tokens.

        Raises:
          JudgeError: if the key is refused, the model unknown, or nobody answers.
        """
        config = self._config
        try:
            async with asyncio.timeout(config.deadline_s):
                await self._client.models.get(model=config.model)
        except TimeoutError as error:
            raise JudgeError(
                f"judge.base_url={config.base_url!r}: no answer within "
                f"judge.deadline_s={config.deadline_s}"
            ) from error
        except (errors.APIError, aiohttp.ClientError, OSError, ValueError) as error:
            raise JudgeError(explain(config, error)) from error

    async def score(self, request: JudgeRequest) -> Verdict | Missing:
        """See `Judge.score`. The deadline runs from when the call gets its slot."""
        prompt = render(request, self._config.field_tokens)
        async with self._slots:
            started = time.monotonic()
            answer = await self._ask_until_deadline(prompt)
            latency = time.monotonic() - started
        call = JudgeCall(
            self.name, self._config.model, prompt.sha256, latency_s=latency
        )
        if isinstance(answer, Fault):
            return Missing(answer.reason, answer.detail, call)
        usage = answer.usage_metadata
        if usage is not None:
            written = (usage.candidates_token_count, usage.thoughts_token_count)
            call = dataclasses.replace(
                call,
                tokens_in=usage.prompt_token_count or 0,
                tokens_out=sum(count or 0 for count in written),
            )
        return read_answer(answer, call, asked_correct=request.is_last)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _ask_until_deadline(
        self, prompt: Prompt
    ) -> types.GenerateContentResponse | Fault:
        deadline = time.monotonic() + self._config.deadline_s
        fault = Fault(
            MissingReason.TIMEOUT, f"no answer within {self._config.deadline_s} s"
        )
        pause = FIRST_PAUSE_S
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    answer = await self._ask(prompt)
            except TimeoutError:
                return fault  # what went wrong before tells more, where anything did
            if not isinstance(answer, Fault) or not answer.passing:
                return answer
            fault = answer
            wait = fault.retry_after_s
            if wait is None:
                wait = pause * self._jitter.uniform(0.5, 1.0)
            if time.monotonic() + wait >= deadline:
                return fault
            await asyncio.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _ask(self, prompt: Prompt) -> types.GenerateContentResponse | Fault:
        config = types.GenerateContentConfig(
            temperature=0.0,
            max_output_tokens=self._config.max_output_tokens,
            response_mime_type="application/json",
            response_schema=SCHEMA,
        )
        try:
            return await self._client.models.generate_content(
                model=self._config.model, contents=prompt.text, config=config
            )
        except errors.APIError as error:
            return classify(error)
        except (aiohttp.ClientError, ConnectionError) as error:
            return Fault(MissingReason.INFRASTRUCTURE, repr(error), passing=True)
        except ValueError as error:  # a body that is not the protocol's JSON
            return Fault(MissingReason.SERVER_ERROR, repr(error), passing=True)


def read_answer(
    answer: types.GenerateContentResponse, call: JudgeCall, asked_correct: bool
) -> Verdict | Missing:
    """The verdict in a model's answer. `asked_correct`: whether `correct` counts."""
    feedback = answer.prompt_feedback
    if feedback is not None and feedback.block_reason is not None:
        return Missing(MissingReason.BLOCKED, f"prompt: {feedback.block_reason}", call)
    if not answer.candidates:
        return Missing(MissingReason.UNPARSABLE, "the answer has no candidate", call)
    candidate = answer.candidates[0]
    finish = candidate.finish_reason
    if finish in BLOCKED:
        return Missing(MissingReason.BLOCKED, f"answer: {finish}", call)
    if finish is types.FinishReason.MAX_TOKENS:
        detail = "the answer was cut off: raise judge.max_output_tokens"
        return Missing(MissingReason.TRUNCATED, detail, call)
    parts = (candidate.content.parts or []) if candidate.content else []
    text = "".join(part.text or "" for part in parts if not part.thought)
    parsed = parse_verdict(text)
    if isinstance(parsed, MissingReason):
        return Missing(parsed, f"{finish}: {text[:SHOWN_CHARS]!r}", call)
    return Verdict(
        score=parsed.score,
        rationale=parsed.rationale,
        call=call,
        correct=parsed.correct if asked_correct else None,
    )
