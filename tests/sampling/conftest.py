"""A random model of a few thousand weights, as a team of two in both modes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mappa_jax.config import LoRAConfig, MeshConfig
from mappa_jax.models import hf
from mappa_jax.models import policy as policies
from mappa_jax.models.config import ModelConfig, Rope
from mappa_jax.models.decoder import Decoder, logits
from mappa_jax.models.policy import Policy
from mappa_jax.parallel.mesh import make_mesh

MICRO = ModelConfig(
    family="llama",
    vocab_size=40,
    d_model=16,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=4,
    d_ff=24,
    max_context=64,
    rope=Rope(100.0),
    rms_norm_eps=1e-5,
)


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
        return full_scores(params, np.asarray(tokens, np.int32))


PADDED = 40


@jax.jit
def _padded_scores(params, tokens, ends):
    positions = jnp.arange(PADDED)[None]
    hidden, _ = Decoder(MICRO).apply({"params": params}, tokens, positions, ends)
    return logits(params, MICRO, hidden)[0]


def full_scores(params, tokens):
    row = np.zeros((1, PADDED), np.int32)
    row[0, : len(tokens)] = tokens
    ends = np.where(np.arange(PADDED) < len(tokens), len(tokens), 0)[None]
    params = jax.device_get(params)
    return np.asarray(_padded_scores(params, row, ends))[: len(tokens)]


@pytest.fixture(scope="session")
def micro():
    return MICRO


@pytest.fixture(scope="session")
def make_team(tmp_path_factory):
    folder = tmp_path_factory.mktemp("micro")
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32),
        hf.param_shapes(MICRO),
    )
    hf.save_params(params, MICRO, folder)

    def make(mode="full", sizes=(1, 1, 1, 1)) -> Team:
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
        lora = LoRAConfig(rank=2, alpha=4.0)
        policy = Policy(MICRO, mode, 2, lora, jnp.float32, remat=False)
        trainable, frozen = policies.init(policy, [folder] * 2, mesh, 0, jnp.float32)
        noise = np.random.default_rng(1)

        def shake(p):
            more = noise.normal(0, 0.2, p.shape).astype(np.float32)
            return jax.device_put(np.asarray(p) + more, p.sharding)

        return Team(policy, mesh, jax.tree.map(shake, trainable), frozen)

    return make
