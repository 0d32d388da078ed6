"""The body of a chat request: OpenAI's fields that are honoured, and three of our own.

Whatever else a body holds is refused by name, unless its value asks for nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from mappa_jax.serving.errors import ApiError, invalid
from mappa_jax.types import Message

# Values that ask for nothing, of fields that clients send all the same.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
}
PLAIN_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_ .-]{0,99}$"
MOST_FILES = 100  # each is a file on the disk, however empty


class _Body(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")


class TextPart(_Body):
    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """One turn. What only tool calls need may stand there as null."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]
    name: str | None = None  # not shown to the model
    tool_call_id: str | None = None  # likewise
    tool_calls: None = None
    function_call: None = None
    refusal: None = None
    audio: None = None
    annotations: list[Any] | None = Field(None, max_length=0)

    def plain(self) -> Message:
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return Message(role, content)


class StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


_Number = Annotated[float, Field(allow_inf_nan=False)]
_Stop = Annotated[str, Field(min_length=1, max_length=200)]

_FileName = Annotated[str, Field(pattern=PLAIN_NAME)]
_Files = Annotated[dict[_FileName, str], Field(max_length=MOST_FILES)]


class ChatRequest(_Body):
    """The body of POST /v1/chat/completions.

    `trace` and `files` are extensions: the actions of the agents with the answer, and
    the data files of a task, name -> text.
    """

    model_config = pydantic.ConfigDict(strict=True, extra="allow")

    model: str = Field(max_length=200)
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: _Number | None = Field(None, ge=0, le=2)
    top_p: _Number | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1)
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    trace: bool = False
    files: _Files | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def chat(self) -> tuple[Message, ...]:
        return tuple(message.plain() for message in self.messages)


def parse_request(body: bytes) -> ChatRequest:
    """The request that `body` holds.

    Raises:
      ApiError: it is not JSON, has a field of another type, asks for something that is
        not supported; which, is named.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except pydantic.ValidationError as e:
        raise _refused(e) from e
    for key, value in (request.model_extra or {}).items():
        if key not in NEUTRAL:
            known = key[:80]
            raise invalid(f"{known!r} is not supported", known, "unsupported_parameter")
        if not any(_same(value, neutral) for neutral in NEUTRAL[key]):
            raise invalid(
                f"{key!r} is supported only as {NEUTRAL[key][-1]!r}, or left out",
                key,
                "unsupported_parameter",
            )
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options is for stream=true", "stream_options")
    return request


def _same(value: Any, neutral: Any) -> bool:
    """Equal, where False is not 0."""
    numbers = (int, float)
    alike = isinstance(value, bool) == isinstance(neutral, bool)
    both = isinstance(value, numbers) == isinstance(neutral, numbers)
    return alike and both and value == neutral


def _refused(error: pydantic.ValidationError) -> ApiError:
    """The first of what pydantic complains of; what was sent is not repeated."""
    errors = error.errors(include_url=False, include_input=False)
    first = errors[0]
    if first["loc"][-1:] == ("str",):  # what was meant as a list says more
        above = first["loc"][:-1]
        same = [e for e in errors if e["loc"][: len(above)] == above]
        first = max(same, key=lambda e: len(e["loc"]))
    if first["type"] == "json_invalid":
        return invalid(f"the body is not JSON: {first['msg'][:200]}", code="not_json")
    # Parts of unions and of annotations are no part of what the client has sent.
    path = [str(p) for p in first["loc"] if isinstance(p, int) or p.isidentifier()]
    path = [p for p in path if p not in ("str", "key", "constrained")]
    param = ".".join(path)[:80] or None
    code = "missing" if first["type"] == "missing" else "invalid_value"
    return invalid(f"{param or 'the body'}: {first['msg'][:200]}", param, code)
