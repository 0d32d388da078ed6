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
import functools
import itertools
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
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
    thinking: bool = False  # ask the chat template for a thinking section
    trainable: bool = True  # False: it acts with its initial weights throughout
    learning_rate: float = 1e-6  # peak
    # This agent's own; -1: as in `optimizer`, in `kl` and in `lora`.
    warmup_fraction: float = -1.0
    final_fraction: float = -1.0
    kl_beta: float = -1.0
    lora_rank: int = -1


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The shape lattice of the sampler. Every shape here is compiled once.

    Counts of rows are of one slice of `mesh.agent`; `prefill_rows` is rounded up to a
    multiple of the devices that rows are spread over.
    """

    slots: int = 16  # rows decoded together
    prefill_rows: int = 4  # prompts prefilled together
    prompt_buckets: tuple[int, ...] = (256, 512, 1024)  # padded prompt lengths
    # Likewise of what follows on tokens that are in the KV cache. With them an agent's
    # cache is kept between its turns, and a prompt longer than the last of
    # `prompt_buckets` comes into it piece by piece; without, neither.
    extend_buckets: tuple[int, ...] = ()
    context: int = 1280  # tokens of KV cache per slot (prompt + new)
    cache_block: int = 128  # the cache is read in blocks of so many tokens
    chunk: int = 16  # tokens decoded per dispatch
    # Fewer rows than `slots` that may be decoded together, such as (4, 8): when no more
    # are left, those that are move together. Products of another size may round
    # otherwise, so a sample may then depend on when its neighbours end.
    widths: tuple[int, ...] = ()
    # How decoding and prefills read the weights: as they are, or rounded to int8 once
    # before every rollout. What is sampled from then differs a little from what is
    # trained; objective.old_logprobs="recompute" weighs that.
    weights: Literal["compute", "int8"] = "compute"
    # Of the KV cache; "compute" is config.dtype.
    kv_dtype: Literal["compute", "bfloat16", "float8_e4m3fn", "int8"] = "compute"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where problems come from. See docs/data.md for the forms of a source."""

    # "reasoning_gym:<family>", "jsonl:<path>", "competition_math:<name>",
    # "tfds:<name>", "tabular:<name>", "dsbench:<path>"; several with weights:
    # "reasoning_gym:chain_sum@2,jsonl:a.jsonl@1"
    source: str = "reasoning_gym:gsm_symbolic"
    eval_source: str = ""  # "": the held-out split of `source`
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: str = ""  # competition_math's JSON files ("": Hugging Face), DSBench's CSVs
    cache_dir: str = ""  # prepared data; "": folders of ~/.cache/mappa_jax
    train_size: int = 1024  # problems drawn from a procedural source
    eval_size: int = 64  # likewise, held out
    subset: int = 0  # draw so many training problems (numpy, without replacement)
    subset_seed: int = 42
    prompts_per_step: int = 8
    samples_per_prompt: int = 2
    stratify: bool = False  # every batch has the pool's proportions of kinds of task
    seed: int = 0  # of procedural generation and of the shuffle
    on_overlap: Literal["refuse", "report"] = "refuse"  # eval problems in training
    grade_seconds: float = 5.0  # of processor time to compare one answer


@dataclasses.dataclass(frozen=True)
class BudgetConfig:
    """Caps on what the judge may cost in the whole run; 0: none."""

    usd: float = 0.0
    tokens: int = 0
    calls: int = 0


@dataclasses.dataclass(frozen=True)
class MemberConfig:
    """One judge of an ensemble; what is not said here is as in `judge`, but for the
    address."""

    provider: str
    model: str = ""
    base_url: str = ""


def parse_members(text: str) -> dict[str, MemberConfig]:
    """The judges of `judge.members`, by what stands there.

    Raises:
      ConfigError: one is written otherwise than `provider[:model][@url]`, or twice.
    """
    members: dict[str, MemberConfig] = {}
    for name in filter(None, map(str.strip, text.split(","))):
        who, _, url = name.partition("@")
        provider, _, model = who.partition(":")
        if name in members:
            raise ConfigError(f"config.judge.members: {name!r} stands there twice")
        members[name] = MemberConfig(provider.strip(), model.strip(), url.strip())
    return members


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """Faults put into a training batch's verdicts, for experiments; judges/controls.py.

    More controls are in `reward`: shuffle, outcome_only, outcome_to.
    """

    constant: float = -1.0  # every action's score; -1: as judged
    # Points added by agent or kind of task: "solver:-1,chain_sum:0.5".
    bias: str = ""
    noise: float = 0.0  # standard deviation of what is added to a score, in points
    missing: float = 0.0  # this share of each agent's verdicts is taken away ...
    missing_where: Literal["random", "long"] = "random"  # ... from its longest actions


def parse_bias(text: str) -> dict[str, float]:
    """Points by agent or kind of task, of `judge.control.bias`.

    Raises:
      ConfigError: a part is not name:points, or stands there twice.
    """
    found: dict[str, float] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, points = part.rpartition(":")
        try:
            value = float(points)
        except ValueError:
            value = float("nan")
        if not name or name in found or not abs(value) < float("inf"):
            raise ConfigError(
                f"config.judge.control.bias: {part!r} is not name:points, once each"
            )
        found[name] = value
    return found


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """Who scores the actions, what it is shown, and what it may cost."""

    # "rubric", "gemini", "openai", "local" or "ensemble" (judges/registry.py).
    provider: str = "rubric"
    model: str = "gemini-2.5-flash"
    base_url: str = ""  # "": the provider's own endpoint
    vertex_project: str = ""  # gemini: through Vertex AI, in this Google Cloud project
    vertex_location: str = "global"
    thinking_tokens: int = -1  # at most so many; 0: none, -1: as the model sees fit
    # openai: the server has JSON schemas ("auto": try), or writes free text.
    form: Literal["auto", "schema", "fenced"] = "auto"
    # ensemble: provider[:model][@url], separated by commas:
    # "gemini:gemini-2.5-pro, openai:qwen3@http://localhost:8000/v1"
    members: str = ""
    combine: Literal["mean", "median"] = "mean"  # ensemble: of the members' scores
    show_reference: Literal["never", "last", "all"] = "last"
    # datascience: what caps the last agent's score, the gap between a baseline and a
    # reference model, or the paper's tables.
    rubric: Literal["balanced", "paper"] = "balanced"
    prompts: str = ""  # a folder with templates of your own; "": the package's
    field_tokens: int = 4096  # longest field shown, in about-tokens of 4 characters
    prompt_tokens: int = 16384  # likewise all fields together
    max_output_tokens: int = 8192  # per answer, thinking included
    concurrency: int = 32  # requests at a time; of an ensemble, for each member
    rpm: int = 0  # requests a minute, likewise; 0: no limit
    tpm: int = 0  # tokens a minute, answers included, likewise; 0: no limit
    deadline_s: float = 120.0  # per action, retries and pauses included
    outage_s: float = 900.0  # a provider that is down is waited for so long
    hedge: float = 0.0  # this share of calls, the slowest, is asked twice; 0: none
    max_missing: float = 0.1  # share of a batch above which it is not trained on
    # Share of actions that are judged twice, for agreement; "rubric" and "local" say
    # the same each time and are asked once.
    duplicates: float = 0.05
    anchors: int = 0  # so many of the first iteration's actions are judged again ...
    anchor_every: int = 10  # ... every so many iterations, to see the judge drift
    debias: bool = False  # take an agent's mean offset per kind of task off its rewards
    control: ControlConfig = ControlConfig()
    forecast: int = 2  # trajectories tried before a paid run, to say what it will cost
    prices: str = ""  # a price table of your own; "": the package's
    budget: BudgetConfig = BudgetConfig()
    replay: str = ""  # a judge_ledger.jsonl: its verdicts again, without a network


@dataclasses.dataclass(frozen=True)
class SandboxConfig:
    """The walls around agents' code."""

    backend: Literal["bubblewrap", "sandbox_fusion", "unsafe_subprocess"] = "bubblewrap"
    base_url: str = ""  # sandbox_fusion: the server, "http://localhost:8080"
    unsafe: bool = False  # run without walls where they cannot be built
    preload: tuple[str, ...] = ("numpy",)  # packages imported once, before the forks
    wall_seconds: float = 10.0
    cpu_seconds: int = 5  # of all processes of a program together
    memory_mb: int = 512  # likewise, beyond what the preloaded packages take
    processes: int = 16  # threads count too
    file_mb: int = 16  # a single file; the size of /tmp and of /dev/shm
    disk_mb: int = 64  # of an episode's work folder, which lies in memory
    files: int = 4096  # likewise, how many
    output_bytes: int = 65536
    workers: int = 2  # programs running at once


@dataclasses.dataclass(frozen=True)
class WorkflowConfig:
    """Which team works on a task, and how much it hands on."""

    # One of workflows.WORKFLOWS, or where one of your own is: my_team.py:TEAM.
    name: str = "mathchat"
    tool_output_tokens: int = 512  # an observation is cut in the middle to this
    handoff_tokens: int = 1024  # likewise what one agent hands to the next
    # Tell every agent its part; a team that launch/sft.py has taught may do without.
    instructions: bool = True
    example: bool = False  # show every agent a worked example; small models need it
    tool_role: bool = True  # render observations as a "tool" turn, else "user"


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """From scores and outcomes to one reward per action."""

    reward_scale: float = 0.1  # reward = score * reward_scale
    process_weight: float = 1.0
    outcome_weight: float = 0.0
    outcome_to: Literal["last", "all"] = "all"
    outcome_only: bool = False  # weights 0 and 1, to all, whatever stands above
    # An action's score gets so much of the score of the same agent's next action in the
    # trajectory, and so on; 0: every action stands for itself.
    turn_discount: float = 0.0
    shuffle: bool = False  # a control: permute scores between an agent's actions


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    """The estimator of METHOD's step 4 and 5."""

    estimator: Literal[
        "reinforce_pp",
        "reinforce",
        "reinforce_baseline",
        "rloo",
        "grpo",
        "grpo_no_std",
        "agent_baseline",
        "task_type_baseline",
    ] = "reinforce_pp"
    weight: Literal["token", "action"] = "token"


@dataclasses.dataclass(frozen=True)
class KLConfig:
    """The penalty for leaving the reference policy (the initial weights)."""

    beta: float = 0.01
    place: Literal["reward", "loss"] = "reward"  # k1 in the reward, k3 in the loss
    # Nats per token. 0: beta is constant; else each agent's beta follows its own KL:
    # after an iteration it is multiplied by 1 + rate * clip(KL / target - 1, +-0.2).
    target: float = 0.0
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The clipped surrogate."""

    # "likelihood" is launch/sft.py's: -log pi of every token, whatever the advantage.
    loss: Literal["surrogate", "likelihood"] = "surrogate"
    # "sequence": all tokens of an action have the ratio exp(mean log ratio), GSPO's.
    # Its bounds are far narrower: the paper has eps_low=3e-4 and eps_high=4e-4.
    ratio: Literal["token", "sequence"] = "token"
    eps_low: float = 0.2
    eps_high: float = 0.2
    aggregation: Literal["token", "action", "fixed"] = "token"
    fixed_length: int = 1024  # the constant of aggregation="fixed", tokens per action
    old_logprobs: Literal["behaviour", "recompute"] = "behaviour"
    is_truncation: float = 2.0  # cap of the importance weight, old_logprobs="recompute"
    mask_truncated: bool = True


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser, which keeps every agent's state apart."""

    # "adafactor" keeps second moments by rows and columns (arXiv 1804.04235) and no
    # first ones: beta1 and weight_decay are then not used.
    name: Literal["adamw", "adafactor"] = "adamw"
    moments: Literal["float32", "bfloat16"] = "float32"  # as kept between updates
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    warmup_fraction: float = 0.03
    final_fraction: float = 0.1  # cosine down to this share of the peak
    # Optimiser steps of the schedule; 0: estimated from `steps`, so a run that is
    # meant to be prolonged later should set it.
    total_updates: int = 0
    actions_per_update: int = 16  # a mini-batch, per agent
    epochs: int = 1  # passes over a rollout batch


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """The fixed shape into which actions are packed for the update."""

    row_tokens: int = 1280  # of a row; the longest action must fit
    row_action_tokens: int = 512  # of them sampled
    rows: int = 4  # of a micro-batch
    share_prefixes: bool = True  # compute what an agent's actions start alike once


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Adapters of mode="lora". The update is x + (alpha / rank) * x A B."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh's axes; -1 takes what is left.

    `agent` puts agents on different devices; with mode="shared", which has one set of
    weights, it spreads rows as `data` does.
    """

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
    samples: int = 4  # per problem: the k of avg@k
    pass_k: int = 0  # the k of pass@k, unbiased for k below `samples`; 0: `samples`
    temperature: float = 0.6
    bootstrap: int = 2000  # resamples of the 95% interval


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved and what is kept."""

    every: int = 1  # iterations
    keep: int = 2
    # Keep the checkpoint where this was largest too, e.g. "eval/chain_sum/avg".
    best_metric: str = ""


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. `steps` counts iterations: rollouts, judging and update."""

    agents: Mapping[str, AgentConfig]
    seed: int = 0
    steps: int = 4
    # 1: the next batch is sampled while the last one's verdicts are awaited and, in
    # one process, while the team is updated, with the weights before that update (a
    # resumed run then samples with those after it).
    staleness: int = 0
    # Where iterations are shown, besides metrics.jsonl.
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    # Every agent its own weights; adapters of its own over a base that all share; or
    # one set of weights that plays every role.
    mode: Literal["full", "lora", "shared"] = "full"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the compute
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    # What the backward pass keeps of a layer: everything; its input alone; its input
    # and the results of its matrix products with weights; its input, in the host's
    # memory.
    remat: Literal["none", "full", "projections", "offload"] = "full"
    # By XLA's own operations; or by the device's fused kernels (models/kernels.py), on
    # one GPU or TPU so far.
    attention: Literal["xla", "fused"] = "xla"
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
    packing: PackingConfig = PackingConfig()
    lora: LoRAConfig = LoRAConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flat_items(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of `to_dict`'s tree by flat key: "sampler.slots", 8."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def default_config(**agents: AgentConfig) -> ml_collections.ConfigDict:
    """The whole tree with its defaults, locked, for a file under configs/."""
    tree = _unfrozen(Config(agents=agents))
    config = ml_collections.ConfigDict(tree, convert_dict=True)
    return config.lock()


def _unfrozen(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {f.name: _unfrozen(getattr(value, f.name)) for f in fields}
    if isinstance(value, Mapping):
        return {k: _unfrozen(v) for k, v in value.items()}
    return value


def resolve(config: Mapping[str, Any]) -> Config:
    """The frozen, checked `Config` of a ConfigDict (or of config.json).

    Raises:
      ConfigError: naming the key and the remedy.
    """
    if isinstance(config, ml_collections.ConfigDict):
        config = config.to_dict()
    resolved = _build(Config, config, "")
    _check(resolved)
    return resolved


def _build(kind: type, given: Any, path: str) -> Any:
    if not isinstance(given, Mapping):
        raise ConfigError(f"config.{path.rstrip('.')}: expected a group of keys")
    hints = typing.get_type_hints(kind)
    for key in given:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"; did you mean {path}{close[0]}?" if close else ""
            raise ConfigError(f"config.{path}{key}: no such key{hint}")
    values = {k: _convert(hints[k], v, f"{path}{k}") for k, v in given.items()}
    try:
        return kind(**values)
    except TypeError as e:  # a field without default
        raise ConfigError(f"config.{path}: {e}") from e


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, path + ".")
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"config.{path}: {value!r} is not one of {list(args)}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (tuple, list)):
            raise ConfigError(f"config.{path}: expected a tuple, got {value!r}")
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is Mapping or isinstance(hint, types.GenericAlias):
        if not isinstance(value, Mapping):
            raise ConfigError(f"config.{path}: expected a group of keys, got {value!r}")
        if args[1] is Any:
            return dict(value)
        return {k: _convert(args[1], v, f"{path}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(
            f"config.{path}: expected {hint.__name__}, got {value!r} "
            f"({type(value).__name__})"
        )
    return value


INFINITY = float("inf")
# Ranges of numbers that nothing else restricts, both ends included.
BOUNDS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "data.seed": (0, 2**31 - 1),
    "data.subset": (0, INFINITY),
    "data.subset_seed": (0, 2**31 - 1),
    "data.train_size": (1, INFINITY),
    "data.eval_size": (0, INFINITY),
    "data.grade_seconds": (1e-3, INFINITY),
    "eval.every": (0, INFINITY),
    "eval.temperature": (0, INFINITY),
    "eval.bootstrap": (1, INFINITY),
    "objective.eps_low": (0, 1),
    "objective.eps_high": (0, INFINITY),
    "objective.fixed_length": (1, INFINITY),
    "objective.is_truncation": (0, INFINITY),
    "optimizer.beta1": (0, 0.999999),
    "optimizer.beta2": (0, 0.999999),
    "optimizer.eps": (0, INFINITY),
    "optimizer.weight_decay": (0, INFINITY),
    "optimizer.max_grad_norm": (1e-12, INFINITY),
    "optimizer.warmup_fraction": (0, 1),
    "optimizer.final_fraction": (0, 1),
    "optimizer.total_updates": (0, INFINITY),
    "kl.rate": (0, 5),
    "sandbox.wall_seconds": (1e-3, INFINITY),
    "sandbox.cpu_seconds": (1, INFINITY),
    "sandbox.memory_mb": (16, INFINITY),
    "sandbox.processes": (1, INFINITY),
    "sandbox.file_mb": (1, INFINITY),
    "sandbox.disk_mb": (1, INFINITY),
    "sandbox.files": (16, INFINITY),
    "sandbox.output_bytes": (1, INFINITY),
    "workflow.tool_output_tokens": (1, INFINITY),
    "workflow.handoff_tokens": (1, INFINITY),
    "lora.alpha": (1e-12, INFINITY),
}


def _check(config: Config) -> None:
    """Refuses values that cannot work together."""

    def refuse(key: str, why: str) -> typing.NoReturn:
        raise ConfigError(f"config.{key}: {why}")

    def positive(key: str, value: float) -> None:
        if not value > 0:
            refuse(key, f"must be positive, got {value}")

    if not config.agents:
        refuse("agents", "the team needs at least one agent")
    for name in config.agents:
        _check_name(name, refuse)
    for key, (low, high) in BOUNDS.items():
        value = functools.reduce(getattr, key.split("."), config)
        if not low <= value <= high:
            refuse(key, f"must be in {low}..{high}, got {value}")
    positive("steps", config.steps)
    context = config.sampler.context
    for name, agent in config.agents.items():
        key = f"agents.{name}"
        positive(f"{key}.max_new_tokens", agent.max_new_tokens)
        positive(f"{key}.max_turns", agent.max_turns)
        if agent.max_new_tokens >= context:
            refuse(f"{key}.max_new_tokens", f"must be below sampler.context={context}")
        if agent.min_new_tokens > agent.max_new_tokens:
            refuse(f"{key}.min_new_tokens", "exceeds max_new_tokens")
        positive(f"{key}.temperature", agent.temperature)
        if not 0 <= agent.learning_rate < INFINITY:
            refuse(f"{key}.learning_rate", f"got {agent.learning_rate}")
        if not all(agent.stop):
            refuse(f"{key}.stop", "an empty string would end every action at once")
        if not 0 < agent.top_p <= 1:
            refuse(f"{key}.top_p", f"must be in (0, 1], got {agent.top_p}")
        if agent.top_k < 0:
            refuse(f"{key}.top_k", "must not be negative; 0 is off")
        cut = {"top_k": 0, "top_p": 1.0, "min_new_tokens": 0}
        changed = [k for k, off in cut.items() if getattr(agent, k) != off]
        if changed and config.objective.old_logprobs == "behaviour":
            refuse(
                f"{key}.{changed[0]}",
                "the trainer's log-probabilities are of the whole distribution, so "
                "the ratio would be biased; set objective.old_logprobs='recompute'",
            )
    for key in ("slots", "prefill_rows", "chunk", "cache_block"):
        positive(f"sampler.{key}", getattr(config.sampler, key))
    for key in ("prompts_per_step", "samples_per_prompt"):
        positive(f"data.{key}", getattr(config.data, key))
    positive("optimizer.actions_per_update", config.optimizer.actions_per_update)
    positive("optimizer.epochs", config.optimizer.epochs)
    if not 0 <= config.reward.turn_discount <= 1:
        refuse("reward.turn_discount", "must be in 0..1")
    if config.kl.target < 0 or config.kl.beta < 0:
        refuse("kl", "beta and target must not be negative")
    betas = [agent.kl_beta for agent in config.agents.values()]
    if config.kl.target and not config.kl.beta and max(betas) <= 0:
        refuse("kl.target", "needs a kl.beta above 0 to start from")
    positive("packing.rows", config.packing.rows)
    if config.staleness not in (0, 1):
        refuse("staleness", "must be 0 or 1")
    if config.objective.old_logprobs != "recompute":
        remedy = "needs objective.old_logprobs='recompute', for its importance weights"
        if config.staleness:
            refuse("staleness", remedy)
        if config.sampler.weights == "int8":
            refuse("sampler.weights", f"'int8' {remedy}")
    _check_judge(config.judge, refuse)
    positive("sandbox.workers", config.sandbox.workers)
    if config.sandbox.backend == "sandbox_fusion" and not config.sandbox.base_url:
        refuse("sandbox.base_url", "the address of the server, for sandbox_fusion")
    longest = max(agent.max_new_tokens for agent in config.agents.values())
    if config.packing.row_action_tokens < longest:
        refuse("packing.row_action_tokens", f"must hold an action of {longest} tokens")
    if config.packing.row_tokens < context:
        refuse("packing.row_tokens", f"must be at least sampler.context={context}")
    _check_sampler(config.sampler, refuse)
    _check_weights(config, refuse)
    if config.mode == "lora":
        positive("lora.rank", config.lora.rank)
        if not config.lora.targets:
            refuse("lora.targets", "name at least one projection")
    positive("checkpoint.every", config.checkpoint.every)
    positive("checkpoint.keep", config.checkpoint.keep)
    positive("eval.samples", config.eval.samples)
    if not 0 <= config.eval.pass_k <= config.eval.samples:
        refuse("eval.pass_k", f"must be in 0..eval.samples={config.eval.samples}")


def _check_sampler(sampler: SamplerConfig, refuse: Callable[[str, str], Any]) -> None:
    """Lengths that must go together."""
    if not sampler.prompt_buckets:
        refuse("sampler.prompt_buckets", "name at least one length")
    for key in ("prompt_buckets", "extend_buckets"):
        buckets = getattr(sampler, key)
        if any(b <= a for a, b in itertools.pairwise((0, *buckets))):
            refuse(f"sampler.{key}", f"must increase from 1, got {buckets}")
        if buckets and sampler.context < buckets[-1]:
            refuse("sampler.context", f"must be at least the last of sampler.{key}")
    bounds = (0, *sampler.widths, sampler.slots)
    if any(b <= a for a, b in itertools.pairwise(bounds)):
        refuse(
            "sampler.widths",
            f"must increase from 1 to below sampler.slots={sampler.slots}, got "
            f"{sampler.widths}",
        )
    if sampler.context % sampler.cache_block:
        refuse("sampler.context", "must be a multiple of sampler.cache_block")


def _check_name(name: str, refuse: Callable[[str, str], Any]) -> None:
    """An agent's name is that of a folder beside others (mappa_jax/export.py), and
    stands beside the team's own where a client asks for one."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        refuse(
            "agents",
            f"an agent cannot be called {name!r}: use letters, digits, _ and - only",
        )
    if name == "team" or name.startswith("base"):
        refuse(
            "agents",
            f"an agent cannot be called {name!r}: 'team' is the whole team where it is "
            "served, and what starts with 'base' is a base where it is exported; "
            "choose another name",
        )


# Of AgentConfig: what a set of weights can have but once.
OF_WEIGHTS = (
    *("model", "trainable", "learning_rate", "warmup_fraction", "final_fraction"),
    "lora_rank",
)


def _check_weights(config: Config, refuse: Callable[[str, str], Any]) -> None:
    """Whose weights are trained, and how."""
    for name, agent in config.agents.items():
        for key in ("warmup_fraction", "final_fraction"):
            value = getattr(agent, key)
            if value != -1 and not 0 <= value <= 1:
                refuse(f"agents.{name}.{key}", f"must be in 0..1, or -1, got {value}")
        if agent.kl_beta != -1 and not 0 <= agent.kl_beta < INFINITY:
            refuse(f"agents.{name}.kl_beta", "must not be negative, or -1")
        if agent.lora_rank != -1 and agent.lora_rank < 1:
            refuse(f"agents.{name}.lora_rank", "must be positive, or -1")
        if agent.lora_rank != -1 and config.mode != "lora":
            refuse(f"agents.{name}.lora_rank", 'is for mode="lora"')
    if config.mode != "shared":
        return
    first, *others = config.agents
    for key in OF_WEIGHTS:
        mine = getattr(config.agents[first], key)
        for name in others:
            if getattr(config.agents[name], key) != mine:
                refuse(
                    f"agents.{name}.{key}",
                    f'with mode="shared" all agents are one policy: make it {mine!r}, '
                    f"as {first!r} has it",
                )


def _check_judge(judge: JudgeConfig, refuse: Callable[[str, str], Any]) -> None:
    from mappa_jax.judges.registry import NAMES

    if judge.provider not in NAMES and ":" not in judge.provider:
        refuse(
            "judge.provider",
            f"{judge.provider!r} is not one of {[*NAMES]}, nor module:NAME or "
            "folder/file.py:NAME of your own",
        )
    members = parse_members(judge.members)
    if (judge.provider == "ensemble") != bool(members):
        refuse(
            "judge.members",
            "name the judges of judge.provider='ensemble' here, and only with it: "
            f"provider[:model][@url], separated by commas; got {judge.members!r}",
        )
    one = [name for name in NAMES if name != "ensemble"]
    for name, member in members.items():
        if member.provider not in one:
            refuse("judge.members", f"{name!r} does not begin with one of {one}")
    keys = ("concurrency", "field_tokens", "prompt_tokens", "max_output_tokens")
    for key in (*keys, "deadline_s", "outage_s", "anchor_every"):
        value = getattr(judge, key)
        if not 0 < value < INFINITY:
            refuse(f"judge.{key}", f"must be positive and finite, got {value}")
    if judge.thinking_tokens < -1:
        refuse("judge.thinking_tokens", "must not be below -1: as the model sees fit")
    if judge.thinking_tokens >= judge.max_output_tokens:
        refuse(
            "judge.thinking_tokens",
            f"leaves nothing of judge.max_output_tokens={judge.max_output_tokens} for "
            "the answer; raise that or lower this",
        )
    control = judge.control
    if control.constant != -1 and not 0 <= control.constant <= 10:
        refuse("judge.control.constant", "must be in 0..10, or -1")
    if not 0 <= control.noise < INFINITY:
        refuse("judge.control.noise", "must not be negative")
    if not 0 <= control.missing <= judge.max_missing:
        refuse(
            "judge.control.missing",
            f"must be in 0..judge.max_missing={judge.max_missing}; above that a batch "
            "is not trained on",
        )
    parse_bias(control.bias)
    for key in ("duplicates", "max_missing"):
        if not 0 <= getattr(judge, key) <= 1:
            refuse(f"judge.{key}", "must be in 0..1")
    for key in ("anchors", "forecast"):
        if getattr(judge, key) < 0:
            refuse(f"judge.{key}", "must not be negative; 0 is off")
    for key in ("rpm", "tpm"):
        if getattr(judge, key) < 0:
            refuse(f"judge.{key}", "must not be negative; 0 is no limit")
    if not 0 <= judge.hedge <= 0.5:
        refuse("judge.hedge", "must be in 0..0.5")
    for key, cap in dataclasses.asdict(judge.budget).items():
        if not 0 <= cap < INFINITY:
            refuse(f"judge.budget.{key}", f"must be finite, got {cap}; 0 is no cap")
    if judge.replay and judge.provider == "rubric":
        refuse(
            "judge.replay",
            "is for a judge that was paid for; the rubric always says the same: set "
            "this to ''",
        )


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with values at flat keys, "mesh.fsdp"."""
    for key, value in changes.items():
        group, _, field = key.rpartition(".")
        if group:
            inner = dataclasses.replace(getattr(config, group), **{field: value})
            config = dataclasses.replace(config, **{group: inner})
        else:
            config = dataclasses.replace(config, **{field: value})
    return config
