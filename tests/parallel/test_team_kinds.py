"""Teams whose agents differ: in architecture, in what is trained, and how."""

import asyncio
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from mesh_teams import NAMES, make_config

from mappa_jax import per_agent
from mappa_jax.config import ConfigError, LoRAConfig, OptimizerConfig, resolve
from mappa_jax.learning import optimizers, update
from mappa_jax.models import policy as policies
from mappa_jax.models.decoder import REMAT
from mappa_jax.sampling.engine import Options

GREEDY = Options(0.0, 0, 1.0, 0, 8, ())


def assert_close(got, want, rtol=1e-5):
    scale = max(np.abs(w).max() for w in jax.tree.leaves(want))
    gaps = jax.tree.map(lambda g, w: np.abs(g - w).max(), got, want)
    assert max(jax.tree.leaves(gaps)) <= rtol * scale, (gaps, scale)


def of(tree, place):
    return jax.tree.map(lambda x: np.asarray(x)[place], tree)


def actions(team, count=8):
    """Greedy samples, by agent in turn."""

    async def ask():
        async with team.engine.running(*team.weights()) as engine:
            prompts = [np.arange(1, 4 + i, dtype=np.int32) for i in range(count)]
            return await asyncio.gather(
                *(
                    engine.generate(i % 4, prompt, GREEDY, (0, 1, i, i % 4, 0, 0))
                    for i, prompt in enumerate(prompts)
                )
            )

    return [sample.token_ids.tolist() for sample in asyncio.run(ask())]


# -- unlike architectures -------------------------------------------------------


@pytest.fixture(scope="module")
def plain(make_team):
    return make_team(make_config())


@pytest.fixture(scope="module")
def mixed(make_team):
    """b and d are of another architecture."""
    return make_team(make_config(agents={n: {"model": "wide"} for n in "bd"}))


def test_unlike_agents_form_groups_in_one_program(mixed, plain, trajectories):
    assert [group.members for group in mixed.team] == [(0, 2), (1, 3)]
    assert [n for n in mixed.learner._run if n.startswith("update")] == ["update"]
    _, after, metrics = mixed.step(trajectories)
    _, alike, expected = plain.step(trajectories)
    # Those of the usual architecture are trained as in the uniform team.
    for place, agent in enumerate((0, 2)):
        assert_close(of(after.trainable[0], place), of(alike.trainable[0], agent))
        for name in ("loss", "grad_norm", "kl", "trained_tokens"):
            np.testing.assert_allclose(
                metrics[name][agent], expected[name][agent], rtol=1e-4, err_msg=name
            )
    assert after.trainable[1]["layers"]["up"]["kernel"].shape[-1] == 40
    assert (metrics["updates"] > 0).all()


def test_unlike_agents_sample_side_by_side(mixed, plain):
    both, alike = actions(mixed), actions(plain)
    assert both[0::4] == alike[0::4] and both[2::4] == alike[2::4]
    assert both[1::4] != alike[1::4]


@pytest.mark.slow
def test_groups_lie_on_a_mesh(make_team, mixed, trajectories):
    spread = make_team(mixed.config, (2, 2, 2, 1))
    (_, want, _), (_, got, _) = mixed.step(trajectories), spread.step(trajectories)
    for g in (0, 1):
        assert_close(got.trainable[g], want.trainable[g])
    assert actions(spread) == actions(mixed)


def test_a_group_that_the_mesh_cannot_divide_is_refused(make_team):
    config = make_config(agents={"d": {"model": "wide"}})
    with pytest.raises(ConfigError, match=r"config.mesh.agent=2 .* 3 agents.*'a', 'b'"):
        make_team(config, (2, 1, 1, 1))


# -- frozen agents ----------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_frozen_agent_acts_and_is_not_trained(make_team, trajectories, mode, plain):
    team = make_team(make_config(mode, agents={"c": {"trainable": False}}))
    free = make_team(make_config(mode)) if mode == "lora" else plain
    before, after, metrics = team.step(trajectories)
    _, trained, _ = free.step(trajectories)
    np.testing.assert_array_equal(metrics["updates"], [1, 1, 0, 1])
    np.testing.assert_array_equal(metrics["trained_tokens"][2], 0)
    if mode == "full":  # apart, without an optimiser state
        assert [group.members for group in team.team] == [(0, 1, 3), (2,)]
        assert after.groups[1] is None
        assert_close(of(after.trainable[0], 2), of(trained.trainable[0], 3))
    else:
        was, now = of(before.trainable[0], 2), of(after.trainable[0], 2)
        jax.tree.map(np.testing.assert_array_equal, was, now)
        assert_close(of(after.trainable[0], 3), of(trained.trainable[0], 3))
    assert actions(team) == actions(free)  # it samples with its initial weights
    counts = team.pack(trajectories).counts
    assert counts["c"]["score"] == free.pack(trajectories).counts["c"]["score"]


def test_a_team_without_anyone_to_train_is_refused(make_team):
    frozen = {name: {"trainable": False} for name in NAMES}
    team = make_team(make_config(agents=frozen))
    with pytest.raises(ConfigError, match="config.agents: none is trainable"):
        update.Learner(team.team, team.config, team.mesh)


# -- settings of one agent ---------------------------------------------------------


def test_agents_have_their_own_schedule_and_kl(make_team, trajectories):
    own = {"a": {"warmup_fraction": 1.0, "kl_beta": 0.0}, "b": {"final_fraction": 1.0}}
    team = make_team(make_config(agents=own))
    np.testing.assert_allclose(team.state().beta, [0.0, 0.05, 0.05, 0.05])
    _, _, metrics = team.step(trajectories)
    total = update.estimated_updates(team.config)[0]
    usual = update.schedule_share(0, total, 0.03, 0.1)
    rates = per_agent.learning_rates(team.config)
    shares = metrics["learning_rate"] / rates
    np.testing.assert_allclose(shares, [1 / total, 1.0, usual, usual], rtol=1e-5)
    packed = team.learner.assign_credit(
        team.state(), team.weights()[1], team.pack(trajectories)
    )
    ((part,),) = packed.minibatches
    by_value = {
        agent: {
            len(set(part.batch.advantage[s.row][s.at : s.at + len(s.action.token_ids)]))
            for s in part.slots
            if s.agent == agent and len(s.action.token_ids) > 1
        }
        for agent in (0, 1)
    }
    assert by_value[0] == {1}  # without a KL all tokens of an action are worth the same
    assert max(by_value[1]) > 1


def test_without_a_kl_no_reference_is_kept(make_team):
    config = make_config(agents={name: {"kl_beta": 0.0} for name in NAMES})
    _, frozen = make_team(config).weights()
    assert frozen == (None,)


def test_ranks_of_adapters_differ(make_team, trajectories):
    """An agent of a lower rank is trained as in a team of that rank; what pads its
    adapter stays zero."""
    lora = LoRAConfig(rank=3, alpha=4.0)
    mixed = make_team(make_config("lora", agents={"b": {"lora_rank": 1}}, lora=lora))
    low = make_team(make_config("lora", lora=dataclasses.replace(lora, rank=1)))
    np.testing.assert_allclose(mixed.team[0].scales(), [4 / 3, 4, 4 / 3, 4 / 3])
    trainable, frozen = policies.init(
        mixed.team[0],
        [mixed.folders[0]] * 4,
        mixed.mesh,
        1,
        jnp.float32,
    )
    first = [low.folders[0]] * 4
    start, _ = policies.init(low.team[0], first, low.mesh, 1, jnp.float32)

    def padded(x, like):
        """The low team's second adapter, in the mixed team's place for it."""
        wide = np.array(like)
        fit = tuple(slice(0, n) for n in x.shape[1:])
        wide[1] = 0
        wide[1][fit] = np.asarray(x)[1]
        return jax.device_put(wide, like.sharding)

    def moved(tree):  # away from b = 0, but not in what pads
        return jax.tree.map(lambda x: x + 0.05, tree)

    start = moved(start)
    trainable = jax.tree.map(padded, start, moved(trainable))
    states = []
    for team, weights in ((mixed, trainable), (low, start)):
        state = update.init_state([weights], team.team, team.config, team.mesh)
        packed = team.learner.assign_credit(state, [frozen], team.pack(trajectories))
        state, _ = team.learner.update(state, [frozen], packed)
        states.append(jax.device_get(state.trainable[0]))
    for name, leaf in states[0].items():
        want = states[1][name]
        np.testing.assert_allclose(leaf["a"][1, :, :, :1], want["a"][1], rtol=1e-5)
        np.testing.assert_allclose(leaf["b"][1, :, :1], want["b"][1], rtol=1e-5)
        assert not leaf["a"][1, :, :, 1:].any() and not leaf["b"][1, :, 1:].any()


@pytest.mark.parametrize(
    ("mode", "own", "said"),
    [
        ("shared", {"b": {"learning_rate": 1.0}}, "agents.b.learning_rate"),
        ("shared", {"c": {"trainable": False}}, "agents.c.trainable"),
        ("shared", {"c": {"model": "wide"}}, "agents.c.model"),
        ("full", {"c": {"lora_rank": 3}}, "agents.c.lora_rank"),
        ("full", {"c": {"warmup_fraction": 2.0}}, "agents.c.warmup_fraction"),
        ("full", {"c": {"kl_beta": -3.0}}, "agents.c.kl_beta"),
    ],
)
def test_settings_that_cannot_be_are_named(mode, own, said):
    with pytest.raises(ConfigError, match=f"config.{said}"):
        resolve(dataclasses.asdict(make_config(mode, agents=own)))


# -- memory -------------------------------------------------------------------------


def test_moments_in_bfloat16_are_close_and_half_the_size(
    make_team, plain, trajectories
):
    config = make_config(
        optimizer=OptimizerConfig(eps=0.1, actions_per_update=12, moments="bfloat16")
    )
    before, after, _ = make_team(config).step(trajectories)
    _, want, _ = plain.step(trajectories)
    adam = after.groups[0].opt_state[1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves((adam.mu, adam.nu))} == {
        "bfloat16"
    }

    def moved(state):
        return jax.tree.map(np.subtract, state.trainable[0], before.trainable[0])

    # The first step uses the moments before they are rounded.
    assert_close(moved(after), moved(want), rtol=1e-6)
    mu = want.groups[0].opt_state[1].mu
    got = jax.tree.map(lambda x: x.astype(np.float32), adam.mu)
    assert_close(got, mu, rtol=2**-8)


def test_a_stored_state_is_what_rounding_at_every_step_gives():
    """Three updates by hand."""
    config = OptimizerConfig(moments="bfloat16", max_grad_norm=1e9)
    tx, adam = optimizers.optimizer(config), optax.scale_by_adam(0.9, 0.95, 1e-8)
    params = {"w": jnp.zeros(5)}
    state, moments = tx.init(params), adam.init(params)
    for step in range(3):
        grads = {"w": jnp.linspace(-1, 2, 5) * (step + 1)}
        got, state = tx.update(grads, state, params)
        want, moments = adam.update(grads, moments)
        np.testing.assert_allclose(got["w"], want["w"], rtol=1e-6)
        moments = jax.tree.map(
            lambda x: (
                x.astype(jnp.bfloat16).astype(x.dtype) if x.dtype == jnp.float32 else x
            ),
            moments,
        )


def test_adafactor_keeps_rows_and_columns_where_their_parameter_lies(weights):
    """A kernel of [agents, layers, 256, 512] needs 256 + 512 numbers per layer."""
    mesh = jax.make_mesh((2, 1, 2, 2), ("agent", "data", "fsdp", "tensor"))
    spec = PartitionSpec("agent", None, "fsdp", "tensor")
    where = NamedSharding(mesh, spec)
    lead = NamedSharding(mesh, PartitionSpec("agent"))
    param = jax.ShapeDtypeStruct((2, 3, 256, 512), jnp.float32, sharding=where)
    tx = optimizers.optimizer(OptimizerConfig(name="adafactor"))
    states = jax.eval_shape(jax.vmap(tx.init), {"w": param})
    placed = optimizers.state_shardings(tx, {"w": param}, lead)
    rows, columns = states[1].v_row["w"], states[1].v_col["w"]
    assert rows.shape == (2, 3, 256) and columns.shape == (2, 3, 512)
    assert placed[1].v_row["w"].spec == PartitionSpec("agent", None, "fsdp")
    assert placed[1].v_col["w"].spec == PartitionSpec("agent", None, "tensor")
    sizes = [leaf.size for leaf in jax.tree.leaves(states)]
    assert sum(sizes) < 2 * 3 * (256 + 512) + 20
    square = jax.ShapeDtypeStruct((2, 3, 256, 256), jnp.float32, sharding=where)
    placed = optimizers.state_shardings(tx, {"w": square}, lead)
    assert placed[1].v_row["w"].spec == PartitionSpec("agent", None, "fsdp")
    assert placed[1].v_col["w"].spec == PartitionSpec("agent", None, "tensor")


@pytest.mark.slow
def test_adafactor_trains_a_team_on_a_mesh_as_on_one_device(make_team, trajectories):
    config = make_config(
        optimizer=OptimizerConfig(name="adafactor", actions_per_update=12)
    )
    before, want, metrics = make_team(config).step(trajectories)
    _, got, _ = make_team(config, (2, 2, 2, 1)).step(trajectories)
    assert_close(got.trainable[0], want.trainable[0])
    moved = jax.tree.map(np.subtract, want.trainable[0], before.trainable[0])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(moved))
    np.testing.assert_array_equal(metrics["updates"], 1)


@pytest.mark.parametrize(
    "remat", [pytest.param("full", marks=pytest.mark.slow), "projections"]
)
def test_what_is_recomputed_changes_no_number(make_team, plain, trajectories, remat):
    _, got, _ = make_team(make_config(remat=remat)).step(trajectories)
    _, want, _ = plain.step(trajectories)
    assert_close(got.trainable[0], want.trainable[0], rtol=1e-6)


def test_what_is_kept_for_the_backward_pass_shrinks_by_name(make_team):
    """Bytes of residuals of one layer stack, in the order of the names."""
    sizes = {}
    for remat in ("none", "projections", "full"):
        policy = make_team(make_config(remat=remat)).team[0]
        model = policy.decoder(rows=None, remat=remat)
        row = jnp.zeros((2, 16), jnp.int32)
        params = jax.eval_shape(model.init, jax.random.key(0), row, row, row)

        def loss(params, model=model, row=row):
            return model.apply(params, row, row, row + 16)[0].sum()

        _, backward = jax.eval_shape(lambda p: jax.vjp(loss, p), params)
        kept = [x.size * x.dtype.itemsize for x in jax.tree.leaves(backward)]
        sizes[remat] = sum(kept)
    assert sizes["full"] < sizes["projections"] < sizes["none"]
    assert {"none", *REMAT} == {"none", "full", "projections", "offload"}


@pytest.mark.parametrize(
    "kv", [pytest.param("bfloat16", marks=pytest.mark.slow), "float8_e4m3fn", "int8"]
)
def test_a_cache_of_fewer_bits_samples_nearly_the_same(make_team, plain, kv):
    sampler = dataclasses.replace(plain.config.sampler, kv_dtype=kv)
    team = make_team(make_config(sampler=sampler))
    slots = team.engine._programs[0].slot_shapes()
    assert slots.cache.k.dtype == jnp.dtype(kv)
    few, whole = actions(team), actions(plain)
    same = [a[0] == b[0] for a, b in zip(few, whole, strict=True)]
    assert np.mean(same) >= 0.75
