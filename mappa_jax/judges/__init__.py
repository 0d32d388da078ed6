"""Who scores the actions."""

from __future__ import annotations

from collections.abc import Callable

from mappa_jax.config import JudgeConfig
from mappa_jax.judges.base import Judge, JudgeError
from mappa_jax.judges.rubric import RubricJudge

__all__ = ["Judge", "JudgeError", "make_judge"]


def make_judge(config: JudgeConfig, api_key: str | None) -> Judge:
    """The judge of `config.provider`. Call its `check` before the first step.

    Args:
      config: provider, model, limits.
      api_key: the provider's key; None for a judge that needs none.

    Raises:
      JudgeError: if the provider is unknown or needs a key and has none.
    """
    if config.provider not in _MAKERS:
        raise JudgeError(
            f"judge.provider={config.provider!r} is not one of {[*_MAKERS]}"
        )
    return _MAKERS[config.provider](config, api_key)


def _make_rubric(config: JudgeConfig, api_key: str | None) -> Judge:
    return RubricJudge()


def _make_gemini(config: JudgeConfig, api_key: str | None) -> Judge:
    # Late, as the SDK takes a second to import and the rubric does without it.
    from mappa_jax.judges.gemini import GeminiJudge

    return GeminiJudge(config, api_key)


_MAKERS: dict[str, Callable[[JudgeConfig, str | None], Judge]] = {
    "rubric": _make_rubric,
    "gemini": _make_gemini,
}
