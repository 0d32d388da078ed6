"""From a config to the parts of a run, everything checked before the first step."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mappa_jax.config import Config, ConfigError, JudgeConfig
from mappa_jax.judges.local import SCORES, PromptTooLong, Scorer
from mappa_jax.models import hf, policy, registry
from mappa_jax.models.config import ModelConfig, ModelError
from mappa_jax.models.tokenizer import Tokenizer
from mappa_jax.parallel import mesh as meshlib
from mappa_jax.sampling.choice import ChoiceScorer
from mappa_jax.sampling.engine import Engine
from mappa_jax.sampling.team import Seat
from mappa_jax.types import Message
from mappa_jax.workflows import WORKFLOWS


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """The team's models: weights by folder, one tokenizer, the mesh.

    Attributes:
      mesh: of all devices.
      policy: the static half of the weights.
      folders: initial weights, one per agent in the config's order.
      tokenizer: shared by the team.
    """

    mesh: Mesh
    policy: policy.Policy
    folders: list[Path]
    tokenizer: Tokenizer

    def init_weights(self, config: Config) -> tuple[Any, Any]:
        """(trainable, frozen), see `policy.init`."""
        dtype = jnp.dtype(config.param_dtype)
        return policy.init(self.policy, self.folders, self.mesh, config.seed, dtype)


def load_models(config: Config, cache: Path) -> Models:
    """Resolves and checks the agents' models; loads no weights.

    Raises:
      ModelError: weights or tokenizer cannot be had or used.
      ConfigError: the agents cannot form one stack, or the config does not fit the
        model; the key is named.
    """
    names = list(config.agents)
    wanted = [config.agents[n].model for n in names]
    by_model = {m: registry.resolve(m, cache) for m in dict.fromkeys(wanted)}
    folders = [by_model[m] for m in wanted]
    shapes = {m: hf.read_config(folder) for m, folder in by_model.items()}
    tokenizers = {m: Tokenizer(folder) for m, folder in by_model.items()}
    first = wanted[0]
    for name, model in zip(names, wanted, strict=True):
        key = f"config.agents.{name}.model={model!r}"
        if tokenizers[model].fingerprint != tokenizers[first].fingerprint:
            raise ConfigError(
                f"{key}: its vocabulary differs from {names[0]}'s ({first!r}); agents "
                "of one team must share a tokenizer"
            )
        if tokenizers[model].chat != tokenizers[first].chat:
            raise ConfigError(
                f"{key}: its chat template or its stop tokens differ from "
                f"{names[0]}'s ({first!r}); agents of one team must share them"
            )
        if shapes[model] != shapes[first]:
            raise ConfigError(
                f"{key}: its architecture differs from {names[0]}'s ({first!r}); "
                "agents of one team must share one"
            )
        if config.mode == "lora" and model != first:
            raise ConfigError(f"{key}: mode='lora' needs one base; set it to {first!r}")
    _check_fit(config, shapes[first], tokenizers[first])
    _check_template(config, tokenizers[first])
    team = policy.Policy(
        cfg=shapes[first],
        mode=config.mode,
        agents=len(names),
        lora=config.lora,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        stacked_reference=len(by_model) > 1,
    )
    return Models(meshlib.make_mesh(config.mesh), team, folders, tokenizers[first])


def _check_fit(config: Config, cfg: ModelConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > cfg.vocab_size:
        raise ModelError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only "
            f"{cfg.vocab_size}: weights and tokenizer do not belong together"
        )
    if config.sampler.context > cfg.max_context:
        raise ConfigError(
            f"config.sampler.context={config.sampler.context} exceeds the model's "
            f"{cfg.max_context}"
        )


def _check_template(config: Config, tokenizer: Tokenizer) -> None:
    """Renders one chat of every shape that the workflow uses."""
    tool = "tool" if config.workflow.tool_role else "user"
    chat = [Message(r, "x") for r in ("system", "user", "assistant", tool)]
    try:
        tokenizer.render(chat, thinking=False)
    except Exception as e:  # jinja templates raise what they like
        raise ConfigError(
            f"config.workflow.tool_role={config.workflow.tool_role}: the model's chat "
            f"template refuses a {tool!r} turn ({e}); try the other value"
        ) from e


def seat_agents(config: Config) -> Config:
    """The config with its agents in the order in which the workflow's roles act.

    Raises:
      ConfigError: an agent is missing, unknown, or given turns it cannot take.
    """
    workflow = WORKFLOWS[config.workflow.name]
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


def make_engine(config: Config, models: Models) -> Engine:
    return Engine(
        models.policy,
        config.sampler,
        models.mesh,
        seed=config.seed,
        stop_ids=len(models.tokenizer.stop_ids),
    )


def make_scorer(model: str, cache: Path, config: JudgeConfig) -> Scorer:
    """A local judge: `model`'s probabilities of the answers "0" to "10".

    Raises:
      ModelError: weights or tokenizer cannot be had or used.
    """
    folder = registry.resolve(model, cache)
    cfg, tokenizer = hf.read_config(folder), Tokenizer(folder)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
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
        name: Seat(name, i, agent, models.tokenizer, temperature)
        for i, (name, agent) in enumerate(config.agents.items())
    }


def enable_compilation_cache(folder: Path) -> None:
    """Keeps compiled programs on disk, so that the next start is quick."""
    jax.config.update("jax_compilation_cache_dir", str(folder.expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
