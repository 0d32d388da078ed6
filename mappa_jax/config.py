"""Every setting of a run: its name, type, default and unit.

This is the only place that holds defaults. A file under `configs/` starts from
`default_config()` (an ml_collections ConfigDict of the same tree), changes what
it wants, and absl flags may change more; `resolve` then turns the result into
the frozen `Config` below, refusing unknown keys, wrong types and values that
cannot work, with an error that names the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections


class ConfigError(ValueError):
    """A setting is unknown, mistyped or impossible; the message names the key."""


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """One agent: its weights, its sampling and its learning rate."""

    # A name of models/registry.py ("smollm2-135m-instruct"), a folder or GGUF
    # file, a Hugging Face id, or "random:<size>" for untrained weights.
    model: str = "smollm2-135m-instruct"
    max_new_tokens: int = 256  # per action, thinking included
    max_turns: int = 1
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()  # strings that end an action
    learning_rate: float = 1e-6  # peak
    thinking: bool = False  # ask the chat template for a thinking section


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The shape lattice of the sampler. Every shape here is compiled once."""

    slots: int = 16  # rows decoded together
    prefill_rows: int = 4  # prompts prefilled together
    prompt_buckets: tuple[int, ...] = (256, 512, 1024)  # padded prompt lengths
    context: int = 1280  # tokens of KV cache per slot (prompt + new)
    cache_block: int = 128  # the cache is read in blocks of so many tokens
    chunk: int = 16  # tokens decoded per dispatch


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where problems come from. See docs/data.md for the forms of a source."""

    # "reasoning_gym:<family>", "jsonl:<path>", "competition_math:<name>",
    # "tfds:<name>"; several with weights: "reasoning_gym:chain_sum@2,jsonl:a.jsonl@1"
    source: str = "reasoning_gym:gsm_symbolic"
    eval_source: str = ""  # "": the held-out split of `source`
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: str = ""  # the competition_math JSON files; "": Hugging Face
    cache_dir: str = ""  # prepared TFDS data; "": ~/.cache/mappa_jax/tfds
    train_size: int = 1024  # problems drawn from a procedural source
    eval_size: int = 64  # likewise, held out
    subset: int = 0  # draw so many training problems (numpy, without replacement)
    subset_seed: int = 42
    prompts_per_step: int = 8
    samples_per_prompt: int = 2
    seed: int = 0  # of procedural generation and of the shuffle
    on_overlap: Literal["refuse", "report"] = "refuse"  # eval problems in training


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """Who scores the actions, and what it is shown."""

    provider: Literal["rubric", "gemini"] = "rubric"
    model: str = "gemini-2.5-flash"
    base_url: str = ""  # "": the provider's own endpoint
    show_reference: Literal["never", "last", "all"] = "last"
    concurrency: int = 32
    deadline_s: float = 120.0  # per action, retries included
    max_output_tokens: int = 2048
    field_tokens: int = 4096  # longest field shown, in about-tokens of 4 characters
    max_missing: float = 0.1  # share of a batch above which it is not trained on


@dataclasses.dataclass(frozen=True)
class SandboxConfig:
    """The walls around agents' code."""

    unsafe: bool = False  # run without walls where they cannot be built
    wall_seconds: float = 10.0
    cpu_seconds: int = 5
    memory_mb: int = 512
    processes: int = 16
    file_mb: int = 16
    output_bytes: int = 65536
    workers: int = 2  # programs running at once


@dataclasses.dataclass(frozen=True)
class WorkflowConfig:
    """Which team works on a task, and how much it hands on."""

    name: Literal["mathchat"] = "mathchat"
    tool_output_tokens: int = 512  # an observation is cut in the middle to this
    handoff_tokens: int = 1024  # likewise what one agent hands to the next
    tool_role: bool = False  # render observations as a "tool" turn, else "user"


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """From scores and outcomes to one reward per action."""

    reward_scale: float = 0.1  # reward = score * reward_scale
    process_weight: float = 1.0
    outcome_weight: float = 0.0
    outcome_to: Literal["last", "all"] = "all"
    shuffle: bool = False  # a control: permute scores between an agent's actions


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    """The estimator of METHOD's step 4 and 5."""

    estimator: Literal[
        "reinforce_pp", "reinforce", "reinforce_baseline", "rloo", "grpo", "grpo_no_std"
    ] = "reinforce_pp"
    weight: Literal["token", "action"] = "token"


@dataclasses.dataclass(frozen=True)
class KLConfig:
    """The penalty for leaving the reference policy (the initial weights)."""

    beta: float = 0.01
    place: Literal["reward", "loss"] = "reward"  # k1 in the reward, k3 in the loss


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The clipped surrogate."""

    eps_low: float = 0.2
    eps_high: float = 0.2
    aggregation: Literal["token", "action", "fixed"] = "token"
    fixed_length: int = 1024  # the constant of aggregation="fixed", tokens per action
    old_logprobs: Literal["behaviour", "recompute"] = "behaviour"
    is_truncation: float = 2.0  # cap of the importance weight, old_logprobs="recompute"
    mask_truncated: bool = True


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, per agent."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_fraction: float = 0.03
    final_fraction: float = 0.1  # cosine down to this share of the peak
    total_updates: int = 0  # optimiser steps of the schedule; 0: estimated
    actions_per_update: int = 16  # a mini-batch, per agent
    rows_per_microbatch: int = 4
    epochs: int = 1  # passes over a rollout batch


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Adapters of mode="lora". The update is x + (alpha / rank) * x A B."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh's axes; -1 takes what is left."""

    agent: int = 1
    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation on held-out problems, during training and afterwards."""

    every: int = 0  # iterations between evaluations; 0: only where asked
    at_start: bool = False
    at_end: bool = False
    samples: int = 4  # per problem
    temperature: float = 0.6
    bootstrap: int = 2000  # resamples of the 95% interval


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved and what is kept."""

    every: int = 1  # iterations
    keep: int = 2
    best_metric: str = ""  # keep the best by this metric too, e.g. "eval/avg"


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. `steps` counts iterations: rollouts, judging and update."""

    agents: Mapping[str, AgentConfig]
    seed: int = 0
    steps: int = 4
    mode: Literal["full", "lora"] = "full"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the compute
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    train_buckets: tuple[int, ...] = (256, 512, 1024)  # padded row lengths
    remat: bool = True  # recompute activations layer by layer in the backward pass
    sampler: SamplerConfig = SamplerConfig()
    data: DataConfig = DataConfig()
    judge: JudgeConfig = JudgeConfig()
    sandbox: SandboxConfig = SandboxConfig()
    workflow: WorkflowConfig = WorkflowConfig()
    reward: RewardConfig = RewardConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    kl: KLConfig = KLConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig = LoRAConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
