"""What is counted, against XLA's own count, against formulas, and by hand."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mappa_jax.models import hf
from mappa_jax.models.decoder import Decoder
from mappa_jax.models.registry import RANDOM_SIZES
from mappa_jax.plan import arithmetic, hlo
from mappa_jax.plan.count import Expected, count
from mappa_jax.plan.groups import axes_of

B16 = jnp.bfloat16


def shape(*dims, dtype=jnp.float32, spec=None, mesh=None):
    where = NamedSharding(mesh, spec) if mesh is not None else None
    return jax.ShapeDtypeStruct(dims, dtype, sharding=where)


def compiled(function, *shapes, **how):
    return jax.jit(function, **how).lower(*shapes).compile()


NONE = Expected()


def counted(function, *shapes, expected=NONE, devices=1, **how):
    text = compiled(function, *shapes, **how).as_text()
    return count(hlo.parse(text), devices, expected)


LOOP_FREE = {
    "product": (lambda a, b: a @ b, shape(128, 256), shape(256, 64)),
    "batched": (
        lambda a, b: jnp.einsum("bij,bjk->bik", a, b),
        shape(4, 64, 32),
        shape(4, 32, 16),
    ),
    "bfloat16": (
        lambda a, b: a @ b,
        shape(64, 32, dtype=B16),
        shape(32, 64, dtype=B16),
    ),
    "feed-forward": (
        lambda x, w, v: jax.nn.silu(x @ w) @ v,
        shape(64, 32),
        shape(32, 96),
        shape(96, 32),
    ),
    "its gradient": (
        jax.grad(lambda w, x, v: (jnp.tanh(x @ w) @ v).sum()),
        shape(32, 96),
        shape(64, 32),
        shape(96, 32),
    ),
    "softmax": (lambda x: jax.nn.softmax(x, -1), shape(64, 128)),
    "slice": (
        lambda x, i: jax.lax.dynamic_slice(x, (i, 0), (2, 256)) * 2,
        shape(640, 256),
        shape(dtype=jnp.int32),
    ),
    "convolution": (
        lambda x, k: jax.lax.conv_general_dilated(
            x, k, (1, 1), [(1, 1), (2, 2)], lhs_dilation=(2, 3), rhs_dilation=(1, 2)
        ),
        shape(2, 3, 16, 16),
        shape(8, 3, 3, 3),
    ),
}


@pytest.mark.parametrize("name", LOOP_FREE)
def test_without_loops_the_count_is_xlas(name):
    program = compiled(LOOP_FREE[name][0], *LOOP_FREE[name][1:])
    theirs, ours = program.cost_analysis(), count(hlo.parse(program.as_text()), 1)
    assert ours.flops == pytest.approx(theirs["flops"], rel=1e-6)
    assert ours.bytes == pytest.approx(theirs["bytes accessed"], rel=1e-6)
    assert ours.transcendental == theirs.get("transcendentals", 0)
    assert not ours.unknown


# -- loops -------------------------------------------------------------------

W = shape(16, 16)
ONE_PRODUCT = 2 * 16**3


def scanned(length):
    def f(x, w):
        return jax.lax.scan(lambda c, _: (jnp.sin(c @ w), None), x, None, length)[0]

    return f


def repeated(x, w, n):
    return jax.lax.fori_loop(0, n, lambda i, c: jnp.sin(c @ w), x)


def test_xla_counts_the_body_of_a_loop_once():
    """Why this module exists; if XLA learns to multiply, it can go."""
    theirs = compiled(scanned(7), W, W).cost_analysis()["flops"]
    assert theirs < 2 * ONE_PRODUCT


def test_a_loop_of_known_length_is_multiplied_out():
    cost = counted(scanned(7), W, W)
    assert cost.matmul == {"f32": 7 * ONE_PRODUCT}
    assert cost.transcendental == 7 * 16 * 16


@pytest.mark.parametrize("turns", [0.0, 3.0, 2.5])
def test_the_turns_of_an_argument_are_the_callers(turns):
    cost = counted(repeated, W, W, shape(dtype=jnp.int32), expected=Expected((turns,)))
    assert cost.matmul.get("f32", 0) == turns * ONE_PRODUCT


def test_turns_that_nobody_gave_are_an_error_that_names_the_loop():
    with pytest.raises(hlo.HloError, match=r"jit\(repeated\)/while"):
        counted(repeated, W, W, shape(dtype=jnp.int32))


def test_nested_loops_multiply_and_known_ones_take_no_turns_from_the_caller():
    def f(x, w, n, m):
        def outer(i, c):
            c = scanned(5)(c, w)
            return jax.lax.fori_loop(0, m, lambda j, d: jnp.sin(d @ w), c)

        return jax.lax.fori_loop(0, n, outer, x)

    n = shape(dtype=jnp.int32)
    cost = counted(f, W, W, n, n, expected=Expected((3, 4)))
    assert cost.matmul == {"f32": 3 * (5 + 4) * ONE_PRODUCT}


@pytest.mark.parametrize("hints", [True, False])
def test_turns_that_lie_in_an_array_are_the_callers_too(hints):
    """Lanes one after another, each with a count of its own."""

    def f(x, w, counts):
        return jax.lax.map(lambda lane: repeated(x, *lane), (w, counts))

    shapes = W, shape(3, *W.shape), shape(3, dtype=jnp.int32)
    text = compiled(f, *shapes).as_text()
    text = text if hints else without_hints(text)
    cost = count(hlo.parse(text), 1, Expected((2.5,)))
    assert cost.matmul == {"f32": 3 * 2.5 * ONE_PRODUCT}


def without_hints(text):
    """As backends write it that do not say known_trip_count."""
    return re.sub(r"backend_config=\{[^\n]*", "", text)


@pytest.mark.parametrize("length", [1, 7, 36])
def test_the_length_is_found_in_the_condition_where_xla_does_not_say_it(length):
    text = without_hints(compiled(scanned(length), W, W).as_text())
    assert "known_trip_count" not in text
    assert count(hlo.parse(text), 1).matmul == {"f32": length * ONE_PRODUCT}


def test_a_counter_may_be_copied_before_it_is_handed_on():
    text = without_hints(compiled(scanned(7), W, W).as_text())
    handed_on = re.compile(r"^(  ROOT .* tuple\()%wrapped_add,", re.MULTILINE)
    text, found = handed_on.subn(r"  %one = s32[] copy(%wrapped_add)\n\1%one,", text)
    assert found == 1
    assert count(hlo.parse(text), 1).matmul == {"f32": 7 * ONE_PRODUCT}


def test_a_condition_on_an_argument_is_not_taken_for_a_known_one():
    text = without_hints(compiled(repeated, W, W, shape(dtype=jnp.int32)).as_text())
    with pytest.raises(hlo.HloError, match="turns"):
        count(hlo.parse(text), 1)


def test_a_scan_reads_a_slice_of_the_stack_in_each_turn():
    def f(x, ws):
        return jax.lax.scan(lambda c, w: (c @ w, None), x, ws)[0]

    cost = counted(f, shape(16, 64), shape(50, 64, 64))
    stack = 50 * 64 * 64 * 4
    assert stack < cost.bytes < 5 * stack  # and not 50 times the stack


def test_a_branch_is_the_one_expected_or_else_the_costliest():
    def f(x, w, n):
        return jax.lax.cond(n > 0, lambda: x @ w, lambda: x)

    shapes = W, W, shape(dtype=jnp.int32)
    assert counted(f, *shapes).matmul == {"f32": ONE_PRODUCT}
    assert counted(f, *shapes, expected=Expected(branch=0)).matmul == {}
    assert counted(f, *shapes, expected=Expected(branch=1)).matmul == {
        "f32": ONE_PRODUCT
    }


# -- a transformer -----------------------------------------------------------


def test_a_decoder_costs_what_the_formula_says():
    """2 flops per weight and token, and 4 T H per query, head and layer (no mask is
    exploited), after Kaplan et al. 2020 (arXiv 2001.08361, table 1)."""
    cfg, n, t = RANDOM_SIZES["small"], 3, 160
    tokens = shape(n, t, dtype=jnp.int32)

    def f(params, tokens, positions, ends):
        return Decoder(cfg).apply({"params": params}, tokens, positions, ends)[0]

    cost = counted(f, hf.param_shapes(cfg), tokens, tokens, tokens)
    weights = cfg.n_params - cfg.vocab_size * cfg.d_model
    attention = 4 * t * cfg.n_heads * cfg.head_dim * cfg.n_layers
    assert cost.matmul["f32"] == n * t * (2 * weights + attention)


def program(line, *parameters):
    """A program of one instruction on parameters of these shapes."""
    given = [f"  %p{i} = {s} parameter({i})" for i, s in enumerate(parameters)]
    lines = "\n".join([*given, f"  ROOT %out = {line}"])
    return hlo.parse(f"HloModule m\n\nENTRY %e () -> f32[] {{\n{lines}\n}}\n")


def test_a_product_that_a_gpu_library_does():
    config = (
        '{"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":'
        '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}'
    )
    line = (
        "(bf16[64,32]{1,0}, s8[4194304]{0}) custom-call(%p0, %p1), "
        f'custom_call_target="__cublas$gemm", backend_config={config}'
    )
    found = count(program(line, "bf16[64,16]{1,0}", "bf16[16,32]{1,0}"), 1)
    assert found.matmul == {"bf16": 2 * 64 * 16 * 32}


def test_a_kernel_costs_what_its_author_says():
    config = (
        '{"custom_call_config":{"body":"x","cost_estimate":'
        '{"flops":"1000","transcendentals":"7","bytes_accessed":"99"}}}'
    )
    line = (
        'f32[8]{0} custom-call(%p0), custom_call_target="tpu_custom_call", '
        f"backend_config={config}"
    )
    found = count(program(line, "f32[8]{0}"), 1)
    assert (found.matmul, found.transcendental) == ({"f32": 1000}, 7)


def test_a_custom_call_that_cannot_be_seen_is_named():
    line = 'f32[8]{0} custom-call(%p0), custom_call_target="secret"'
    found = count(program(line, "f32[8]{0}"), 1)
    assert found.unknown == {"secret"} and found.flops == 0
    assert found.bytes == 64


# -- convolutions ------------------------------------------------------------


def brute_force(size, taps, results, stride, low, holes, gap):
    places = [s * holes for s in range(size)]
    pairs = itertools.product(range(taps), range(results))
    return sum(r * stride + t * gap - low in places for t, r in pairs)


@pytest.mark.parametrize("seed", range(12))
def test_only_pairs_that_meet_an_element_count(seed):
    rng = np.random.default_rng(seed)
    keys = ("size", "taps", "results", "stride", "low", "holes", "gap")
    most = (7, 5, 12, 4, 6, 4, 3)
    case = {k: int(rng.integers(1, m + 1)) for k, m in zip(keys, most, strict=True)}
    case["low"] -= 2  # negative padding cuts
    assert arithmetic._valid(**case) == brute_force(**case)


def test_a_batched_product_written_as_a_convolution():
    """XLA:TPU's way to multiply four heads: a window of four over padding of three."""
    text = """HloModule m

ENTRY %e (q: bf16[64,4,128], k: bf16[96,128,1]) -> bf16[96,64,4] {
  %q = bf16[64,4,128]{2,1,0} parameter(0)
  %k = bf16[96,128,1]{1,0,2} parameter(1)
  ROOT %c = bf16[96,64,4]{1,0,2} convolution(%k, %q), window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=bf0_o0i->bf0
}
"""  # noqa: E501
    cost = count(hlo.parse(text), 1)
    assert cost.matmul == {"bf16": 2 * 96 * 64 * 4 * 128}


# -- collectives -------------------------------------------------------------

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.asarray(jax.devices()).reshape(2, 2, 2), tuple(MESH))


def sent(cost):
    """(kind, axes) -> bytes."""
    out = {}
    for one, size in cost.sent.items():
        key = (one.kind, axes_of(one.members, MESH))
        out[key] = out.get(key, 0) + size
    return out


def test_gathering_weights(mesh):
    """[64, 32] float32 in two parts: each device sends its 4096 bytes once."""
    x = shape(8, 64, spec=P("data"), mesh=mesh)
    w = shape(64, 32, spec=P("fsdp"), mesh=mesh)
    whole = NamedSharding(mesh, P("data"))

    def f(x, w):
        w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
        return x @ w

    cost = counted(f, x, w, devices=8, out_shardings=whole)
    assert sent(cost) == {("all-gather", "fsdp"): 64 * 32 * 4 / 2}


def test_summing_over_a_split_contraction(mesh):
    """[16, 48] float32 over a ring of two: 2 x 1/2 of 3072 bytes."""
    x = shape(16, 64, spec=P(None, "tensor"), mesh=mesh)
    w = shape(64, 48, spec=P("tensor"), mesh=mesh)
    where = NamedSharding(mesh, P())
    cost = counted(lambda a, b: a @ b, x, w, devices=8, out_shardings=where)
    assert sent(cost) == {("all-reduce", "tensor"): 2 * 0.5 * 16 * 48 * 4}
    assert cost.matmul == {"f32": 2 * 16 * 48 * 32}  # a device's half


def test_summing_over_two_axes_at_once(mesh):
    """A ring of four: 2 x 3/4 of 128 bytes."""
    x = shape(64, 32, spec=P(("data", "fsdp")), mesh=mesh)
    where = NamedSharding(mesh, P())
    cost = counted(lambda a: a.sum(0), x, devices=8, out_shardings=where)
    assert sent(cost) == {("all-reduce", "data+fsdp"): 2 * 0.75 * 32 * 4}


def test_a_collective_in_a_loop_counts_every_turn(mesh):
    x = shape(16, 64, spec=P(None, "tensor"), mesh=mesh)
    w = shape(64, 64, spec=P("tensor"), mesh=mesh)
    split = NamedSharding(mesh, P(None, "tensor"))

    def f(x, w):
        def turn(c, _):
            c = jax.lax.with_sharding_constraint(c @ w, NamedSharding(mesh, P()))
            return jax.lax.with_sharding_constraint(c, split), None

        return jax.lax.scan(turn, x, None, 6)[0]

    cost = counted(f, x, w, devices=8, out_shardings=split)
    assert sent(cost)["all-reduce", "tensor"] == 6 * 2 * 0.5 * 16 * 64 * 4
    (calls,) = [n for c, n in cost.calls.items() if c.kind == "all-reduce"]
    assert calls == 6


ASYNC = """HloModule m

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%wrapped (p: f32[8,16]) -> f32[4,16] {
  %p = f32[8,16]{1,0} parameter(0)
  ROOT %rs = f32[4,16]{1,0} reduce-scatter(%p), replica_groups={{0,1}}, to_apply=%sum
}

ENTRY %e (x: f32[8,16]) -> f32[16,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %g = (f32[8,16]{1,0}, f32[16,16]{1,0}) all-gather-start(%x), replica_groups={{0,1}}
  %r = f32[8,16]{1,0} all-reduce-start(%x), replica_groups=[1,2]<=[2], to_apply=%sum
  %c = (f32[8,16]{1,0}, f32[8,16]{1,0}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %a = ((f32[8,16]{1,0}), f32[4,16]{1,0}, s32[]) async-start(%x), calls=%wrapped
  %ad = f32[4,16]{1,0} async-done(%a), calls=%wrapped
  %cd = f32[8,16]{1,0} collective-permute-done(%c)
  %rd = f32[8,16]{1,0} all-reduce-done(%r)
  ROOT %gd = f32[16,16]{1,0} all-gather-done(%g)
}
"""  # noqa: E501


def test_a_pair_of_start_and_done_counts_once():
    cost = count(hlo.parse(ASYNC), 2)
    size = 8 * 16 * 4
    assert {c.kind: v for c, v in cost.sent.items()} == {
        "all-gather": size,
        "all-reduce": 2 * size / 2,
        "collective-permute": size,
        "reduce-scatter": size / 2,
    }
    assert set(cost.calls.values()) == {1.0}


def test_a_group_of_one_sends_nothing():
    text = ASYNC.replace("{{0,1}}", "{{0},{1}}").replace("[1,2]<=[2]", "[2,1]<=[2]")
    kinds = {c.kind for c in count(hlo.parse(text), 2).sent}
    assert kinds == {"collective-permute"}


SPREAD = """HloModule m

%start (p: f32[8,16]) -> (f32[8,16], f32[16,16], u32[]) {
  %p = f32[8,16]{1,0} parameter(0)
  %g = f32[16,16]{1,0} all-gather(%p), channel_id=6, replica_groups={{0,1}}, frontend_attributes={chain_id="0"}
  ROOT %s = (f32[8,16]{1,0}, f32[16,16]{1,0}, u32[]{:S(2)}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%step (q: f32[8,16], r: f32[16,16], x: f32[4]) -> (f32[4], f32[8,16], f32[16,16]) {
  %q = f32[8,16]{1,0} parameter(0)
  %r = f32[16,16]{1,0} parameter(1)
  %x = f32[4]{0} parameter(2)
  %t = f32[4]{0} tanh(%x)
  %g2 = f32[16,16]{1,0} all-gather(%q), channel_id=6, replica_groups={{0,1}}, frontend_attributes={chain_id="0"}
  ROOT %o = (f32[4]{0}, f32[8,16]{1,0}, f32[16,16]{1,0}) tuple(%t, %q, %g2)
}

%done (u: f32[8,16], v: f32[16,16]) -> f32[16,16] {
  %u = f32[8,16]{1,0} parameter(0)
  %v = f32[16,16]{1,0} parameter(1)
  %g3 = f32[16,16]{1,0} all-gather(%u), channel_id=6, replica_groups={{0,1}}, frontend_attributes={chain_id="0"}
  ROOT %d = f32[16,16]{1,0} custom-call(%u, %v, %g3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %e (a: f32[8,16], b: f32[4]) -> f32[16,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[4]{0} parameter(1)
  %f1 = (f32[8,16]{1,0}, f32[16,16]{1,0}, u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%start
  %a1 = f32[8,16]{1,0} get-tuple-element(%f1), index=0
  %r1 = f32[16,16]{1,0} get-tuple-element(%f1), index=1
  %f2 = (f32[4]{0}, f32[8,16]{1,0}, f32[16,16]{1,0}) fusion(%a1, %r1, %b), kind=kOutput, calls=%step
  %a2 = f32[8,16]{1,0} get-tuple-element(%f2), index=1
  %r2 = f32[16,16]{1,0} get-tuple-element(%f2), index=2
  ROOT %f3 = f32[16,16]{1,0} fusion(%a2, %r2), kind=kCustom, calls=%done
}
"""  # noqa: E501


def test_a_collective_that_is_spread_over_fusions_counts_once():
    """XLA:TPU lets other work run between its steps, and names it in each of them."""
    cost = count(hlo.parse(SPREAD), 2)
    ((one, size),) = cost.sent.items()
    assert (one.kind, size) == ("all-gather", 8 * 16 * 4)
    assert cost.calls[one] == 1
    assert cost.transcendental == 4
    # What is gathered is read once and written once; the step moves its own values.
    assert cost.bytes == 8 * 16 * 4 + 16 * 16 * 4 + 2 * 4 * 4
