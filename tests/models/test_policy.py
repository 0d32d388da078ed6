"""Who uses which weights, in both modes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mappa_jax.config import ConfigError, LoRAConfig, MeshConfig
from mappa_jax.models import hf
from mappa_jax.models import policy as policies
from mappa_jax.models.decoder import Decoder, logits
from mappa_jax.models.policy import Policy
from mappa_jax.parallel.mesh import make_mesh

TOKENS = np.random.default_rng(0).integers(0, 48, (3, 10)).astype(np.int32)
AGENTS = np.array([1, 0, 1], np.int32)


@pytest.fixture(scope="module")
def policy_of(micro):
    def make(mode, **changes):
        lora = LoRAConfig(rank=2, alpha=6.0, **changes)
        return Policy(micro, mode, (0, 1), lora, jnp.float32, ranks=(2, 2))

    return make


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@functools.partial(jax.jit, static_argnums=0)
def rows_logits(cfg, params, adapters=None):
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    hidden, _ = Decoder(cfg).apply(
        {"params": params},
        jnp.asarray(TOKENS),
        positions,
        jnp.full_like(positions, TOKENS.shape[1]),
        adapters=adapters,
    )
    return logits(params, cfg, hidden)


def with_noise(tree):
    rng = np.random.default_rng(5)
    return jax.tree.map(
        lambda p: jnp.asarray(np.asarray(p) + rng.normal(0, 0.2, p.shape), p.dtype),
        tree,
    )


def in_one_lane(policy, trainable, frozen):
    return policy.for_training(trainable, frozen, policy.scales(), AGENTS)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_full_stacks_each_agents_own_folder(policy_of, micro_folders, mesh):
    trainable, frozen = policies.init(
        policy_of("full"), micro_folders, mesh, 0, jnp.float32
    )
    for agent, folder in enumerate(micro_folders):
        _, want = hf.numpy_params(folder)
        own = policies.agent_params(policy_of("full"), trainable, frozen, agent)
        assert_same(own, want)


def test_the_reference_is_stacked_only_where_agents_start_apart(
    policy_of, micro_folders, mesh
):
    policy = policy_of("full")
    _, one = policies.init(policy, [micro_folders[1]] * 2, mesh, 0, jnp.float32)
    assert_same(one, hf.numpy_params(micro_folders[1])[1])
    stacked = dataclasses.replace(policy, stacked_reference=True)
    trainable, both = policies.init(stacked, micro_folders, mesh, 0, jnp.float32)
    assert_same(both, trainable)


def test_adapters_start_as_the_base(policy_of, micro, micro_folders, mesh):
    policy = policy_of("lora")
    trainable, frozen = policies.init(
        policy, micro_folders[:1] * 2, mesh, 0, jnp.float32
    )
    params, adapters = in_one_lane(policy, trainable, frozen)
    np.testing.assert_array_equal(
        rows_logits(micro, params, adapters), rows_logits(micro, frozen)
    )
    a = np.asarray(trainable["q"]["a"])
    assert a.std() == pytest.approx(micro.d_model**-0.5, rel=0.3)
    assert (a[0] != a[1]).any()


@pytest.mark.parametrize("targets", [("q",), LoRAConfig().targets])
def test_merged_weights_compute_what_the_adapters_do(
    policy_of, micro, micro_folders, mesh, targets
):
    policy = policy_of("lora", targets=targets)
    trainable, frozen = policies.init(
        policy, micro_folders[:1] * 2, mesh, 0, jnp.float32
    )
    trainable = with_noise(trainable)
    got = rows_logits(micro, *in_one_lane(policy, trainable, frozen))
    plain = rows_logits(micro, frozen)
    for row, agent in enumerate(AGENTS):
        merged = policies.agent_params(policy, trainable, frozen, agent)
        want = rows_logits(micro, merged)[row]
        np.testing.assert_allclose(got[row], want, rtol=1e-4, atol=1e-4)
        assert np.abs(want - plain[row]).max() > 0.01


def test_adapters_keep_the_dtype_of_the_compute(policy_of, micro_folders, mesh):
    policy = dataclasses.replace(policy_of("lora"), dtype=jnp.bfloat16)
    trainable, frozen = policies.init(
        policy, micro_folders[:1] * 2, mesh, 0, jnp.bfloat16
    )
    params, adapters = in_one_lane(policy, trainable, frozen)
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    rows = (jnp.asarray(TOKENS), positions, jnp.full_like(positions, TOKENS.shape[1]))

    def forward(params):
        return policy.decoder(rows=None).apply(
            {"params": params}, *rows, adapters=adapters
        )[0]

    assert jax.eval_shape(forward, params).dtype == jnp.bfloat16


def test_an_unknown_target_is_refused_by_name(policy_of):
    with pytest.raises(ConfigError, match="lora.targets: this model has no 'router'"):
        policies.trainable_shapes(policy_of("lora", targets=("router",)), jnp.float32)


def test_sampling_uses_the_pools_agent_or_each_rows_own(
    policy_of, micro, micro_folders, mesh
):
    full = policy_of("full")
    trainable, frozen = policies.init(full, micro_folders, mesh, 0, jnp.float32)
    params, lora = full.for_sampling(trainable, frozen)
    assert lora is None
    one, member = full.of_pool(jax.tree.map(lambda p: p[0], params), np.int32(1))
    own = hf.numpy_params(micro_folders[1])[1]
    assert member == 1
    assert_same(one | {"layers": jax.tree.map(lambda p: p[1], one["layers"])}, own)
    tokens = jnp.asarray(TOKENS)
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    rows = (tokens, places, jnp.full_like(places, tokens.shape[1]))
    model = full.decoder(rows=None)
    got, _ = jax.jit(model.apply)({"params": one}, *rows, member=member)
    want, _ = jax.jit(model.apply)({"params": own}, *rows)
    np.testing.assert_array_equal(got, want)
    mixed = policy_of("lora")
    trainable, frozen = policies.init(
        mixed, micro_folders[:1] * 2, mesh, 0, jnp.float32
    )
    params, (own, scales) = mixed.for_sampling(trainable, frozen)
    assert params is frozen
    assert own["q"]["a"].shape == (1, 2, micro.n_layers, micro.d_model, 2)
    np.testing.assert_array_equal(scales, [[3.0, 3.0]])


@pytest.mark.parametrize(
    ("slices", "turns"),
    [(1, (3, 0, 1, 2)), (2, (3, 2, 3, 2)), (4, (3, 3, 3, 3))],
)
def test_a_lane_turns_no_more_often_than_what_lies_beside_it(micro, slices, turns):
    config = MeshConfig(agent=slices, data=1, fsdp=1, tensor=1)
    mesh = make_mesh(config, jax.devices()[:slices])
    lora = LoRAConfig(rank=2, alpha=6.0)
    policy = Policy(micro, "full", (0, 1, 2, 3), lora, jnp.float32, mesh=mesh)

    def lane(count, blocks, own, nothing):
        assert nothing is None

        def turn(m, seen):
            return seen[0] + 1, seen[1] + own[m]

        return (*jax.lax.fori_loop(0, count, turn, (0, 0.0)), blocks)

    own = jax.device_put(
        np.arange(1.0, 13.0, dtype=np.float32).reshape(4, 3),
        policy.layout.sharding("agent"),
    )
    blocks = np.arange(12).reshape(4, 3)
    counts = np.array((3, 0, 1, 2))
    seen, sums, given = jax.jit(policy.over_lanes(lane))(counts, blocks, own, None)
    np.testing.assert_array_equal(seen, turns)
    want = [row[:n].sum() for row, n in zip(np.asarray(own), turns, strict=True)]
    np.testing.assert_array_equal(sums, want)
    assert sums.sharding.is_equivalent_to(own.sharding, 1)
    # On two slices lanes 0 and 2 lie side by side, and so do 1 and 3.
    each = 4 // slices
    beside = blocks.reshape(slices, each, 3).max(0)
    np.testing.assert_array_equal(given, np.tile(beside, (slices, 1)))
