"""Text to token ids and back: the seam between chats and the sampler."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mappa_jax.models.config import ModelError
from mappa_jax.text import cut_middle
from mappa_jax.types import Message


class Tokenizer:
    """A Hugging Face tokenizer with a chat template.

    Attributes:
      vocab_size: number of ids.
      stop_ids: the ids that end a turn.
      fingerprint: equal for tokenizers that map ids to the same tokens.
      chat: equal for tokenizers that render and end turns alike.

    Raises:
      ModelError: the folder has no tokenizer, or it has no chat template.
    """

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        try:
            self._hf = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as e:
            raise ModelError(f"{folder}: no tokenizer could be read: {e}") from e
        if not self._hf.chat_template:
            raise ModelError(
                f"{folder}: the tokenizer has no chat template; add chat_template to "
                "tokenizer_config.json or use an instruction-tuned model"
            )
        self.vocab_size = len(self._hf)
        self.stop_ids = self._stop_ids(Path(folder))
        vocab = sorted(self._hf.get_vocab().items())
        self.fingerprint = hashlib.sha256(json.dumps(vocab).encode()).hexdigest()
        self.chat = (self._hf.chat_template, self.stop_ids)
        added = {str(t) for t in self._hf.added_tokens_decoder.values()}
        control = added | set(self._hf.all_special_tokens)
        # Some vocabularies list runs of white space among the added tokens.
        control = {token for token in control if token.strip()}
        self._control = sorted(control, key=len, reverse=True)

    def _stop_ids(self, folder: Path) -> tuple[int, ...]:
        ids: Any = []
        generation = folder / "generation_config.json"
        if generation.exists():
            ids = json.loads(generation.read_text()).get("eos_token_id") or []
        ids = {ids} if isinstance(ids, int) else set(ids)
        if self._hf.eos_token_id is not None:
            ids.add(self._hf.eos_token_id)
        if not ids:
            raise ModelError(f"{folder}: the tokenizer has no eos token")
        return tuple(sorted(ids))

    def render(self, messages: Sequence[Message], *, thinking: bool) -> np.ndarray:
        """The chat with an opened assistant turn, as [P] int32.

        Control tokens in the contents are removed first: text that an agent or a
        tool wrote cannot close a turn.
        """
        chat = [{"role": m.role, "content": self.sanitise(m.content)} for m in messages]
        ids = self._hf.apply_chat_template(
            chat,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            enable_thinking=thinking,
        )
        return np.asarray(ids, np.int32)

    def sanitise(self, text: str) -> str:
        """`text` without the spellings of control tokens."""
        before = None
        while before != text:
            before = text
            for token in self._control:
                text = text.replace(token, "")
        return text

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text without control tokens."""
        return self._hf.decode([int(i) for i in ids], skip_special_tokens=True)

    def encode(self, text: str) -> list[int]:
        """The ids of plain text, nothing added."""
        return self._hf(text, add_special_tokens=False)["input_ids"]

    def cut_middle(self, text: str, limit: int) -> str:
        """`text.cut_middle` to `limit` of this tokenizer's tokens."""
        found = self._hf(text, add_special_tokens=False, return_offsets_mapping=True)
        return cut_middle(text, limit, found["offset_mapping"])

    def opens_thinking(self, prompt_ids: np.ndarray) -> bool:
        """Whether the chat template has already opened a thinking section."""
        tail = self._hf.decode([int(i) for i in prompt_ids[-8:]])
        return tail.rstrip().endswith("<think>")

    def generation_ids(self) -> dict[str, Any]:
        """What generation_config.json says of ids: those that end a turn are all of
        `stop_ids`, and a tokenizer read again has them."""
        pad = self._hf.pad_token_id
        ids = {
            "bos_token_id": self._hf.bos_token_id,
            "eos_token_id": list(self.stop_ids),
            "pad_token_id": self.stop_ids[0] if pad is None else pad,
        }
        return {name: value for name, value in ids.items() if value is not None}

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files beside exported weights."""
        self._hf.save_pretrained(str(folder))
