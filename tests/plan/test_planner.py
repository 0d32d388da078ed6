"""The run's own programs, compiled from shapes and counted."""

import dataclasses

import pytest

from mappa_jax.config import ConfigError
from mappa_jax.models.attention import row_block
from mappa_jax.models.published import architecture
from mappa_jax.plan import memory, workload

TINY = architecture("random:tiny")


def phase(plan, name):
    return next(p for p in plan.phases if p.name == name)


def test_every_program_of_the_run_is_a_phase(plan):
    names = [p.name for p in plan.phases]
    # The shorter prefill is called by no action of the assumed length.
    assert names == ["decode", "prefill/512", "reference", "update", "credit"]
    assert [p.stage for p in plan.phases] == [
        *("rollout", "rollout"),
        *("credit", "update", "credit"),
    ]
    assert plan.fits and plan.chips == 4


def held(array_bytes, *ways):
    for way in ways:
        array_bytes /= way
    return array_bytes


def test_memory_by_kind_is_what_the_shapes_say(plan):
    cfg, found = TINY, phase(plan, "update").hbm
    norms = cfg.d_model * (2 * cfg.n_layers + 1)
    split = cfg.n_params * 4 / 4  # over fsdp and tensor, float32
    # Three agents and one reference; norms lie whole on every device.
    assert found["params"] == 4 * (split + norms * 4)
    # Two moments of each agent, and one count each.
    assert found["optimizer"] == 3 * 2 * (split + norms * 4) + 3 * 4
    assert found["kv"] == 0
    slots, context = 4, 640
    row = 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * context * 4
    # Three pools; rows over fsdp, heads over tensor.
    assert phase(plan, "decode").hbm["kv"] == 3 * slots * row / 4
    assert phase(plan, "decode").hbm["optimizer"] == found["optimizer"]
    assert phase(plan, "update").hbm["temporaries"] > 0


def test_a_phase_costs_what_the_formula_says(plan):
    """Prefill: products with weights, and score matrices of blocks on and below the
    diagonal; no head."""
    cfg, rows, t = TINY, 4, 512
    weights = cfg.n_params - cfg.vocab_size * cfg.d_model
    seen = (t + row_block(t)) / 2
    attention = 4 * seen * cfg.n_heads * cfg.head_dim * cfg.n_layers
    want = rows * t * (2 * weights + attention) / 4
    assert phase(plan, "prefill/512").cost.matmul["f32"] == want


def test_decoding_turns_its_loops_as_expected(plan):
    found = phase(plan, "decode")
    assert found.use.expected.turns == (8, workload.math.ceil(520 / 128))
    cfg, rows = TINY, 4
    weights = cfg.n_params  # the tied head is a product, the embedding a look-up
    cache = 5 * 128
    attention = 4 * cache * cfg.n_heads * cfg.head_dim * cfg.n_layers
    want = 8 * rows * (2 * weights + attention) / 4
    assert found.cost.matmul["f32"] == want


def test_every_agent_has_its_turns_in_the_forward(plan):
    """The reference's log-probabilities: three lanes in turn, products and attention
    over whole rows, the head over blocks of action tokens."""
    found = phase(plan, "reference")
    cfg, packing = TINY, plan.config.packing
    turns, blocks = found.use.expected.turns
    t, block = packing.row_tokens, row_block(packing.row_tokens)
    each = -(-t // block)
    pairs = each * (each + 1) / 2 * block**2
    weights = cfg.n_params - cfg.vocab_size * cfg.d_model
    attention = 4 * pairs * cfg.n_heads * cfg.head_dim * cfg.n_layers
    rows = packing.rows * (2 * t * weights + attention) / 4
    # A row on each part of fsdp, the vocabulary over tensor; less than a whole block.
    assert (blocks, packing.row_action_tokens) == (1, 64)
    head = 2 * 64 * cfg.vocab_size * cfg.d_model / 2
    assert found.cost.matmul["f32"] == 3 * turns * (rows + head)


def test_the_update_is_about_three_forwards(plan):
    """Kaplan et al. 2020: the backward pass costs two forwards."""
    forward = phase(plan, "reference")
    assert forward.use.expected == phase(plan, "update").use.expected
    share = phase(plan, "update").cost.flops / forward.cost.flops
    assert 2.5 < share < 4.0


def test_collectives_run_along_the_axes_that_split_something(plan):
    axes = {row.axes for p in plan.phases for row in p.traffic}
    assert {"fsdp", "tensor"} <= axes
    assert not [a for a in axes if "agent" in a or "data" in a]


def test_too_small_a_chip_does_not_fit(plan):
    smaller = dataclasses.replace(plan.fabric.chip, usable=2**20)
    fabric = dataclasses.replace(plan.fabric, chip=smaller)
    assert not dataclasses.replace(plan, fabric=fabric).fits
    broken = [dataclasses.replace(p, complete=False) for p in plan.phases]
    assert not dataclasses.replace(plan, phases=broken).fits


def test_what_runs_beside_needs_its_memory_beside(plan_of):
    """The sampler's copy of the weights, its cache, and its temporaries."""
    one = {"mesh.fsdp": 1, "mesh.tensor": 1, "objective.old_logprobs": "recompute"}
    after, beside = (plan_of(one | {"staleness": n}) for n in (0, 1))
    cfg = TINY
    weights = 3 * 4 * (cfg.n_params + cfg.d_model * (2 * cfg.n_layers + 1))
    rolls = [p for p in beside.phases if p.stage == "rollout"]
    more = {
        "params": weights,
        "kv": phase(beside, "decode").hbm["kv"],
        "temporaries": max(p.hbm["temporaries"] for p in rolls),
    }
    for name in ("update", "credit", "reference"):
        found, before = phase(beside, name).hbm, phase(after, name).hbm
        assert found == {k: before[k] + more.get(k, 0) for k in before}
    found, before = (phase(p, "decode").hbm["params"] for p in (beside, after))
    assert found == before + weights


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_weights_of_int8_are_had_besides(plan_of, mode):
    plans = [
        plan_of(
            {
                "mode": mode,
                "sampler.weights": kind,
                "objective.old_logprobs": "recompute",
            },
            ["decode", "round"],
        )
        for kind in ("compute", "int8")
    ]
    plain, small = (phase(plan, "decode").hbm["params"] for plan in plans)
    assert plain < small < 1.5 * plain
    found = phase(plans[1], "round").hbm
    # What is rounded counts once, what that gives is a result, and no slots exist yet.
    assert found["params"] == plain and found["kv"] == 0
    assert found["other"] < plain
    assert [p.stage for p in plans[1].phases] == ["rollout", "rollout"]


def test_only_some_programs(plan_of):
    found = plan_of(only=("credit",))
    assert [p.name for p in found.phases] == ["credit"]


def test_a_mesh_that_does_not_fit_the_model_is_refused(plan_of):
    with pytest.raises(ConfigError, match=r"config.packing.rows"):
        plan_of({"packing.rows": 3})
    with pytest.raises(ConfigError, match=r"config.mesh.tensor=4"):
        plan_of({"mesh.tensor": 4, "mesh.fsdp": 1})


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("state.groups[0].trainable['embed']", "params"),
        ("state.groups[0].opt_state[1].mu['embed']", "optimizer"),
        ("trainable['q']['a']", "params"),
        ("frozen['layers']['q']['kernel']", "params"),
        ("bases[0]['embed']", "params"),
        ("slots.cache.k", "kv"),
        ("slots.request.top_k", "other"),
        ("batch.tokens", "other"),
        ("seed", "other"),
    ],
)
def test_kinds_of_arguments(path, kind):
    assert memory.kind_of(path) == kind
