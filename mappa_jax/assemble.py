"""From a config to the parts of a run, everything checked before the first step."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mappa_jax import per_agent
from mappa_jax.config import AgentConfig, Config, ConfigError, JudgeConfig
from mappa_jax.hosts import Hosts
from mappa_jax.judges.local import SCORES, PromptTooLong, Scorer
from mappa_jax.models import hf, kernels, peft, policy, registry
from mappa_jax.models.config import ModelConfig, ModelError
from mappa_jax.models.tokenizer import Tokenizer
from mappa_jax.parallel import mesh as meshlib
from mappa_jax.sampling.choice import ChoiceScorer
from mappa_jax.sampling.engine import Engine
from mappa_jax.sampling.team import Seat
from mappa_jax.types import Message
from mappa_jax.workflows import find_workflow


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """The team's models: weights by folder, tokenizers, the mesh.

    Attributes:
      mesh: of all devices.
      team: the static half of the weights, by group.
      folders: initial weights, one per agent in the config's order.
      tokenizers: likewise.
    """

    mesh: Mesh
    team: tuple[policy.Policy, ...]
    folders: list[Path]
    tokenizers: list[Tokenizer]

    def init_weights(self, config: Config) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """(trainable, frozen), each by group; see `policy.init`."""
        dtype = jnp.dtype(config.param_dtype)
        weights = [
            policy.init(
                group,
                [self.folders[m] for m in group.members],
                *(self.mesh, config.seed, dtype),
            )
            for group in self.team
        ]
        trainable, frozen = zip(*weights, strict=True)
        return trainable, frozen


def load_models(config: Config, cache: Path, mesh: Mesh | None = None) -> Models:
    """Resolves and checks the agents' models; loads no weights.

    `mesh` is by default the config's, over all devices.

    Raises:
      ModelError: weights or tokenizer cannot be had or used.
      ConfigError: the config does not fit a model or the mesh; the key is named.
    """
    wanted = [agent.model for agent in config.agents.values()]
    by_model = {m: registry.resolve(m, cache) for m in dict.fromkeys(wanted)}
    shapes = {m: hf.read_config(folder) for m, folder in by_model.items()}
    tokenizers = {m: Tokenizer(folder) for m, folder in by_model.items()}
    for model, tokenizer in tokenizers.items():
        _check_fit(config, model, shapes[model], tokenizer)
        _check_template(config, model, tokenizer)
    mesh = mesh or meshlib.make_mesh(config.mesh)
    return Models(
        mesh,
        make_team(config, [shapes[m] for m in wanted], mesh),
        [by_model[m] for m in wanted],
        [tokenizers[m] for m in wanted],
    )


def make_team(
    config: Config, shapes: Sequence[ModelConfig], mesh: Mesh
) -> tuple[policy.Policy, ...]:
    """The agents in groups, each of one stack of weights.

    With mode="full" a group is of one architecture, and frozen agents stand apart from
    those that are trained; with mode="lora" it is of one base.

    Args:
      config: of the run.
      shapes: the agents' architectures.
      mesh: where they will live.

    Raises:
      ConfigError: a group cannot lie on the mesh.
    """
    agents = list(config.agents.values())
    groups: dict[Any, list[int]] = {}
    for i, agent in enumerate(agents):
        apart = {
            "full": (shapes[i], agent.trainable),
            "lora": (agent.model,),
            "shared": (),
        }
        groups.setdefault(apart[config.mode], []).append(i)
    betas, ranks = per_agent.kl_betas(config), per_agent.lora_ranks(config)

    def one(members: list[int]) -> policy.Policy:
        return policy.Policy(
            cfg=shapes[members[0]],
            mode=config.mode,
            members=tuple(members),
            lora=config.lora,
            dtype=jnp.dtype(config.dtype),
            remat=config.remat,
            fused=config.attention == "fused",
            mesh=mesh,
            ranks=tuple(ranks[m] for m in members),
            trainable=any(agents[m].trainable for m in members),
            reference=any(betas[m] for m in members),
            stacked_reference=config.mode == "full"
            and len({agents[m].model for m in members}) > 1,
        )

    team = tuple(map(one, groups.values()))
    for group in team:
        policy.check_mesh(group, list(config.agents))
        _check_kernels(config, group)
    return team


def _check_kernels(config: Config, group: policy.Policy) -> None:
    """Raises ConfigError if attention is to be fused and cannot be."""
    if not group.fused:
        return
    kv_dtype = config.sampler.kv_dtype
    problem = kernels.unfit(
        group.cfg,
        group.platform,
        devices=group.mesh.size,
        dtype=config.dtype,
        kv_dtype=config.dtype if kv_dtype == "compute" else kv_dtype,
        share_prefixes=config.packing.share_prefixes,
    )
    if problem:
        key, why = problem
        raise ConfigError(f"config.{key}: {why}, or set config.attention='xla'")


def _check_fit(
    config: Config, model: str, cfg: ModelConfig, tokenizer: Tokenizer
) -> None:
    if tokenizer.vocab_size > cfg.vocab_size:
        raise ModelError(
            f"{model}: the tokenizer has {tokenizer.vocab_size} ids, the model only "
            f"{cfg.vocab_size}: weights and tokenizer do not belong together"
        )
    if config.sampler.context > cfg.max_context:
        raise ConfigError(
            f"config.sampler.context={config.sampler.context} exceeds the "
            f"{cfg.max_context} of {model!r}"
        )


def _check_template(config: Config, model: str, tokenizer: Tokenizer) -> None:
    """Renders one chat of every shape that the workflow uses."""
    tool = "tool" if config.workflow.tool_role else "user"
    chat = [Message(r, "x") for r in ("system", "user", "assistant", tool)]
    try:
        tokenizer.render(chat, thinking=False)
    except Exception as e:  # jinja templates raise what they like
        raise ConfigError(
            f"config.workflow.tool_role={config.workflow.tool_role}: the chat template "
            f"of {model!r} refuses a {tool!r} turn ({e}); try the other value"
        ) from e


def seat_agents(config: Config) -> Config:
    """The config with its agents in the order in which the workflow's roles act.

    Raises:
      ConfigError: an agent is missing, unknown, or given turns it cannot take.
    """
    workflow = find_workflow(config.workflow.name)
    roles = {role.name: role for role in workflow.roles}
    if set(roles) != set(config.agents):
        raise ConfigError(
            f"config.agents: workflow {workflow.name!r} needs {sorted(roles)}, "
            f"got {sorted(config.agents)}"
        )
    for name, agent in config.agents.items():
        if agent.max_turns > roles[name].max_turns:
            raise ConfigError(
                f"config.agents.{name}.max_turns={agent.max_turns}: the workflow lets "
                f"it act {roles[name].max_turns} times at most"
            )
    ordered = {name: config.agents[name] for name in roles}
    return dataclasses.replace(config, agents=ordered)


def write_agents(
    config: Config,
    models: Models,
    weights: tuple[Sequence[Any], Sequence[Any]],
    folder: Path,
    form: Literal["merged", "peft"] = "merged",
) -> dict[str, Path]:
    """Each agent's weights with its tokenizer and how it is sampled: adapters merged,
    folders that `agents.NAME.model` takes, and `transformers`; or its adapter alone, as
    `peft` has it.

    Args:
      config: of the run.
      models: of the team.
      weights: (trainable, frozen), each by group; of this process alone.
      folder: where; a folder of an agent that is there already is replaced.
      form: "peft" is for mode="lora".

    Returns:
      By agent. With mode="shared" all have one, "team".
    """
    names, written = list(config.agents), {}
    for group, trainable, frozen in zip(models.team, *weights, strict=True):
        for place, member in enumerate(group.members):
            name = "team" if config.mode == "shared" else names[member]
            written[names[member]] = folder / name
            if place and config.mode == "shared":
                continue
            part = folder / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            agent = config.agents[names[member]]
            if form == "merged":
                params = policy.agent_params(group, trainable, frozen, place)
                hf.save_params(params, group.cfg, part)
            else:
                own = policy.agent_adapter(group, trainable, place)
                alpha = group.lora.alpha
                peft.save_adapter(own, group.cfg, part, alpha=alpha, base=agent.model)
            models.tokenizers[member].save(part)
            generation = generation_config(agent, models.tokenizers[member])
            path = part / "generation_config.json"
            path.write_text(json.dumps(generation, indent=1) + "\n")
            shutil.rmtree(folder / name, ignore_errors=True)
            part.rename(folder / name)
    return written


def generation_config(agent: AgentConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """How an agent is sampled, as generation_config.json says it.

    Its stop strings are not there: with them `generate` would refuse to work without
    being handed a tokenizer.
    """
    sampling = {
        "do_sample": True,
        "temperature": agent.temperature,
        "top_k": agent.top_k,
        "top_p": agent.top_p,
        "max_new_tokens": agent.max_new_tokens,
    }
    if agent.min_new_tokens:
        sampling["min_new_tokens"] = agent.min_new_tokens
    return sampling | tokenizer.generation_ids()


def updates_beside(config: Config, mesh: Mesh) -> bool:
    """Whether the next batch is sampled while the team is updated."""
    return bool(config.staleness) and meshlib.shared_by_threads(mesh)


def make_engine(config: Config, models: Models, hosts: Hosts) -> Engine:
    return Engine(
        models.team,
        config.sampler,
        models.mesh,
        seed=config.seed,
        stop_ids=max(len(t.stop_ids) for t in models.tokenizers),
        hosts=hosts,
        beside=updates_beside(config, models.mesh),
    )


def make_scorer(model: str, cache: Path, config: JudgeConfig) -> Scorer:
    """A local judge: `model`'s probabilities of the answers "0" to "10".

    Raises:
      ModelError: weights or tokenizer cannot be had or used.
    """
    folder = registry.resolve(model, cache)
    cfg, tokenizer = hf.read_config(folder), Tokenizer(folder)
    where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = hf.param_shapes(cfg, jnp.float32)
    placed = jax.tree.map(lambda _: where, shapes)
    params = hf.load_params(folder, cfg, placed, jnp.float32)
    answers = [[*tokenizer.encode(str(n)), tokenizer.stop_ids[0]] for n in SCORES]
    # The prompt's fields, its template, and the answers.
    longest = min(cfg.max_context, config.prompt_tokens + 2048)
    buckets = [b for b in (1024, 4096, 16384) if b < longest] + [longest]
    chances = ChoiceScorer(cfg, params, answers, buckets)

    def score(text: str) -> tuple[np.ndarray, int]:
        prompt = tokenizer.render([Message("user", text)], thinking=False)
        if len(prompt) > chances.room:
            raise PromptTooLong(f"{len(prompt)} tokens, but {chances.room} fit")
        return chances(prompt), len(prompt)

    return score


def make_seats(
    config: Config, models: Models, temperature: float | None = None
) -> dict[str, Seat]:
    """The agents by name; `temperature` replaces the config's (evaluation)."""
    return {
        name: Seat(name, i, agent, models.tokenizers[i], temperature)
        for i, (name, agent) in enumerate(config.agents.items())
    }


def enable_compilation_cache(folder: Path) -> None:
    """Keeps compiled programs on disk, so that the next start is quick."""
    jax.config.update("jax_compilation_cache_dir", str(folder.expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
