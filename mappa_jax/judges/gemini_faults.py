"""What can go wrong with a call of the Gemini API, told apart."""

from __future__ import annotations

import dataclasses

from google.genai import errors

from mappa_jax.config import JudgeConfig
from mappa_jax.types import MissingReason

ENDPOINT = "https://generativelanguage.googleapis.com/"


@dataclasses.dataclass(frozen=True)
class Fault:
    """A call that gave no answer.

    Attributes:
      passing: whether it is worth asking again.
      retry_after_s: the pause that the server asked for, or None.
    """

    reason: MissingReason
    detail: str
    passing: bool = False
    retry_after_s: float | None = None


def classify(error: errors.APIError) -> Fault:
    """The fault behind an HTTP error."""
    detail = f"{error.code} {error.status}: {error.message}"
    if _refuses_key(error):
        return Fault(MissingReason.AUTH, detail)
    after = _retry_after(error)
    if error.code == 429:
        return Fault(MissingReason.RATE_LIMITED, detail, True, after)
    if error.code == 408 or error.code >= 500:
        return Fault(MissingReason.SERVER_ERROR, detail, True, after)
    return Fault(MissingReason.INFRASTRUCTURE, detail)


def _refuses_key(error: errors.APIError) -> bool:
    # An ill-formed key is a 400 that only its details tell from other bad requests.
    return error.code in (401, 403) or "API_KEY_INVALID" in str(error.details)


def _retry_after(error: errors.APIError) -> float | None:
    """Seconds, where the server gave a number of them (it may give a date)."""
    headers = getattr(error.response, "headers", None) or {}
    value = headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else None


def explain(config: JudgeConfig, error: Exception) -> str:
    """What to say at the door: the key of the config at fault, and the remedy."""
    if isinstance(error, errors.APIError):
        if _refuses_key(error):
            return (
                f"the Gemini API refuses the API key ({error.code} {error.message}): "
                "pass a valid key (https://aistudio.google.com/apikey)"
            )
        if error.code == 404:
            return f"judge.model={config.model!r} is not known: {error.message}"
    where = config.base_url or ENDPOINT
    return f"judge.base_url: {where} does not answer as the Gemini API does: {error!r}"
