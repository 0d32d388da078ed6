"""trl's GRPOTrainer: one optimiser step on sequences that are given.

A subclass hands out the batch where GRPOTrainer would generate and score one; all the
rest is `train()`: its split into micro-batches, its loss (loss_type="grpo": means over
sequences, no KL), gradient checkpointing, clipping, AdamW. It pads prompts on the left
and completions on the right, to the longest of the batch. Seconds are from its
callbacks: from the beginning of the step to its end, without the set-up of `train()`.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import protocol
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer


class Clock(TrainerCallback):
    """Seconds of the last step."""

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self._start


class GivenBatch(GRPOTrainer):
    """Trains on `given` instead of on what it would sample."""

    given: dict[str, torch.Tensor]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
        return dict(self.given)


def tokenizer(work: protocol.Work) -> PreTrainedTokenizerFast:
    """One that GRPOTrainer asks only for its special ids."""
    vocab = {f"<{i}>": i for i in range(max(work.eos, work.pad) + 1)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="<0>")),
        eos_token=f"<{work.eos}>",
        pad_token=f"<{work.pad}>",
        padding_side="left",
    )


def batch_of(work: protocol.Work) -> dict[str, torch.Tensor]:
    pairs = work.pairs()
    widths = tuple(max(map(len, part)) for part in zip(*pairs, strict=True))
    ids = [torch.as_tensor(x).long() for x in protocol.padded(pairs, work.pad, widths)]
    masks = [(x != work.pad).long() for x in ids]
    return {
        "prompt_ids": ids[0],
        "prompt_mask": masks[0],
        "completion_ids": ids[1],
        "completion_mask": masks[1],
        "advantages": torch.as_tensor(work.advantages[: len(pairs)]),
        "num_items_in_batch": masks[1].sum(),
    }


def make_trainer(work: protocol.Work, folder: str) -> GivenBatch:
    model = AutoModelForCausalLM.from_pretrained(
        work.folder, dtype=getattr(torch, work.dtype), attn_implementation="sdpa"
    )
    steps = len(work.lengths) // work.microbatch
    args = GRPOConfig(
        folder,
        use_cpu=work.device == "cpu",
        bf16=work.dtype == "bfloat16",
        per_device_train_batch_size=work.microbatch,
        gradient_accumulation_steps=steps,
        num_generations=work.microbatch,
        max_completion_length=int((work.lengths - work.starts).max()),
        learning_rate=work.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        beta=0.0,
        loss_type="grpo",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        max_steps=1,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = [{"prompt": f"<{i}>"} for i in range(len(work.lengths))]
    return GivenBatch(
        model=model,
        reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(work),
    )


def prepare(work: protocol.Work, part: str) -> protocol.Run:
    if part != "update":
        raise ValueError(
            f"trl samples with transformers' generate: no {part} of its own"
        )
    trainer, clock = make_trainer(work, tempfile.mkdtemp()), Clock()
    trainer.add_callback(clock)

    def update() -> dict[str, Any]:
        trainer.given = batch_of(work)
        trainer.train()
        logs = [log for log in trainer.state.log_history if "grad_norm" in log]
        return {
            "seconds": clock.seconds,
            "tokens": int(trainer.given["completion_mask"].sum()),
            "grad_norm": float(logs[-1]["grad_norm"]),
            "padded_to": sum(
                trainer.given[k].numel() for k in trainer.given if "ids" in k
            ),
        }

    return update


if __name__ == "__main__":
    protocol.serve(prepare)
