"""A team of two of the micro model, and made-up trajectories."""

import dataclasses

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

CALL = JudgeCall("scripted")


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
            remat="none",
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
def make_policy(micro):
    def make(config: Config, **changes) -> Policy:
        policy = Policy(
            cfg=micro,
            mode=config.mode,
            members=tuple(range(len(config.agents))),
            lora=config.lora,
            dtype=jnp.float32,
            remat=config.remat,
            ranks=(config.lora.rank,) * len(config.agents),
        )
        return dataclasses.replace(policy, **changes)

    return make


@pytest.fixture(scope="session")
def make_action(micro):
    """An action of random tokens: lengths `prompt` and `new`."""

    def make(agent="a", turn=0, prompt=3, new=2, seed=0, **changes) -> Action:
        rng = np.random.default_rng((seed, prompt, new))
        action = Action(
            agent=agent,
            turn=turn,
            messages=(),
            prompt_ids=rng.integers(0, micro.vocab_size, prompt).astype(np.int32),
            token_ids=rng.integers(0, micro.vocab_size, new).astype(np.int32),
            logprobs=rng.normal(-3.7, 0.4, new).astype(np.float32),
            finish="stop",
            text="",
            content="",
            temperature=1.0,
        )
        return dataclasses.replace(action, **changes)

    return make


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
