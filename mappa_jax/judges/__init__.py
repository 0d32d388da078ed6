"""Who scores the actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from mappa_jax.config import JudgeConfig
from mappa_jax.judges.base import Judge, JudgeError, Meter
from mappa_jax.judges.ledger import Ledger
from mappa_jax.judges.local import LocalProvider, Scorer
from mappa_jax.judges.rubric import RubricJudge

__all__ = ["Judge", "JudgeError", "Ledger", "Meter", "make_judge"]


def make_judge(
    config: JudgeConfig,
    *,
    roles: Iterable[str],
    keys: Mapping[str, str | None],
    ledger: Ledger,
    make_scorer: Callable[[str], Scorer] | None = None,
) -> Judge:
    """The judge of `config.provider`. Call its `check` before the first step.

    Args:
      config: provider, model, limits.
      roles: names of the team's roles; each needs a prompt where a model judges.
      keys: by provider, its API key or None.
      ledger: of the run. It outlives the judge: whoever opened it closes it.
      make_scorer: of a model's name, for provider "local" (judges/local.py).

    Raises:
      JudgeError: something is missing or wrong; the key of the config is named.
    """
    if config.provider != "ensemble":
        return _make_one(config, tuple(roles), keys, ledger, make_scorer)
    from mappa_jax.judges.ensemble import EnsembleJudge

    roles, members = tuple(roles), {}
    for name, member in config.members.items():
        one = dataclasses.replace(
            config,
            provider=member.provider,
            model=member.model or config.model,
            base_url=member.base_url,
            members={},
        )
        members[name] = _make_one(one, roles, keys, ledger, make_scorer)
    return EnsembleJudge(members, config.combine)


def _make_one(
    config: JudgeConfig,
    roles: tuple[str, ...],
    keys: Mapping[str, str | None],
    ledger: Ledger,
    make_scorer: Callable[[str], Scorer] | None,
) -> Judge:
    if config.provider == "rubric":
        return RubricJudge()
    if config.provider not in [*_PROVIDERS, "local"]:
        raise JudgeError(
            f"judge.provider={config.provider!r} is not one of "
            f"{['rubric', *_PROVIDERS, 'local', 'ensemble']}"
        )
    from mappa_jax.judges.calls import CallingJudge
    from mappa_jax.judges.prices import find_price
    from mappa_jax.judges.prompts import check_templates

    try:
        check_templates(roles, config.prompts)
    except ValueError as e:
        raise JudgeError(str(e)) from e
    key = keys.get(config.provider)
    if config.replay and not key:
        key = "unused"  # a replay asks nobody
    if config.provider == "local":
        provider = LocalProvider(config, make_scorer)
    else:
        provider = _PROVIDERS[config.provider](config, key)
    price = find_price(config.model, config.prices)
    return CallingJudge(provider, config, ledger, price, secrets=[key or ""])


# Late imports, as an SDK takes a second to import and the rubric does without it.


def _gemini(config: JudgeConfig, key: str | None):
    from mappa_jax.judges.gemini import GeminiProvider

    return GeminiProvider(config, key)


def _openai(config: JudgeConfig, key: str | None):
    from mappa_jax.judges.openai import OpenAIProvider

    return OpenAIProvider(config, key)


_PROVIDERS: dict[str, Callable] = {"gemini": _gemini, "openai": _openai}
