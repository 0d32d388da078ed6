"""Who scores the actions."""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Callable, Iterable, Mapping

from mappa_jax.config import JudgeConfig, WorkflowConfig, parse_members
from mappa_jax.judges.account import Account
from mappa_jax.judges.base import (
    BudgetReached,
    Judge,
    JudgeError,
    Meter,
    TooManyMissing,
)
from mappa_jax.judges.ledger import Ledger
from mappa_jax.judges.local import LocalProvider, Scorer
from mappa_jax.judges.registry import NAMES, PROVIDERS
from mappa_jax.judges.rubric import RubricJudge
from mappa_jax.plugins import is_plugin, load_object

__all__ = [
    "BudgetReached",
    "Judge",
    "JudgeError",
    "Ledger",
    "Meter",
    "TooManyMissing",
    "make_judge",
]


def make_judge(
    config: JudgeConfig,
    *,
    roles: Iterable[str],
    keys: Mapping[str, str | None],
    ledger: Ledger,
    make_scorer: Callable[[str], Scorer] | None = None,
    workflow: str = WorkflowConfig.name,
    host: int = 0,
    hosts: int = 1,
) -> Judge:
    """The judge of `config.provider`. Call its `check` before the first step.

    A provider "module:NAME" or "folder/file.py:NAME" is a user's own: what is there is
    called with the config and gives a `Judge`.

    Args:
      config: provider, model, limits.
      roles: names of the team's roles; each needs a prompt where a model judges.
      keys: by provider, its API key or None.
      ledger: of the run. It outlives the judge: whoever opened it closes it.
      make_scorer: of a model's name, for provider "local" (judges/local.py).
      workflow: its name; it may have prompts of its own.
      host, hosts: which of how many this is, that share the budget, the requests at a
        time and those a minute.

    Raises:
      JudgeError: something is missing or wrong; the key of the config is named.
      ConfigError: a judge of one's own is not where the provider says.
    """
    if config.replay and config.provider == "rubric":
        raise JudgeError(
            f"judge.replay={config.replay!r} is of a judge that was paid for; with "
            "judge.provider='rubric' set it to '': the rubric always says the same"
        )
    if is_plugin(config.provider):
        return load_object(config.provider, "judge.provider")(config)
    account = Account(config.budget, ledger, host, hosts)
    config = dataclasses.replace(
        config,
        concurrency=max(1, config.concurrency // hosts),
        rpm=_part("rpm", config.rpm, host, hosts),
        tpm=_part("tpm", config.tpm, host, hosts),
    )

    def make(one: JudgeConfig) -> Judge:
        if one.provider == "rubric":
            return RubricJudge(config.rubric)
        return _calling(one, [*roles], workflow, keys, ledger, account, make_scorer)

    roles = tuple(roles)
    if config.provider != "ensemble":
        return make(config)
    from mappa_jax.judges.ensemble import EnsembleJudge

    members = {
        name: make(
            dataclasses.replace(
                config,
                provider=member.provider,
                model=member.model or config.model,
                base_url=member.base_url,
                members="",
            )
        )
        for name, member in parse_members(config.members).items()
    }
    return EnsembleJudge(members, config.combine, account)


def _part(key: str, limit: int, host: int, hosts: int) -> int:
    """A host's part of a limit; 0 is none."""
    if 0 < limit < hosts:
        raise JudgeError(
            f"judge.{key}={limit} cannot be divided among {hosts} hosts; raise it, or "
            "run on fewer"
        )
    return limit // hosts + (host < limit % hosts)


def _calling(
    config: JudgeConfig,
    roles: list[str],
    workflow: str,
    keys: Mapping[str, str | None],
    ledger: Ledger,
    account: Account,
    make_scorer: Callable[[str], Scorer] | None,
) -> Judge:
    if config.provider not in [*PROVIDERS, "local"]:
        raise JudgeError(f"judge.provider={config.provider!r} is not one of {[*NAMES]}")
    from mappa_jax.judges.calls import CallingJudge
    from mappa_jax.judges.prices import find_price
    from mappa_jax.judges.prompts import load_templates

    try:
        templates = load_templates(roles, config.prompts, workflow, config.rubric)
    except ValueError as e:
        raise JudgeError(str(e)) from e
    key = keys.get(config.provider) or ""
    _check_key(config.provider, key)
    _check_url(config.base_url)
    if config.replay and not key:
        key = "unused"  # a replay asks nobody
    if config.provider == "local":
        provider = LocalProvider(config, make_scorer)
    else:
        provider = PROVIDERS[config.provider].load()(config, key)
    price = find_price(config.model, config.prices)
    return CallingJudge(provider, config, ledger, account, price, templates, [key])


def _check_key(provider: str, key: str) -> None:
    """A key with a line break would be found out by a header, or by nobody."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise JudgeError(
            f"{PROVIDERS[provider].key} holds a character that no key has (a blank, a "
            "line break, a control or foreign character): set it again"
        )


def _check_url(url: str) -> None:
    if not url:
        return
    try:
        found = urllib.parse.urlsplit(url)
        good = found.scheme in ("http", "https") and found.hostname
    except ValueError:
        good = False
    if not good:
        raise JudgeError(
            f"judge.base_url={url!r} is no address of a server: write it whole, for "
            "example http://localhost:8000/v1"
        )
