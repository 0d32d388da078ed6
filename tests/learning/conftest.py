"""A model of a few thousand weights, a team of two, and made-up trajectories."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mappa_jax.config import (
    AgentConfig,
    Config,
    DataConfig,
    KLConfig,
    LoRAConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PackingConfig,
)
from mappa_jax.models import hf
from mappa_jax.models.config import ModelConfig, Rope
from mappa_jax.models.policy import Policy
from mappa_jax.types import (
    Action,
    JudgeCall,
    Missing,
    MissingReason,
    Outcome,
    Task,
    Trajectory,
    Verdict,
)

VOCAB = 48
MICRO = ModelConfig(
    family="llama",
    vocab_size=VOCAB,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=4,
    d_ff=24,
    max_context=64,
    rope=Rope(100.0),
    rms_norm_eps=1e-5,
    tie_embeddings=True,
)
CALL = JudgeCall("scripted")


@pytest.fixture(scope="session")
def micro() -> ModelConfig:
    return MICRO


@pytest.fixture(scope="session")
def micro_folder(tmp_path_factory):
    """Random weights, large enough for the tokens to be unequally likely."""
    folder = tmp_path_factory.mktemp("micro")
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32),
        hf.param_shapes(MICRO),
    )
    hf.save_params(params, MICRO, folder)
    return folder


@pytest.fixture(scope="session")
def make_config():
    """A run of agents "a" and "b"; the optimiser's eps is large, so that a step is
    a smooth function of the gradient."""

    def make(**changes) -> Config:
        agent = AgentConfig(max_new_tokens=6, max_turns=2, learning_rate=0.02)
        slower = dataclasses.replace(agent, learning_rate=0.005)
        base = dict(
            agents={"a": agent, "b": slower},
            steps=2,
            remat=False,
            data=DataConfig(prompts_per_step=4, samples_per_prompt=2),
            kl=KLConfig(beta=0.05),
            objective=ObjectiveConfig(mask_truncated=False),
            optimizer=OptimizerConfig(eps=0.1, actions_per_update=12),
            packing=PackingConfig(row_tokens=24, row_action_tokens=12, rows=8),
            lora=LoRAConfig(rank=2, alpha=4.0),
        )
        return Config(**(base | changes))

    return make


@pytest.fixture(scope="session")
def make_policy():
    def make(config: Config, **changes) -> Policy:
        policy = Policy(
            cfg=MICRO,
            mode=config.mode,
            agents=len(config.agents),
            lora=config.lora,
            dtype=jnp.float32,
            remat=config.remat,
        )
        return dataclasses.replace(policy, **changes)

    return make


def _make_action(agent="a", turn=0, prompt=3, new=2, seed=0, **changes) -> Action:
    rng = np.random.default_rng((seed, prompt, new))
    action = Action(
        agent=agent,
        turn=turn,
        messages=(),
        prompt_ids=rng.integers(0, VOCAB, prompt).astype(np.int32),
        token_ids=rng.integers(0, VOCAB, new).astype(np.int32),
        logprobs=rng.normal(-3.7, 0.4, new).astype(np.float32),
        finish="stop",
        text="",
        content="",
        temperature=1.0,
    )
    return dataclasses.replace(action, **changes)


@pytest.fixture(scope="session")
def make_action():
    """An action of random tokens: lengths `prompt` and `new`."""
    return _make_action


@pytest.fixture(scope="session")
def make_trajectory():
    """(action, score) pairs -> a trajectory; the score None is a missing verdict."""

    def make(pairs, task="t", source="s", outcome=None, sample=0) -> Trajectory:
        gone = Missing(MissingReason.TIMEOUT, "", CALL)
        return Trajectory(
            task=Task(id=task, prompt="", source=source),
            step=0,
            sample=sample,
            actions=tuple(a for a, _ in pairs),
            verdicts=tuple(
                gone if s is None else Verdict(s, "", CALL) for _, s in pairs
            ),
            outcome=None if outcome is None else Outcome(outcome),
        )

    return make
