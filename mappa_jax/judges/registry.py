"""Which judges there are. A new provider is a file of its own and a line here."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any


@dataclasses.dataclass(frozen=True)
class Registered:
    """A provider that asks a model over the network.

    Attributes:
      where: "module:class" (`provider.Provider`); imported when it is used, as an SDK
        takes a second to import and the rubric does without it.
      key: the environment variable that holds its API key.
    """

    where: str
    key: str

    def load(self) -> Any:
        """The class: (JudgeConfig, the key or None) -> `provider.Provider`."""
        module, _, name = self.where.partition(":")
        return getattr(importlib.import_module(module), name)


PROVIDERS = {
    "gemini": Registered("mappa_jax.judges.gemini:GeminiProvider", "GEMINI_API_KEY"),
    "openai": Registered("mappa_jax.judges.openai:OpenAIProvider", "OPENAI_API_KEY"),
}
# What judge.provider may be, besides the place of a class outside the package.
NAMES = ("rubric", *PROVIDERS, "local", "ensemble")


def asks_a_model(provider: str) -> bool:
    """Whether verdicts are a model's: prompted, recorded, perhaps paid for. The rubric
    and a user's own judge keep their own house."""
    return provider in NAMES and provider != "rubric"


def is_free(provider: str) -> bool:
    """Whether asking costs nothing but time."""
    return not asks_a_model(provider) or provider == "local"
