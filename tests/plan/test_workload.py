"""Calls and turns of an iteration, by hand."""

import dataclasses

import pytest

from mappa_jax.assemble import make_team, seat_agents
from mappa_jax.config import ConfigError, resolve
from mappa_jax.models.published import architecture
from mappa_jax.parallel import mesh as meshlib
from mappa_jax.plan import workload


@pytest.fixture
def setting(tiny):
    """(changes) -> (config, team): 4 trajectories; solver and verifier act once, the
    coder twice: 16 actions."""

    def make(changes=None):
        config = seat_agents(resolve(tiny(changes)))
        shapes = [architecture(a.model) for a in config.agents.values()]
        return config, make_team(config, shapes, meshlib.make_mesh(config.mesh))

    return make


def test_every_agent_takes_all_its_turns(setting):
    config, _ = setting()
    assert workload.rollouts(config) == 4
    assert workload.actions(config) == [4, 8, 4]
    assert workload.steps(config) == 2  # 8 actions of the coder, 4 an update


def test_lengths_are_the_limits_unless_said_otherwise(setting):
    config, _ = setting()
    assert workload.assumed(config) == workload.Load(512, (16, 16, 16))
    assert workload.assumed(config, 100, 9) == workload.Load(100, (9, 9, 9))
    assert workload.assumed(config, 100, 99).new == (16, 16, 16)
    with pytest.raises(ConfigError, match=r"513: sampler.prompt_buckets .* for 512"):
        workload.assumed(config, 513)


def test_one_pool_per_agent_is_decoded_in_turn(setting):
    config, (policy,) = setting({"sampler.slots": 8, "mesh.data": 1, "mesh.fsdp": 8})
    use = workload.decode(config, policy, workload.Load(300, (16, 16, 16)))
    # 4 rows at a time, 2 chunks of 8 tokens: 1, 2 and 1 rounds.
    assert use.calls == 2 * (1 + 2 + 1)
    # The cache is read up to 300 + 8 tokens, in blocks of 128.
    assert use.expected.turns == (8, 3)
    assert use.expected.branch == 0


def test_agents_on_slices_of_their_own_are_decoded_together(setting):
    config, (policy,) = setting({"mode": "lora", "agents.coder.max_turns": 1})
    load = workload.assumed(config)
    alone = workload.decode(config, policy, load).calls
    assert alone == 2 * 3
    few = [2.0, 3.0, 4.0, 5.0]
    # Two slices, two pools: agents 0 and 1 on the first slice, 2 and 3 on the second.
    four = Stand(slices=2, pools=2, agents=4)
    assert workload._in_turn(four, few) == max(2, 4) + max(3, 5)
    assert workload._in_turn(Stand(4, 1, 4), few) == 5
    assert workload._in_turn(Stand(2, 1, 4), few) == max(2 + 3, 4 + 5)
    assert workload._in_turn(Stand(1, 1, 4), few) == sum(few)


class Stand:
    """A policy on a mesh that there is no room for here."""

    def __init__(self, slices, pools, agents):
        self.layout, self.slices = self, slices
        self.pools, self.agents = pools, agents


def test_filters_make_both_branches_possible(setting):
    config, (policy,) = setting(
        {"agents.coder.top_k": 5, "objective.old_logprobs": "recompute"}
    )
    load = workload.assumed(config)
    assert workload.decode(config, policy, load).expected.branch is None


def test_prompts_are_prefilled_by_full_calls(setting):
    config, (policy,) = setting({"sampler.prefill_rows": 3, "packing.rows": 8})
    # Rounded up to the 8 devices that rows are spread over.
    use = workload.fill(config, policy, workload.assumed(config), "prefill", 512)
    assert use.calls == 1 + 1 + 1


def test_long_prompts_come_in_pieces(setting):
    """Of 609 tokens: 512, then 64 and the padded rest."""
    config, team = setting({"sampler.extend_buckets": (40, 64)})
    context = config.sampler.context
    assert workload.assumed(config).prompt == context - 16
    with pytest.raises(ConfigError, match=rf"sampler.context leaves .* {context - 16}"):
        workload.assumed(config, context - 15)
    load = workload.Load(609, (16, 16, 16))
    pieces = [("prefill", 512), ("extend", 64), ("extend", 40)]
    assert workload.pieces(config, 609) == pieces
    names = ["prefill/256", "prefill/512", "extend/40", "extend/64"]
    uses = workload.uses(config, team, load, names)
    assert [bool(use.calls) for use in uses.values()] == [False, True, True, True]
    block = config.sampler.cache_block
    assert uses["extend/64"].expected.turns == (-(-576 // block),)
    twice = workload.fill(
        config, team[0], workload.Load(512 + 128, load.new), "extend", 64
    )
    assert twice.calls == 2 * uses["extend/64"].calls


def test_microbatches_hold_as_many_actions_as_fit(setting):
    config, (policy,) = setting({"packing.rows": 8, "packing.row_tokens": 1280})
    load = workload.Load(400, (16, 16, 16))
    # 415 tokens each, 3 in a row: 4 actions of an agent take 2 rows of 8, in each of
    # two steps; in the second only the coder has any, and the other lanes none.
    assert workload.microbatches(config, policy, load) == (1 + 1 / 3) / 2
    lora, (shared,) = setting({"mode": "lora", "packing.row_tokens": 1280})
    # One lane: 3 x 2 rows by 2 in the first step, 1 x 2 in the second.
    assert workload.microbatches(lora, shared, load) == (3 + 1) / 2
    with pytest.raises(ConfigError, match=r"packing.row_tokens=640"):
        tight = workload.Load(700, (16, 16, 16))
        workload.microbatches(setting()[0], policy, tight)


def test_of_lanes_side_by_side_the_longest_counts(setting):
    """Four agents on two slices: 0 and 2 go through the loop together, then 1 and 3."""
    config, _ = setting({"packing.rows": 1, "packing.row_tokens": 640})
    agent = config.agents["solver"]
    few, many = agent, dataclasses.replace(agent, max_turns=2, max_new_tokens=64)
    agents = {"a": few, "b": few, "c": many, "d": few}
    config = dataclasses.replace(config, agents=agents)
    load = workload.Load(400, (16, 16, 64, 16))
    # An action fills a row; 4 of them, and 4 more of "c" in a second step.
    policy = Lanes(slices=2, lanes=4)
    assert workload._lanes(config, policy, load) == [[4, 4], [4, 0]]
    assert workload.microbatches(config, policy, load) == (4 + 4 + 4 + 0) / 4
    alone = Lanes(slices=1, lanes=4)
    assert workload._lanes(config, alone, load) == [[4, 4, 4, 4], [0, 0, 4, 0]]
    assert workload.microbatches(config, alone, load) == 20 / 8


def test_each_lane_has_its_own_share_of_the_head(setting, monkeypatch):
    monkeypatch.setattr(workload, "HEAD_BLOCK", 16)
    config, _ = setting({"packing.rows": 1, "packing.row_tokens": 640})
    agent = config.agents["solver"]
    agents = {"a": agent, "b": dataclasses.replace(agent, max_turns=3)}
    config = dataclasses.replace(config, agents=agents)
    load = workload.Load(400, (16, 64))
    # 4 micro-batches of one block; 3 times 4 of four blocks.
    found = workload.head_blocks(config, Lanes(slices=1, lanes=2), load)
    assert found == (4 * 1 + 12 * 4) / 16
    assert workload.head_blocks(config, Lanes(slices=2, lanes=2), load) == 4


class Lanes:
    """A policy of mode "full" on a mesh that there is no room for here."""

    def __init__(self, slices, lanes):
        self.layout, self.slices, self.ways = self, slices, 1
        self.lanes, self.members = lanes, tuple(range(lanes))

    def lane_of(self, agent):
        return agent


def test_every_program_has_a_use(setting):
    config, team = setting()
    load = workload.assumed(config, 300)
    names = ["prefill/384", "prefill/512", "decode", "reference", "update", "credit"]
    uses = workload.uses(config, team, load, names)
    assert uses["prefill/384"].calls and not uses["prefill/512"].calls
    assert uses["update"].calls == uses["reference"].calls == 2
    assert uses["credit"].calls == 1
    with pytest.raises(KeyError, match="dance"):
        workload.uses(config, team, load, ["dance"])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("prefill/512", ("prefill", 512, 0)),
        ("prefill/512/1", ("prefill", 512, 1)),
        ("extend/64/1", ("extend", 64, 1)),
        ("decode", ("decode", 0, 0)),
        ("reference/2", ("reference", 0, 2)),
    ],
)
def test_names_of_programs(name, parts):
    assert workload.parts(name) == parts
