"""The micro model as a team of two, in both modes, and engines that serve it."""

import asyncio
import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mappa_jax.config import LoRAConfig, MeshConfig
from mappa_jax.hosts import Stopped
from mappa_jax.models import policy as policies
from mappa_jax.models.decoder import Decoder, logits
from mappa_jax.models.policy import Policy
from mappa_jax.parallel.mesh import make_mesh
from mappa_jax.sampling.engine import Engine, Stats

PADDED = 40


@dataclasses.dataclass(frozen=True)
class Team:
    """A policy of two agents with different weights, placed on a mesh."""

    policy: Policy
    mesh: object
    trainable: object
    frozen: object

    def scores(self, agent, tokens):
        """[T, V] logits of a whole sequence, by the model's own full forward."""
        params = policies.agent_params(self.policy, self.trainable, self.frozen, agent)
        row = np.zeros((1, PADDED), np.int32)
        row[0, : len(tokens)] = tokens
        ends = np.where(np.arange(PADDED) < len(tokens), len(tokens), 0)[None]
        model = Decoder(self.policy.cfg, dtype=self.policy.dtype)
        scores = _padded_scores(model, jax.device_get(params), row, ends)
        return np.asarray(scores)[: len(tokens)]


@functools.partial(jax.jit, static_argnums=0)
def _padded_scores(model, params, tokens, ends):
    positions = jnp.arange(PADDED)[None]
    hidden, _ = model.apply({"params": params}, tokens, positions, ends)
    return logits(params, model.cfg, hidden)[0]


@pytest.fixture(scope="session")
def make_team(micro, micro_folder):
    def make(mode="full", sizes=(1, 1, 1, 1), dtype=jnp.float32) -> Team:
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
        lora = LoRAConfig(rank=2, alpha=4.0)
        policy = Policy(micro, mode, (0, 1), lora, dtype, mesh=mesh, ranks=(2, 2))
        folders = [micro_folder] * 2
        trainable, frozen = policies.init(policy, folders, mesh, 0, jnp.float32)
        noise = np.random.default_rng(1)

        def shake(p):
            more = noise.normal(0, 0.2, p.shape).astype(np.float32)
            return jax.device_put(np.asarray(p) + more, p.sharding)

        return Team(policy, mesh, jax.tree.map(shake, trainable), frozen)

    return make


@dataclasses.dataclass(frozen=True)
class Served:
    """A warm engine and its team."""

    engine: Engine
    team: Team

    def running(self):
        return self.engine.running([self.team.trainable], [self.team.frozen])

    async def ask(self, requests):
        """Samples of (agent, prompt, options, address), all asked for at once."""
        async with self.running() as engine:
            return await asyncio.gather(*(engine.generate(*r) for r in requests))


@pytest.fixture(scope="module")
def serve(make_team):
    """Engines by config, mode and mesh, compiled once each."""
    made = functools.cache(make_team)

    @functools.cache
    def make(config, mode="full", sizes=(1, 1, 1, 1), dtype=jnp.float32) -> Served:
        team = made(mode, sizes, dtype)
        engine = Engine([team.policy], config, team.mesh, seed=11, stop_ids=2)
        engine.warm_up([team.trainable], [team.frozen])
        return Served(engine, team)

    return make


class Joined:
    """Hosts in one process, whose gatherings meet in one event loop."""

    def __init__(self, count):
        self.count, self.stopping = count, False
        self._told, self._met = {}, asyncio.Event()

    def host(self, index):
        hosts = self

        class Host:
            count = hosts.count

            def __init__(self):
                self.index, self.stopping = index, False

            async def gather(self, value):
                return await hosts._gather(self, value)

        return Host()

    async def _gather(self, host, value):
        told, met = self._told, self._met
        told[host.index] = (host.stopping, value)
        if len(told) == self.count:
            self._told, self._met = {}, asyncio.Event()
            met.set()
        await met.wait()
        if any(stopping for stopping, _ in told.values()):
            raise Stopped("a host was told to stop")
        return [told[i][1] for i in range(self.count)]


@pytest.fixture
def two_hosts():
    """Two engines over the compiled programs of one, joined, and their hosts."""

    def make(one: Served):
        joined, made = Joined(2), []
        for index in (0, 1):
            engine = copy.copy(one.engine)
            engine._hosts, engine._pools = joined.host(index), {}
            engine.stats = Stats()
            made.append((dataclasses.replace(one, engine=engine), engine._hosts))
        return made

    return make
