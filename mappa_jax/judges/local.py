"""A model of our own as the judge, without an endpoint.

It writes nothing: the score is the mean over the whole numbers 0 to 10, each weighted
by its probability as the model's answer. So a weak model's leaning counts as well as
its first choice, and the same content always gets the same score.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from mappa_jax.config import JudgeConfig
from mappa_jax.judges.base import JudgeError
from mappa_jax.judges.prompts import Form, Prompt
from mappa_jax.judges.provider import Fault, Reply, Usage
from mappa_jax.types import MissingReason
from mappa_jax.waiting import to_its_end

SCORES = tuple(range(11))


class PromptTooLong(ValueError):
    """A prompt is longer than the judge's context."""


class Scorer(Protocol):
    """A model that says how likely each of the answers "0" to "10" is."""

    def __call__(self, text: str) -> tuple[np.ndarray, int]:
        """[11] probabilities that sum to one, and the prompt's tokens.

        Raises:
          PromptTooLong: the prompt does not fit.
        """


class LocalProvider:
    """See `Provider`. One prompt at a time; the event loop is not held up."""

    name = "local"
    forms = ("number",)
    at_once = 1

    def __init__(
        self, config: JudgeConfig, make_scorer: Callable[[str], Scorer] | None
    ):
        if make_scorer is None:
            raise JudgeError("judge.provider='local' cannot be used here")
        self.model = config.model
        self._make_scorer = make_scorer
        self._scorer: Scorer | None = None

    def settings(self, form: Form) -> Mapping[str, Any]:
        return {"scores": list(SCORES)}

    async def open(self) -> None:
        """Loads the weights; raises what the registry raises."""
        self._scorer = await asyncio.to_thread(self._make_scorer, self.model)

    async def ask(self, prompt: Prompt) -> Reply | Fault:
        work = asyncio.ensure_future(asyncio.to_thread(self._scorer, prompt.text))
        try:
            chances, tokens = await to_its_end(work)
        except PromptTooLong as e:
            detail = f"{e}: lower judge.field_tokens or judge.prompt_tokens"
            return Fault(MissingReason.TRUNCATED, detail)
        weights = np.asarray(chances, np.float64)
        weights = weights / weights.sum()
        # Rounding may still leave the range by a digit, which is not the model's doing.
        score = float(np.clip(weights @ np.asarray(SCORES, np.float64), 0.0, 10.0))
        likely = sorted(SCORES, key=lambda s: -weights[s])[:3]
        said = ", ".join(f"{s}: {weights[s]:.0%}" for s in likely)
        verdict = {"rationale": f"most likely {said}", "score": score}
        return Reply(json.dumps(verdict), Usage(prompt=tokens))

    async def aclose(self) -> None:
        self._scorer = None
