"""Teams of four agents of a small model on any mesh, and made-up actions of theirs."""

import dataclasses
import functools

import jax
import numpy as np

from mappa_jax.config import (
    AgentConfig,
    Config,
    DataConfig,
    KLConfig,
    LoRAConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PackingConfig,
    SamplerConfig,
)
from mappa_jax.learning import batch as batches
from mappa_jax.learning import update
from mappa_jax.sampling.engine import Engine
from mappa_jax.types import Action, JudgeCall, Task, Trajectory, Verdict

NAMES = ("a", "b", "c", "d")
MESHES = (
    (1, 1, 1, 1),
    (1, 8, 1, 1),
    (1, 1, 8, 1),
    (1, 1, 2, 4),
    (2, 2, 2, 1),
    (4, 2, 1, 1),
)
LENGTHS = ((3, 2), (5, 4), (9, 6))  # prompt and new tokens


def make_config(mode="full", agents=None, **changes):
    """Four agents that may act twice; the optimiser's eps is large, so that a step is
    a smooth function of the gradient."""
    agent = AgentConfig(model="one", max_new_tokens=6, max_turns=2, learning_rate=0.02)
    own = agents or {}
    shared = mode == "shared"
    team = {
        name: dataclasses.replace(
            agent,
            **{"learning_rate": 0.02 / (1 if shared else i + 1)} | own.get(name, {}),
        )
        for i, name in enumerate(NAMES)
    }
    base = dict(
        agents=team,
        mode=mode,
        steps=2,
        remat="none",
        data=DataConfig(prompts_per_step=4, samples_per_prompt=2),
        kl=KLConfig(beta=0.05),
        objective=ObjectiveConfig(mask_truncated=False),
        optimizer=OptimizerConfig(eps=0.1, actions_per_update=12),
        packing=PackingConfig(row_tokens=32, row_action_tokens=12, rows=8),
        lora=LoRAConfig(rank=2, alpha=4.0),
        sampler=SamplerConfig(
            slots=8,
            prefill_rows=2,
            prompt_buckets=(16,),
            context=32,
            cache_block=8,
            chunk=4,
        ),
    )
    return Config(**(base | changes))


@dataclasses.dataclass(frozen=True)
class Team:
    """Weights of a team on a mesh, and what can be done with them."""

    config: Config
    team: tuple
    mesh: object
    weights: object  # () -> (trainable, frozen), by group
    folders: object  # of each agent

    @functools.cached_property
    def learner(self):
        learner = update.Learner(self.team, self.config, self.mesh)
        _, frozen = self.weights()
        learner.warm_up(self.state(), frozen)
        return learner

    @functools.cached_property
    def gradient(self):
        """The compiled `update.group_gradient` of the first group."""
        return jax.jit(
            functools.partial(update.group_gradient, self.team[0], self.config)
        )

    @functools.cached_property
    def engine(self):
        engine = Engine(self.team, self.config.sampler, self.mesh, seed=11, stop_ids=2)
        engine.warm_up(*self.weights())
        return engine

    def state(self):
        trainable, _ = self.weights()
        return update.init_state(trainable, self.team, self.config, self.mesh)

    def pack(self, trajectories):
        return batches.pack(
            trajectories,
            NAMES,
            self.learner.shape,
            reward=self.config.reward,
            objective=self.config.objective,
            actions_per_update=self.config.optimizer.actions_per_update,
            rng=np.random.default_rng(0),
        )

    def step(self, trajectories):
        """(state before, state after, metrics), on the host."""
        _, frozen = self.weights()
        state = self.state()
        before = jax.device_get(state)
        packed = self.learner.assign_credit(state, frozen, self.pack(trajectories))
        after, metrics = self.learner.update(state, frozen, packed)
        return before, jax.device_get(after), metrics


def shaken(x):
    """The same noise whatever the mesh, where there is something to shake."""
    noise = np.random.default_rng(x.shape[-1]).normal(0, 0.1, x.shape)
    value = np.asarray(x)
    moved = value + np.where(value == 0, 0.05, noise).astype(np.float32)
    return jax.device_put(moved, x.sharding)


def make_action(agent, turn, prompt, new, seed, vocab=48):
    rng = np.random.default_rng((seed, prompt, new))
    return Action(
        agent=agent,
        turn=turn,
        messages=(),
        prompt_ids=rng.integers(0, vocab, prompt).astype(np.int32),
        token_ids=rng.integers(0, vocab, new).astype(np.int32),
        logprobs=rng.normal(-3.7, 0.4, new).astype(np.float32),
        finish="stop",
        text="",
        content="",
        temperature=(1.0, 0.7)[seed % 2],
    )


def trajectory(actions, scores, k=0):
    return Trajectory(
        task=Task(id=f"t{k // 2}", prompt="", source="s"),
        step=0,
        sample=k % 2,
        actions=tuple(actions),
        verdicts=tuple(Verdict(float(s), "", JudgeCall("scripted")) for s in scores),
    )
