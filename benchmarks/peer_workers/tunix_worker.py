"""google-tunix: its vanilla sampler, and its GRPO loss in its RL trainer.

Sampling: `generate.sampler.Sampler`, as its VanillaRollout calls it, with prompts of
their common length and a cache of the whole length. It has no hook for logits and one
set of end ids for all rows, so the model is wrapped in one whose last logits keep the
end-of-sequence id away until a row's length and force it there. The sampler then marks
the row as done; its loop runs to the longest row.

The update: `rl.trainer.Trainer` with the loss, the model input and the settings that
`GRPOLearner` gives it (no KL, one pass, hence no old log-probabilities), gradients
accumulated over micro-batches by optax.MultiSteps as its TrainingConfig does. Prompts
are padded on the left and completions on the right, each to the longest of the batch,
as GRPOLearner pads them to its two configured lengths. Its packing of sequences needs a
model that takes segment ids: its Llama does not. Remat is of whole decoder layers; its
sampler cannot run a model with remat (flax refuses to trace it inside the loop), so in
the iteration it has a model without, which takes the trained weights over.

Its Llama rotates with a base of 1e6 whatever its config says (models/llama3/model.py
does not hand `rope_theta` on), so the driver's weights have that base.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import protocol
from flax import nnx
from tunix.generate import sampler as tunix_sampler
from tunix.rl import algo_core, trainer
from tunix.rl.grpo import grpo_learner
from tunix.sft import peft_trainer


class Prompts:
    """A "tokenizer" for prompts that are ids: a text is the number of a prompt."""

    def __init__(self, work: protocol.Work):
        self._work = work

    def encode(self, text: str) -> list[int]:
        return self._work.prompts[int(text)].tolist()

    def decode(self, ids: list[int]) -> str:
        return ""

    def bos_id(self) -> int:
        return 0  # none: it is not put in front

    def eos_id(self) -> int:
        return self._work.eos

    def pad_id(self) -> int:
        return self._work.pad


class Stopping(nnx.Module):
    """A model whose rows end at lengths of their own."""

    def __init__(self, model: nnx.Module, work: protocol.Work):
        self.model = model
        self.stops = nnx.Variable(jnp.asarray(work.stops))
        self._first = work.prompts.shape[1] - 2
        self._ids = (work.eos, work.pad)

    def __call__(self, tokens, positions, cache, attention_mask, **extra):
        scores, cache = self.model(tokens, positions, cache, attention_mask, **extra)
        eos, pad = self._ids
        end = positions[:, -1] - self._first >= self.stops[...]
        forced = jnp.where(end, 1e9, -jnp.inf).astype(scores.dtype)
        scores = scores.at[:, -1, eos].set(forced)
        return scores.at[:, -1, pad].set(-jnp.inf), cache


def load_model(work: protocol.Work, remat: bool) -> nnx.Module:
    raw = json.loads((work.folder / "config.json").read_text())
    shape = {
        "num_layers": raw["num_hidden_layers"],
        "vocab_size": raw["vocab_size"],
        "embed_dim": raw["hidden_size"],
        "hidden_dim": raw["intermediate_size"],
        "num_heads": raw["num_attention_heads"],
        "num_kv_heads": raw["num_key_value_heads"],
        "head_dim": raw["head_dim"],
        "norm_eps": raw["rms_norm_eps"],
        "rope_theta": 1_000_000,
    }
    dtype = jnp.dtype(work.dtype)
    if raw["architectures"] == ["Qwen3ForCausalLM"]:
        from tunix.models.qwen3 import model, params

        shape |= {"use_tied_embedding": raw["tie_word_embeddings"]}
        shape |= {"dtype": dtype, "param_dtype": dtype}
    else:
        from tunix.models.llama3 import model, params

        shape |= {"weight_tying": raw["tie_word_embeddings"]}
    kind = model.RematConfig.DECODER if remat else model.RematConfig.NONE
    config = model.ModelConfig(**shape, remat_config=kind)
    return params.create_model_from_safe_tensors(str(work.folder), config, dtype=dtype)


def keep_norm() -> optax.GradientTransformation:
    """Passes gradients on; its state is their norm, for the driver's check."""

    def update(grads, state, params=None):
        return grads, optax.global_norm(grads)

    return optax.GradientTransformation(lambda params: jnp.zeros(()), update)


class Side:
    def __init__(self, work: protocol.Work):
        self.work = work
        self._seed = 0

    def make_sampler(self) -> None:
        work = self.work
        model = load_model(work, remat=False)
        config, self._stopping = model.config, Stopping(model, work)
        self.sampler = tunix_sampler.Sampler(
            self._stopping,
            Prompts(work),
            tunix_sampler.CacheConfig(
                cache_size=work.prompts.shape[1] + int(work.stops.max()),
                num_layers=config.num_layers,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
            ),
        )

    def sample(self) -> list[np.ndarray]:
        """Every row's new tokens, the end-of-sequence id included."""
        work, self._seed = self.work, self._seed + 1
        output = self.sampler(
            [str(i) for i in range(len(work.prompts))],
            max_generation_steps=int(work.stops.max()),
            max_prompt_length=work.prompts.shape[1],
            temperature=1.0,
            top_p=1.0,
            top_k=None,
            seed=self._seed,
            eos_tokens=[work.eos],
        )
        return [np.append(np.asarray(row), work.eos) for row in output.tokens]

    def take_weights(self) -> None:
        """Gives the sampler what was trained."""
        nnx.update(self._stopping.model, nnx.state(self.model, nnx.Param))
        self.sampler.transformer_state = nnx.variables(self._stopping)

    def make_trainer(self, sequences: int) -> None:
        work = self.work
        self.model = load_model(work, remat=True)
        accumulate = -(-sequences // work.microbatch)
        self.trainer = trainer.Trainer(
            self.model,
            optax.chain(
                keep_norm(),
                optax.clip_by_global_norm(1.0),
                optax.adamw(work.learning_rate, weight_decay=0.0),
            ),
            peft_trainer.TrainingConfig(
                eval_every_n_steps=2**30, gradient_accumulation_steps=accumulate
            ),
            custom_checkpoint_metadata_fn=dict,
        )
        self.trainer.is_managed_externally = True  # as GRPOLearner sets it
        config = grpo_learner.GRPOConfig(beta=0.0, epsilon=0.2)
        config.temperature = 1.0  # as GRPOLearner sets it

        def loss(model, train_example, algo_config):
            return algo_core.grpo_loss_fn(
                model, train_example, algo_config, pad_id=work.pad, eos_id=work.eos
            )

        self.trainer.with_loss_fn(loss, has_aux=True)
        self.trainer.with_gen_model_input_fn(
            lambda x: {"train_example": x, "algo_config": config}
        )
        self.trainer.with_rl_metrics_to_log({"kl": np.mean, "pg_clipfrac": np.mean})

    def update(self, pairs: list[Any], advantages: np.ndarray) -> dict[str, Any]:
        work = self.work
        widths = tuple(max(map(len, part)) for part in zip(*pairs, strict=True))
        prompts, completions = protocol.padded(pairs, work.pad, widths)
        size = work.microbatch

        def example(first: int) -> Any:
            part = slice(first, first + size)
            return grpo_learner.TrainExample(
                prompt_ids=jnp.asarray(prompts[part]),
                prompt_mask=jnp.asarray(prompts[part] != work.pad),
                completion_ids=jnp.asarray(completions[part]),
                completion_mask=jnp.asarray(completions[part] != work.pad),
                advantages=jnp.asarray(advantages[part]),
                ref_per_token_logps=None,
                old_per_token_logps=None,
            )

        self.trainer.train(map(example, range(0, len(pairs), size)))
        jax.block_until_ready(nnx.state(self.model))
        state = nnx.pure(nnx.state(self.trainer.optimizer))
        norm = [x for x in jax.tree.leaves(state) if x.shape == () and x.dtype == "f4"]
        return {
            "tokens": int((completions != work.pad).sum()),
            "grad_norm": float(norm[0]),
            "padded_to": len(pairs) * sum(widths),
        }


def prepare(work: protocol.Work, part: str) -> protocol.Run:
    side = Side(work)
    if part == "sampling":
        side.make_sampler()
        return lambda: {"lengths": [len(row) for row in side.sample()]}
    if part == "update":
        side.make_trainer(len(work.lengths))
        return lambda: side.update(work.pairs(), work.advantages)
    side.make_trainer(len(work.prompts))
    side.make_sampler()

    def agent() -> tuple[list[int], dict[str, Any]]:
        side.take_weights()
        new = side.sample()
        pairs = list(zip(work.prompts, new, strict=True))
        facts = side.update(pairs, work.advantages[: len(pairs)])
        return [len(row) for row in new], facts

    return lambda: protocol.agents_in_turn(work, agent)


if __name__ == "__main__":
    protocol.serve(prepare)
