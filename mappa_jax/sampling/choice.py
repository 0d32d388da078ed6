"""How likely a model finds each of a few short answers to a chat: one forward.

The prompt and all answers lie in one row as a tree (learning/packing.py): the prompt is
computed once, each answer sees the prompt and itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mappa_jax.config import PackingConfig
from mappa_jax.learning.packing import Item, pack_rows
from mappa_jax.models.config import ModelConfig
from mappa_jax.models.decoder import Decoder, logits


class ChoiceScorer:
    """Probabilities of `answers` after a prompt, relative to one another.

    Args:
      cfg, params: the model.
      answers: token ids of each, an end of turn included, so that none is the
        beginning of another.
      buckets: padded lengths of a row; each is compiled once, when first used.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        params: Any,
        answers: Sequence[Sequence[int]],
        buckets: Sequence[int],
    ):
        self._params = params
        self._answers = [np.asarray(a, np.int32) for a in answers]
        self._buckets = sorted(buckets)
        self._longest = max(map(len, self._answers))
        model = Decoder(cfg)

        @jax.jit
        def chances(params, tokens, positions, ends, index, target, mask):
            hidden, _ = model.apply({"params": params}, tokens, positions, ends)
            scores = jax.nn.log_softmax(logits(params, cfg, hidden[0][index]))
            chosen = jnp.take_along_axis(scores, target[..., None], -1)[..., 0]
            return jax.nn.softmax((chosen * mask).sum(-1))

        self._chances = chances

    @property
    def room(self) -> int:
        """The longest prompt that fits, in tokens."""
        return self._buckets[-1] - sum(len(a) - 1 for a in self._answers)

    def __call__(self, prompt: np.ndarray) -> np.ndarray:
        """[answers] float32, summing to one.

        Args:
          prompt: [P] int32, P at most `room`.
        """
        items = [
            Item(i, np.concatenate([prompt, answer[:-1]]), 0)
            for i, answer in enumerate(self._answers)
        ]
        (row,) = pack_rows(items, PackingConfig(row_tokens=self._buckets[-1]))
        width = next(b for b in self._buckets if b >= len(row.tokens))

        def padded(column: np.ndarray) -> np.ndarray:
            return np.pad(column, (0, width - len(column)))[None]

        shape = (len(items), self._longest)
        index, target = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        mask = np.zeros(shape, np.float32)
        for i, path in row.placed:
            n = len(self._answers[i])
            index[i, :n] = path[len(prompt) - 1 :]
            target[i, :n] = self._answers[i]
            mask[i, :n] = 1.0
        columns = map(padded, (row.tokens, row.positions, row.ends))
        return np.asarray(self._chances(self._params, *columns, index, target, mask))
