"""One program on any mesh: the same update and the same tokens as on one device."""

import asyncio
import collections
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_teams import MESHES, NAMES, make_config, trajectory

from mappa_jax.config import ConfigError, PackingConfig, SamplerConfig
from mappa_jax.learning import update
from mappa_jax.parallel.mesh import path_name
from mappa_jax.plan import groups, hlo
from mappa_jax.plan.count import Expected, count
from mappa_jax.sampling.engine import Engine, Options

MODES = ("full", "lora", "shared")
# Every mesh and every mode; the other pairs are as good and take minutes to compile.
EVERYDAY = {
    *(("full", sizes) for sizes in ((2, 2, 2, 1), (1, 1, 2, 4))),
    *(("lora", (2, 2, 2, 1)), ("shared", (4, 2, 1, 1))),
}
PAIRS = [
    pytest.param(
        *(mode, sizes), marks=() if (mode, sizes) in EVERYDAY else pytest.mark.slow
    )
    for mode in MODES
    for sizes in MESHES[1:]
]


def assert_close(got, want, rtol):
    """Relative to the largest entry of each leaf."""
    for (path, w), g in zip(
        jax.tree.leaves_with_path(want), jax.tree.leaves(got), strict=True
    ):
        gap, scale = np.abs(g - w).max(), np.abs(w).max()
        assert gap <= rtol * scale, (jax.tree_util.keystr(path), gap, scale)


@pytest.mark.parametrize(("mode", "sizes"), PAIRS)
def test_an_update_gives_the_parameters_of_one_device(
    on_mesh, trajectories, mode, sizes
):
    before, want, alone = on_mesh(mode, (1, 1, 1, 1)).step(trajectories)
    _, got, spread = on_mesh(mode, sizes).step(trajectories)
    assert_close(got.trainable, want.trainable, rtol=1e-5)
    moved, moved_there = (
        jax.tree.map(np.subtract, state.trainable, before.trainable)
        for state in (want, got)
    )
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(moved)) > 0
    assert_close(moved_there, moved, rtol=1e-3)  # of weights rounded to 1e-7
    mu = [state.groups[0].opt_state[1].mu for state in (got, want)]
    assert_close(*mu, rtol=2e-5)
    for name in alone:
        np.testing.assert_allclose(
            spread[name], alone[name], rtol=1e-4, atol=1e-6, err_msg=name
        )


def test_rows_of_many_blocks_are_trained_alike_on_a_mesh(
    make_team, on_mesh, trajectories, monkeypatch
):
    """Blocks of 8 tokens, so that rows of 32 have several (models/attention); and
    nothing more crosses."""
    whole = on_mesh("full", (1, 1, 2, 4))
    _, want, _ = whole.step(trajectories)
    monkeypatch.setattr("mappa_jax.models.attention.row_block", lambda _: 8)
    team = make_team(make_config("full"), (1, 1, 2, 4))
    _, got, _ = team.step(trajectories)
    assert_close(got.trainable, want.trainable, rtol=1e-5)
    sent, before = (
        crossing(one.learner._run["update"], one.mesh) for one in (team, whole)
    )
    assert sent == before


def requests(count=14):
    """Of all agents, of many lengths and filters."""
    rng = np.random.default_rng(count)
    for i in range(count):
        options = Options(
            temperature=(1.0, 0.0, 0.7)[i % 3],
            top_k=(0, 5)[i % 2],
            top_p=(1.0, 0.9)[i % 2],
            min_new=0,
            max_new=3 + 3 * i % 14,
            stop_ids=((), (3, 17))[i % 2],
        )
        prompt = rng.integers(0, 40, 1 + i * 5 % 16).astype(np.int32)
        yield i % 4, prompt, options, (0, 1, i, i % 4, 0, 0)


def samples(team):
    async def ask():
        async with team.engine.running(*team.weights()) as engine:
            return await asyncio.gather(*(engine.generate(*r) for r in requests()))

    return asyncio.run(ask())


@pytest.mark.parametrize(("mode", "sizes"), PAIRS)
def test_sampling_gives_the_tokens_of_one_device(on_mesh, mode, sizes):
    alone, spread = samples(on_mesh(mode, (1, 1, 1, 1))), samples(on_mesh(mode, sizes))
    for a, b in zip(alone, spread, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
        assert a.finish == b.finish
    assert len({s.token_ids.tobytes() for s in alone}) > 10


# -- where everything lies ----------------------------------------------------

GOLDEN = Path(__file__).with_name("shardings.json")


def shardings(team):
    """Name -> PartitionSpec of every array that a run keeps, by mode."""
    state = update.state_shapes(team.team, team.config, team.mesh)
    _, frozen = team.weights()
    lowered = team.engine._programs[0].slot_shapes()
    rows = update.Learner(team.team, team.config, team.mesh)._batch_shapes(0)
    trees = {"state": state, "frozen": frozen, "slots": lowered, "rows": rows}
    return {
        f"{kind}/{path_name(path)}": str(leaf.sharding.spec)
        for kind, tree in trees.items()
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def test_the_shardings_are_those_on_record(make_team):
    """Made anew by deleting the file and running this test."""
    found = {}
    for mode in MODES:
        team = make_team(make_config(mode), (2, 2, 2, 1))
        team.__dict__["engine"] = Engine(
            team.team, team.config.sampler, team.mesh, seed=0, stop_ids=2
        )
        found[mode] = shardings(team)
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        pytest.fail(f"{GOLDEN} was missing and has been made; look at it")
    assert found == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize(
    ("changes", "sizes", "said"),
    [
        ({"packing": PackingConfig(32, 12, 6)}, (1, 8, 1, 1), "packing.rows=6"),
        ({"sampler": SamplerConfig(slots=6)}, (1, 8, 1, 1), "sampler.slots=6"),
        ({}, (8, 1, 1, 1), "mesh.agent=8 does not divide the 4 agents"),
        ({}, (1, 1, 1, 8), "mesh.tensor=8 does not divide the model's 4 key"),
    ],
)
def test_what_does_not_divide_is_refused_by_name(make_team, changes, sizes, said):
    with pytest.raises(ConfigError, match=re.escape(f"config.{said}")):
        team = make_team(make_config(**changes), sizes)
        update.Learner(team.team, team.config, team.mesh)
        Engine(team.team, team.config.sampler, team.mesh, seed=0, stop_ids=2)


# -- whose gradient it is -------------------------------------------------------


def gradients(team, trajectories):
    """Of the one group, over a whole batch as one mini-batch; and the batch."""
    state, (_, frozen) = team.state(), team.weights()
    packed = team.learner.assign_credit(state, frozen, team.pack(trajectories))
    (((part,),), policy) = packed.minibatches, team.team[0]
    base = frozen[0] if policy.mode == "lora" else None
    found, _ = team.gradient(
        state.groups[0], state.beta, base, part.batch, np.int32(part.counts)
    )
    return jax.device_get(found), packed


def advantages_of(packed):
    """(agent, number) -> [C] advantages of an action's tokens."""
    ((part,),) = packed.minibatches
    return {
        (s.agent, s.number): part.batch.advantage[s.row][
            s.at : s.at + len(s.action.token_ids)
        ].copy()
        for s in part.slots
    }


def off_the_line(before, after, chosen):
    """How far an agent's advantages have moved, but for its statistics.

    Whitening is one line for all tokens of an agent; it is fitted to the actions that
    are not `chosen`.

    Returns:
      The largest distance from it of any other action's token, and the smallest of a
      chosen one's.
    """
    rest = [key for key in before if key not in chosen]
    x, y = (np.concatenate([found[k] for k in rest]) for found in (before, after))
    slope, offset = np.polyfit(x.astype(np.float64), y, 1)
    away = {k: np.abs(slope * before[k] + offset - after[k]) for k in before}
    own = [away[k].min() for k in chosen]
    return max(away[k].max() for k in rest), min(own, default=np.inf)


@pytest.mark.parametrize(
    "mode", ["full", *(pytest.param(m, marks=pytest.mark.slow) for m in MODES[1:])]
)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_swapping_two_rewards_moves_their_agents_alone(
    on_mesh, trajectories, mode, data
):
    """The gradients of exactly those actions' agents change, and of exactly those
    tokens the advantages relative to their agent's statistics."""
    team = on_mesh(mode, (1, 1, 1, 1))
    flat = [(k, i) for k, t in enumerate(trajectories) for i in range(len(t.actions))]
    one, two = data.draw(
        st.lists(st.sampled_from(flat), min_size=2, max_size=2, unique=True)
    )
    scores = [[v.score for v in t.verdicts] for t in trajectories]
    scores[one[0]][one[1]], scores[two[0]][two[1]] = 2.0, 7.0
    first = [
        trajectory(t.actions, s, k)
        for k, (t, s) in enumerate(zip(trajectories, scores, strict=True))
    ]
    scores[one[0]][one[1]], scores[two[0]][two[1]] = 7.0, 2.0
    second = [
        trajectory(t.actions, s, k)
        for k, (t, s) in enumerate(zip(trajectories, scores, strict=True))
    ]
    touched = {NAMES.index(trajectories[k].actions[i].agent) for k, i in (one, two)}
    grads_a, packed_a = gradients(team, first)
    grads_b, packed_b = gradients(team, second)
    pairs = [*zip(jax.tree.leaves(grads_a), jax.tree.leaves(grads_b), strict=True)]
    for agent in range(len(pairs[0][0])):  # one set of weights in mode shared
        same = all(np.array_equal(a[agent], b[agent]) for a, b in pairs)
        assert same == (mode != "shared" and agent not in touched)
    rewards = np.argwhere(packed_a.actions.reward != packed_b.actions.reward)
    assert {agent for agent, _ in rewards.tolist()} == touched
    assert len(rewards) == 2
    before, after = advantages_of(packed_a), advantages_of(packed_b)
    for key in before:
        if key[0] not in touched:
            np.testing.assert_array_equal(before[key], after[key])
    chosen = {*map(tuple, rewards.tolist())}
    for agent in touched:
        own = [{k: v for k, v in f.items() if k[0] == agent} for f in (before, after)]
        others, swapped = off_the_line(*own, {k for k in chosen if k[0] == agent})
        assert others < 1e-5 < 0.1 < swapped


def test_shared_is_the_sum_of_the_parts(on_mesh, trajectories):
    """With the same weights and data: one policy's gradient is the sum over agents of
    what each would have had."""
    apart, _ = gradients(on_mesh("full", (1, 1, 1, 1)), trajectories)
    shared, _ = gradients(on_mesh("shared", (1, 1, 1, 1)), trajectories)
    total = jax.tree.map(lambda g: g.sum(0, keepdims=True), apart)
    assert_close(shared, total, rtol=1e-5)


# -- what crosses ---------------------------------------------------------------


def crossing(compiled, mesh):
    """Bytes that a device sends in a run of loops of one turn, by mesh axes."""
    module = hlo.parse(compiled.as_text())
    cost = count(module, mesh.size, Expected(turns=(1.0, 1.0, 1.0)))
    sent = collections.Counter()
    for collective, size in cost.sent.items():
        sent[groups.axes_of(collective.members, dict(mesh.shape))] += size
    return sent


@pytest.mark.parametrize("sizes", [(4, 2, 1, 1), (2, 2, 2, 1)])
def test_between_agents_nothing_crosses_but_a_few_numbers(on_mesh, sizes):
    """Agents on parts of the mesh, alone or two of them one after the other: weights,
    gradients and caches stay."""
    team = on_mesh("full", sizes)
    weights = sum(x.nbytes for x in jax.tree.leaves(team.state().groups)) / 4
    update_ = crossing(team.learner._run["update"], team.mesh)
    assert update_["data"] > weights / 8  # the gradient, summed over the rows' devices
    assert update_["agent"] < 1000 < weights / 8
    programs = team.engine._programs[0]._run
    assert crossing(programs["decode"], team.mesh)["agent"] < 2000
    prefill = crossing(programs["prefill/16"], team.mesh)
    assert not [axes for axes in prefill if "agent" in axes]
    assert not prefill or sizes[2] > 1  # weights that are divided have to be fetched


def test_rows_are_prefilled_where_their_slots_lie(on_mesh):
    """With weights that every device holds nothing crosses at all."""
    team = on_mesh("lora", (1, 8, 1, 1))
    assert not crossing(team.engine._programs[0]._run["prefill/16"], team.mesh)
