"""Bytes of main memory, by hand."""

import pytest

from mappa_jax.plan import hlo
from mappa_jax.plan.count import count

BIG, SMALL = 1000 * 128 * 4, 2 * 128 * 4


def moved(entry, computations="", tail=""):
    text = f"HloModule m\n{computations}\nENTRY %e (x: f32[1000,128]) -> f32[1] {{\n"
    lines = "\n".join(f"  {line}" for line in entry.strip().splitlines())
    return count(hlo.parse(f"{text}{lines}\n}}\n"), 1).bytes


X = "%x = f32[1000,128]{1,0} parameter(0)\n%i = s32[] parameter(1)\n"
U = "%u = f32[2,128]{1,0} parameter(2)\n"


def test_elementwise_reads_and_writes_all():
    assert moved(X + "ROOT %y = f32[1000,128]{1,0} tanh(%x)") == 2 * BIG


def test_a_slice_reads_what_it_takes():
    line = "ROOT %y = f32[2,128]{1,0} dynamic-slice(%x, %i, %i)"
    assert moved(X + line) == 2 * SMALL + 8


def test_an_update_in_place_touches_what_it_writes():
    line = "ROOT %y = f32[1000,128]{1,0} dynamic-update-slice(%x, %u, %i, %i)"
    assert moved(X + U + line) == 2 * SMALL


FUSED = """
%f (p: f32[1000,128], q: f32[2,128], j: s32[]) -> f32[1000,128] {
  %p = f32[1000,128]{1,0} parameter(0)
  %q = f32[2,128]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %t = f32[2,128]{1,0} tanh(%q)
  ROOT %d = f32[1000,128]{1,0} dynamic-update-slice(%p, %t, %j, %j)
}
"""


def test_a_fusion_that_updates_in_place_does_too():
    line = "ROOT %y = f32[1000,128]{1,0} fusion(%x, %u, %i), kind=kLoop, calls=%f"
    assert moved(X + U + line, FUSED) == 2 * SMALL + 4


FUSED_SLICE = """
%f (p: f32[1000,128], j: s32[]) -> bf16[2,128] {
  %p = f32[1000,128]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %c = bf16[1000,128]{1,0} convert(%p)
  ROOT %d = bf16[2,128]{1,0} dynamic-slice(%c, %j, %j)
}
"""


def test_a_fusion_that_slices_reads_the_slice_as_it_lies_in_memory():
    line = "ROOT %y = bf16[2,128]{1,0} fusion(%x, %i), kind=kLoop, calls=%f"
    assert moved(X + line, FUSED_SLICE) == SMALL + 4 + SMALL / 2


def test_on_chip_memory_is_free():
    text = X.replace("{1,0}", "{1,0:T(8,128)S(1)}")
    assert moved(text + "ROOT %y = f32[1000,128]{1,0} tanh(%x)") == BIG
    line = "ROOT %y = f32[1000,128]{1,0:S(1)} tanh(%x)"
    assert moved(text + line) == 0


@pytest.mark.parametrize(
    "line",
    [
        "ROOT %y = f32[128000]{0} bitcast(%x)",
        "ROOT %y = (f32[1000,128]{1,0}) tuple(%x)",
        'ROOT %y = f32[9]{0} custom-call(), custom_call_target="AllocateBuffer"',
    ],
)
def test_names_for_what_is_there_move_nothing(line):
    assert moved(X + line) == 0


def test_a_copy_to_on_chip_memory_reads_once():
    line = (
        "%s = (f32[1000,128]{1,0:S(1)}, f32[1000,128]{1,0}, u32[]{:S(2)}) "
        "copy-start(%x)\nROOT %y = f32[1000,128]{1,0:S(1)} copy-done(%s)"
    )
    assert moved(X + line) == BIG


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("ROOT %y = f32[1000,128]{1,0} all-reduce-start(%x)", 2 * BIG),
        (
            "ROOT %y = (f32[1000,128]{1,0}, f32[2000,128]{1,0}) all-gather-start(%x), "
            "replica_groups={{0,1}}",
            3 * BIG,
        ),
        (
            "ROOT %y = ((f32[1000,128]{1,0}), f32[2,128]{1,0:S(1)}, s32[]{:S(2)}) "
            "slice-start(%x)",
            SMALL,
        ),
    ],
)
def test_what_is_started_moves_its_operands_and_results(line, want):
    assert moved(X + line) == want
