"""What a client is told when it cannot have what it asked for."""

from __future__ import annotations

import math
from typing import Any

INVALID = "invalid_request_error"
SERVER = "server_error"


class ApiError(Exception):
    """An answer that is an error, in OpenAI's form.

    Attributes:
      status: of HTTP.
      message: for a person.
      kind: OpenAI's "type".
      param: the part of the body that is wrong, or None.
      code: for a program.
      headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind or (INVALID if status < 500 else SERVER)
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def invalid(message: str, param: str | None = None, code: str = "invalid_value"):
    """A 400: the request itself is wrong."""
    return ApiError(400, message, code=code, param=param)


def queue_full(retry_after: float) -> ApiError:
    """`retry_after` in seconds."""
    seconds = str(max(1, math.ceil(retry_after)))
    return ApiError(
        429,
        f"the queue is full; try again in about {seconds} s",
        code="queue_full",
        kind="rate_limit_error",
        headers={"Retry-After": seconds},
    )


def too_long(what: str) -> ApiError:
    return invalid(what, "messages", "context_length_exceeded")
