"""mappa_jax: the slot engine, credit and the compiled update of a team.

Its process finds mappa_jax and launch/common.py by PYTHONPATH.

Sampling is `Engine.generate`, as `Team.act` calls it. A row's length is its request's
`max_new`; `min_new` keeps the stop id away until then. The update is `batch.pack`,
`Learner.assign_credit` and `Learner.update`, as a training step calls them.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import protocol

from mappa_jax import assemble
from mappa_jax.config import (
    AdvantageConfig,
    AgentConfig,
    Config,
    DataConfig,
    KLConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PackingConfig,
    RewardConfig,
    SamplerConfig,
)
from mappa_jax.hosts import OneHost
from mappa_jax.learning import batch as batches
from mappa_jax.learning.update import Learner, init_state
from mappa_jax.models import hf
from mappa_jax.parallel import mesh as meshlib
from mappa_jax.sampling.engine import Options, Sample
from mappa_jax.types import Action, JudgeCall, Task, Trajectory, Verdict

BLOCK = 128  # tokens of a block of the cache


def up(n: int, to: int) -> int:
    return -(-n // to) * to


def team_config(
    work: protocol.Work, agents: int, sequences: int, row: tuple[int, int]
) -> Config:
    """A team whose agents each have `sequences` actions, in rows of so many tokens, and
    so many of them sampled.

    Weights of its own for every agent; of a layer the results of its matrix products
    are kept and the rest is computed again (remat="projections"), where the peers
    compute all of it again; one optimiser step on all of an agent's sequences.
    """
    rows, prompt = work.prompts.shape
    agent = AgentConfig(
        model=str(work.folder),
        max_new_tokens=row[1],
        learning_rate=work.learning_rate,
    )
    return Config(
        agents={f"agent{i}": agent for i in range(agents)},
        dtype=work.dtype,
        param_dtype=work.dtype,
        data=DataConfig(prompts_per_step=sequences, samples_per_prompt=1),
        sampler=SamplerConfig(
            slots=rows,
            widths=tuple(sorted({rows * n // 8 for n in (1, 2, 3, 4, 6)} - {0})),
            prompt_buckets=(prompt,),
            context=up(prompt + int(work.stops.max()), BLOCK),
            cache_block=BLOCK,
        ),
        reward=RewardConfig(reward_scale=1.0),
        advantage=AdvantageConfig(estimator="agent_baseline"),
        kl=KLConfig(beta=0.0),
        objective=ObjectiveConfig(aggregation="action", mask_truncated=False),
        optimizer=OptimizerConfig(actions_per_update=sequences, warmup_fraction=0.0),
        remat="projections",
        packing=PackingConfig(
            row_tokens=row[0],
            row_action_tokens=row[1],
            rows=1,
        ),
    )


class Side:
    """A team on one device.

    Args:
      work: what to do.
      agents: how many.
      sequences: that each is trained on.
      row: tokens of a packed row, and how many of them may be sampled.
    """

    def __init__(
        self, work: protocol.Work, agents: int, sequences: int, row: tuple[int, int]
    ):
        self.work, self.agents = work, agents
        self.config = team_config(work, agents, sequences, row)
        mesh = meshlib.make_mesh(self.config.mesh, jax.devices()[:1])
        shapes = [hf.read_config(work.folder)] * agents
        team = assemble.make_team(self.config, shapes, mesh)
        folders = [work.folder] * agents
        self._models = assemble.Models(mesh, team, folders, [])
        trainable, self.frozen = self._models.init_weights(self.config)
        self.state = init_state(trainable, team, self.config, mesh)
        self._step = 0

    def make_engine(self) -> None:
        tokenizer = dataclasses.make_dataclass("Ids", ["stop_ids"])((self.work.eos,))
        models = dataclasses.replace(self._models, tokenizers=[tokenizer])
        self.engine = assemble.make_engine(self.config, models, OneHost())
        self.engine.warm_up(self.state.trainable, self.frozen)

    def make_learner(self) -> None:
        models = self._models
        self.learner = Learner(models.team, self.config, models.mesh)
        self.learner.warm_up(self.state, self.frozen)

    # -- sampling ------------------------------------------------------------

    def sample(self) -> list[list[Sample]]:
        """Every agent's rows, all in flight together."""
        return asyncio.run(self._sample())

    async def _sample(self) -> list[list[Sample]]:
        work, self._step = self.work, self._step + 1
        async with self.engine.running(self.state.trainable, self.frozen) as engine:

            def one(agent: int, row: int):
                stop = int(work.stops[row])
                options = Options(
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    min_new=stop,
                    max_new=stop,
                    stop_ids=(work.eos,),
                )
                address = (self._step, row, 0, agent, 0, 0)
                return engine.generate(agent, work.prompts[row], options, address)

            count = len(work.prompts)
            asked = [one(a, r) for a in range(self.agents) for r in range(count)]
            found = await asyncio.gather(*asked)
        return [found[a * count : (a + 1) * count] for a in range(self.agents)]

    # -- the update ----------------------------------------------------------

    def update(self, actions: Sequence[Sequence[Action]]) -> dict[str, Any]:
        """One optimiser step of every agent on its own actions."""
        config = self.config
        packed = batches.pack(
            trajectories_of(actions, self.work.scores),
            list(config.agents),
            self.learner.shape,
            reward=config.reward,
            objective=config.objective,
            actions_per_update=config.optimizer.actions_per_update,
            rng=np.random.default_rng(0),
        )
        packed = self.learner.assign_credit(self.state, self.frozen, packed)
        self.state, metrics = self.learner.update(self.state, self.frozen, packed)
        jax.block_until_ready(self.state)
        counts = [sum(part.counts) for step in packed.minibatches for part in step]
        row = config.packing.rows * config.packing.row_tokens
        return {
            "tokens": int(metrics["trained_tokens"].sum()),
            "grad_norm": float(metrics["grad_norm"][0]),
            "padded_to": sum(counts) * row,
        }

    def logprobs(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Any]:
        """What the initial weights give each completion's tokens: [C] float32 each."""
        from mappa_jax.models.decoder import Decoder, logits

        cfg = self._models.team[0].cfg
        model = Decoder(cfg, dtype=jnp.dtype(self.config.dtype))
        width = self.config.packing.row_tokens

        @jax.jit
        def score(trainable, tokens, length):
            params = jax.tree.map(lambda x: x[0], trainable)
            places = jnp.arange(width)[None]
            ends = jnp.where(places < length, length, 0)
            hidden, _ = model.apply({"params": params}, tokens[None], places, ends)

            def one(args):
                h, target = args
                found = jax.nn.log_softmax(logits(params, cfg, h))
                return jnp.take_along_axis(found, target[:, None], 1)[:, 0]

            parts = (hidden[0].reshape(8, -1, cfg.d_model), jnp.roll(tokens, -1))
            return jax.lax.map(one, (parts[0], parts[1].reshape(8, -1))).reshape(-1)

        found = []
        for prompt, completion in pairs:
            row = np.concatenate([prompt, completion])
            tokens = np.pad(row, (0, width - len(row)))
            scores = score(self.state.groups[0].trainable, tokens, len(row))
            found.append(np.asarray(scores)[len(prompt) - 1 : len(row) - 1])
        return found


def make_action(agent: int, prompt: Any, tokens: Any, logprobs: Any) -> Action:
    return Action(
        agent=f"agent{agent}",
        turn=0,
        messages=(),
        prompt_ids=prompt,
        token_ids=tokens,
        logprobs=logprobs,
        finish="length",
        text="",
        content="",
    )


def trajectories_of(
    actions: Sequence[Sequence[Action]], scores: np.ndarray
) -> list[Trajectory]:
    """One with the n-th action of every agent."""
    call = JudgeCall("none")
    return [
        Trajectory(
            task=Task(id=str(n), prompt=""),
            step=0,
            sample=0,
            actions=tuple(team),
            verdicts=(Verdict(float(scores[n]), "", call),) * len(team),
        )
        for n, team in enumerate(zip(*actions, strict=True))
    ]


def prepare(work: protocol.Work, part: str) -> protocol.Run:
    rows, stop = len(work.prompts), int(work.stops.max())
    whole = (up(work.prompts.shape[1] + stop, BLOCK), stop)
    if part == "sampling":
        side = Side(work, 1, rows, whole)
        side.make_engine()
        return lambda: {"lengths": [len(s.token_ids) for s in side.sample()[0]]}
    if part == "update":
        longest = up(int(work.lengths.max()), 8)
        new = int((work.lengths - work.starts).max())
        side = Side(work, 1, len(work.lengths), (longest, max(new, longest // 2)))
        side.make_learner()
        pairs = work.pairs()
        known = zip(pairs, side.logprobs(pairs), strict=True)
        actions = [make_action(0, *pair, logprobs) for pair, logprobs in known]
        return lambda: side.update([actions])
    side = Side(work, work.agents, rows, whole)
    side.make_engine()
    side.make_learner()

    def iteration() -> dict[str, Any]:
        sampled = side.sample()
        actions = [
            [
                make_action(a, prompt, s.token_ids, s.logprobs)
                for prompt, s in zip(work.prompts, samples, strict=True)
            ]
            for a, samples in enumerate(sampled)
        ]
        lengths = [[len(s.token_ids) for s in samples] for samples in sampled]
        return {"lengths": lengths} | side.update(actions)

    return iteration


if __name__ == "__main__":
    from mappa_jax.commands import common

    common.prepare_environment()  # as launch/train.py does
    protocol.serve(prepare)
