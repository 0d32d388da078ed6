"""The text of a compiled program, read."""

import jax
import jax.numpy as jnp
import pytest

from mappa_jax.plan import hlo

TEXT = """HloModule jit_f, input_output_alias={ {1}: (0, {}, may-alias) }, more

%inner (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %t = f32[4]{0} tanh(%p), metadata={op_name="jit(f)/a[\\'x\\']/tanh"}
}

ENTRY %main.1 (a: f32[4], b: bf16[3,5]) -> (f32[4], f32[4]) {
  %b = bf16[3,5]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %a = f32[4]{0:T(256)} parameter(0), metadata={op_name="state.w"}
  %f.1 = f32[4]{0} fusion(%a), kind=kLoop, calls=%inner
  %loop = (s32[], /*index=1*/f32[4]{0}) custom-call(%f.1, %b), custom_call_target="x"
  %got = f32[4]{0} get-tuple-element(%loop), index=1
  ROOT %out = (f32[4]{0}, f32[4]{0}) tuple(%f.1, %got)
}
"""


@pytest.fixture(scope="module")
def module():
    return hlo.parse(TEXT)


def test_computations_and_their_roots(module):
    assert set(module.computations) == {"inner", "main.1"}
    assert module.entry.name == "main.1"
    assert module.entry.root.opcode == "tuple"
    assert [p.name for p in module.entry.parameters] == ["a", "b"]


def test_a_line_has_shape_operands_and_attributes(module):
    fusion = module.entry["f.1"]
    assert (fusion.opcode, fusion.operands) == ("fusion", ("a",))
    assert fusion.called("calls") == "inner"
    assert fusion.attribute("kind") == "kLoop"
    assert fusion.attribute("no_such") is None
    assert [u.name for u in module.entry.users["f.1"]] == ["loop", "out"]
    assert [a.dims for a in module.entry["loop"].shape] == [(), (4,)]
    assert module.computations["inner"].root.op_name == "jit(f)/a['x']/tanh"


def test_the_memory_space_and_the_padding_come_from_the_layout(module):
    (b,) = module.entry["b"].shape
    assert (b.space, b.size, b.bytes) == (1, 15, 30)
    assert b.padded_bytes == 8 * 128 * 2  # one tile
    (a,) = module.entry["a"].shape
    assert (a.space, a.bytes, a.padded_bytes) == (0, 16, 1024)


@pytest.mark.parametrize(
    ("text", "elements", "size", "padded"),
    [
        ("f32[3,36,2560,16]{2,3,1,0:T(8,128)}", 4423680, 17694720, 17694720),
        ("f32[3,36,2560,16]{3,2,1,0:T(8,128)}", 4423680, 17694720, 8 * 17694720),
        ("bf16[36,128]{1,0:T(8,128)(2,1)}", 4608, 9216, 40 * 128 * 2),
        ("pred[7]", 7, 7, 7),
        ("s4[9]{0}", 9, 5, 5),
        ("f8e4m3fn[10]{0}", 10, 10, 10),
        ("s32[]{:T(128)}", 1, 4, 4),
    ],
)
def test_sizes(text, elements, size, padded):
    (array,) = hlo.arrays(text)
    assert (array.size, array.bytes, array.padded_bytes) == (elements, size, padded)


def test_an_element_type_that_is_not_known_is_named():
    with pytest.raises(hlo.HloError, match="q7"):
        _ = hlo.Array("q7", (1,)).bytes


def test_what_is_no_program_is_refused():
    with pytest.raises(hlo.HloError, match="ENTRY"):
        hlo.parse("HloModule nothing\n")


def test_what_xla_writes_today_is_read():
    def f(x, n):
        x = jax.lax.fori_loop(0, n, lambda i, c: jnp.tanh(c @ c), x)
        return jax.lax.cond(n > 3, lambda a: a * 2, jnp.exp, x).sum()

    shapes = jax.ShapeDtypeStruct((8, 8), jnp.float32), jax.ShapeDtypeStruct((), int)
    module = hlo.parse(jax.jit(f).lower(*shapes).compile().as_text())
    opcodes = {i.opcode for c in module.computations.values() for i in c}
    assert {"while", "dot", "conditional", "parameter"} <= opcodes
    assert [p.op_name for p in module.entry.parameters] == ["x", "n"]
