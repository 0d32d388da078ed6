"""The text of single tokens, from the tokenizers that are on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


class Spelling:
    """A `report.episodes.Pieces` by the agents' tokenizers.

    Args:
      models: agent -> name of its model.
      cache: where models are kept.

    Raises:
      ModelError: one of them would have to be fetched first.
    """

    def __init__(self, models: Mapping[str, str], cache: Path):
        from mappa_jax.models.registry import at_hand
        from mappa_jax.models.tokenizer import Tokenizer

        names = dict.fromkeys(models.values())
        tokenizers = {name: Tokenizer(at_hand(name, cache)) for name in names}
        self._tokenizers = {agent: tokenizers[name] for agent, name in models.items()}
        self._known: dict[tuple[str, int], str] = {}

    def __call__(self, agent: str, ids: Sequence[int]) -> Mapping[int, str] | None:
        if agent not in self._tokenizers:
            return None
        return {one: self._piece(agent, one) for one in dict.fromkeys(ids)}

    def _piece(self, agent: str, token: int) -> str:
        """What the token adds to what stands before it: at the start of a text some
        tokenizers leave a space away."""
        key = (agent, token)
        if key not in self._known:
            decode = self._tokenizers[agent].decode
            anchor = self._tokenizers[agent].encode("a")
            before = decode(anchor)
            self._known[key] = decode([*anchor, token])[len(before) :]
        return self._known[key]
