"""Teams of four agents of a small model, on one device and on meshes of eight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mesh_teams import (
    LENGTHS,
    NAMES,
    Team,
    make_action,
    make_config,
    shaken,
    trajectory,
)

from mappa_jax import assemble as parts
from mappa_jax.config import MeshConfig
from mappa_jax.models import hf
from mappa_jax.models import policy as policies
from mappa_jax.parallel.mesh import make_mesh


@pytest.fixture(scope="session")
def weights(micro, tmp_path_factory):
    """Name of a model -> (architecture, folder): "one" and "other" are alike, "wide" is
    not. All have as many key and value heads as the largest tensor axis."""
    four = dataclasses.replace(micro, n_kv_heads=4)
    shapes = {
        "one": four,
        "other": four,
        "wide": dataclasses.replace(four, d_ff=40),
    }
    made = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        rng = np.random.default_rng(seed)
        params = jax.tree.map(
            lambda s, rng=rng: rng.normal(0, 0.3, s.shape).astype(np.float32),
            hf.param_shapes(shape),
        )
        folder = tmp_path_factory.mktemp(name)
        hf.save_params(params, shape, folder)
        made[name] = (shape, folder)
    return made


@pytest.fixture(scope="session")
def make_team(weights):
    """(config, sizes of the mesh) -> Team."""

    def make(config, sizes=(1, 1, 1, 1)):
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
        shapes, folders = zip(
            *(weights[agent.model] for agent in config.agents.values()), strict=True
        )
        team = parts.make_team(config, shapes, mesh)

        def start():
            made = [
                policies.init(g, [folders[m] for m in g.members], mesh, 1, jnp.float32)
                for g in team
            ]
            trainable, frozen = zip(*made, strict=True)
            if config.mode == "lora":  # with b = 0 the gradient of a would vanish
                trainable = jax.tree.map(shaken, trainable)
            return trainable, frozen

        return Team(config, team, mesh, start, folders)

    return make


@pytest.fixture(scope="module")
def on_mesh(make_team):
    """(mode, sizes) -> Team, compiled once each."""
    return functools.cache(lambda mode, sizes: make_team(make_config(mode), sizes))


@pytest.fixture(scope="session")
def trajectories():
    """Actions of all four agents; unequally many, of unequal lengths."""
    rng = np.random.default_rng(3)
    out = []
    for k in range(6):
        order = NAMES if k < 5 else NAMES[:2]
        actions = [
            make_action(name, turn, *LENGTHS[(k + i + turn) % 3], seed=10 * k + i)
            for turn in (0, 1)
            for i, name in enumerate(order)
        ]
        actions = actions[: len(actions) - k % 3]
        out.append(trajectory(actions, rng.integers(0, 11, len(actions)), k))
    return out
