"""The micro model as a team of two, in both modes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mappa_jax.config import LoRAConfig, MeshConfig
from mappa_jax.models import policy as policies
from mappa_jax.models.decoder import Decoder, logits
from mappa_jax.models.policy import Policy
from mappa_jax.parallel.mesh import make_mesh

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
        scores = _padded_scores(self.policy.cfg, jax.device_get(params), row, ends)
        return np.asarray(scores)[: len(tokens)]


@functools.partial(jax.jit, static_argnums=0)
def _padded_scores(cfg, params, tokens, ends):
    positions = jnp.arange(PADDED)[None]
    hidden, _ = Decoder(cfg).apply({"params": params}, tokens, positions, ends)
    return logits(params, cfg, hidden)[0]


@pytest.fixture(scope="session")
def make_team(micro, micro_folder):
    def make(mode="full", sizes=(1, 1, 1, 1)) -> Team:
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
        lora = LoRAConfig(rank=2, alpha=4.0)
        policy = Policy(micro, mode, (0, 1), lora, jnp.float32, mesh=mesh, ranks=(2, 2))
        folders = [micro_folder] * 2
        trainable, frozen = policies.init(policy, folders, mesh, 0, jnp.float32)
        noise = np.random.default_rng(1)

        def shake(p):
            more = noise.normal(0, 0.2, p.shape).astype(np.float32)
            return jax.device_put(np.asarray(p) + more, p.sharding)

        return Team(policy, mesh, jax.tree.map(shake, trainable), frozen)

    return make
