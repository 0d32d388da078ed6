"""transformers' `generate`, and a policy-gradient step in plain PyTorch.

Sampling: `generate` with its default (growing) cache and SDPA attention, all rows in
one batch. A logits processor keeps the end-of-sequence id away until a row's length and
forces it there: the row is then finished, and the batch runs to the longest.

The update: sequences sorted by length and cut into micro-batches, each padded on the
right to its own longest; SDPA attention; gradient checkpointing of every layer
(non-reentrant); the head at the completions' tokens only; fused AdamW; clipping by the
global norm. A sequence's loss is the mean over its tokens, the batch's the mean over
sequences.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import protocol
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, LogitsProcessor

DEVICES = {"cpu": "cpu", "gpu": "cuda"}


class Stops(LogitsProcessor):
    """Ends row r after stops[r] new tokens, the end-of-sequence id included."""

    def __init__(self, work: protocol.Work, device: str):
        self._stops = torch.as_tensor(work.stops, device=device)
        self._prompt, self._work = work.prompts.shape[1], work

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        end = self._stops <= input_ids.shape[1] - self._prompt + 1
        scores[:, self._work.pad] = -torch.inf
        scores[:, self._work.eos] = torch.where(end, 1e9, -torch.inf)
        return scores


class Side:
    def __init__(self, work: protocol.Work):
        self.work, self.device = work, DEVICES[work.device]
        self.model = AutoModelForCausalLM.from_pretrained(
            work.folder, dtype=getattr(torch, work.dtype), attn_implementation="sdpa"
        ).to(self.device)
        self._seed = 0

    def sample(self) -> tuple[list[int], torch.Tensor]:
        """The rows' numbers of new tokens, and the rows."""
        work, self._seed = self.work, self._seed + 1
        torch.manual_seed(self._seed)
        prompts = torch.as_tensor(work.prompts, device=self.device).long()
        self.model.eval()
        with torch.inference_mode():
            rows = self.model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=int(work.stops.max()),
                eos_token_id=work.eos,
                pad_token_id=work.pad,
                logits_processor=[Stops(work, self.device)],
            )
        new = rows[:, work.prompts.shape[1] :].cpu()
        return (new != work.pad).sum(1).tolist(), rows

    def make_trainer(self) -> None:
        self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.work.learning_rate,
            weight_decay=0.0,
            fused=True,
        )

    def update(
        self, pairs: list[tuple[np.ndarray, np.ndarray]], advantages: np.ndarray
    ) -> dict[str, Any]:
        self.model.train()
        order = np.argsort([len(p) + len(c) for p, c in pairs], kind="stable")
        size = self.work.microbatch
        tokens = places = 0
        for first in range(0, len(order), size):
            part = order[first : first + size]
            found = self._accumulate(
                [pairs[i] for i in part], advantages[part], len(pairs)
            )
            tokens, places = tokens + found[0], places + found[1]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        norm = float(norm)  # waits for the device
        return {"tokens": tokens, "grad_norm": norm, "padded_to": places}

    def _accumulate(
        self, pairs: list[Any], advantages: np.ndarray, total: int
    ) -> tuple[int, int]:
        """Adds a micro-batch's gradient; completion tokens, and places computed."""
        rows = [np.concatenate(pair) for pair in pairs]
        width = max(map(len, rows))
        ids = np.stack([np.pad(r, (0, width - len(r))) for r in rows])
        starts = np.asarray([len(p) for p, _ in pairs])[:, None]
        ends = np.asarray([len(r) for r in rows])[:, None]
        place = np.arange(width)
        trained = (place >= starts) & (place < ends)
        weight = advantages[:, None] / (ends - starts) / total * trained

        def on_device(x: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(x, device=self.device)

        ids = on_device(ids).long()
        hidden = self.model.model(
            ids,
            attention_mask=on_device((place < ends).astype(np.int64)),
            use_cache=False,
        ).last_hidden_state
        chosen = on_device(trained[:, 1:])
        scores = self.model.lm_head(hidden[:, :-1][chosen]).float()
        logp = -F.cross_entropy(scores, ids[:, 1:][chosen], reduction="none")
        ratio = torch.exp(logp - logp.detach())
        gain = on_device(weight[:, 1:].astype(np.float32))[chosen]
        loss = -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).sum()
        loss.backward()
        return int(trained.sum()), ids.numel()


def prepare(work: protocol.Work, part: str) -> protocol.Run:
    side = Side(work)
    if part == "sampling":
        return lambda: {"lengths": side.sample()[0]}
    side.make_trainer()
    if part == "update":
        return lambda: side.update(work.pairs(), work.advantages)

    def agent() -> tuple[list[int], dict[str, Any]]:
        lengths, rows = side.sample()
        start = work.prompts.shape[1]
        rows = rows.cpu().numpy().astype(np.int32)
        pairs = [
            (r[:start], r[start : start + n])
            for r, n in zip(rows, lengths, strict=True)
        ]
        return lengths, side.update(pairs, work.advantages[: len(pairs)])

    return lambda: protocol.agents_in_turn(work, agent)


if __name__ == "__main__":
    protocol.serve(prepare)
