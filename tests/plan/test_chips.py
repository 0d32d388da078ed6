"""Slices by name, and the table of chips."""

import pytest

from mappa_jax.config import ConfigError
from mappa_jax.plan.chips import CHIPS, GIB, parse_slice


@pytest.mark.parametrize(
    ("text", "name", "chips", "accelerator"),
    [
        ("v5e:4x4", "v5e:4x4", 16, "v5litepod-16"),
        ("v5e-8", "v5e:2x4", 8, "v5litepod-8"),
        ("v5e-256", "v5e:16x16", 256, "v5litepod-256"),
        ("v6e-16", "v6e:4x4", 16, "v6e-16"),
        ("v5p:2x2x2", "v5p:2x2x2", 8, "v5p-16"),  # named by cores, two a chip
        ("v5p-8", "v5p:2x2x1", 4, "v5p-8"),
        ("v4-16", "v4:2x2x2", 8, "v4-16"),
    ],
)
def test_names(text, name, chips, accelerator):
    found = parse_slice(text)
    assert (found.name, found.chips) == (name, chips)
    assert found.accelerator_type == accelerator


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v9x:2x2", "v4, v5e, v5p, v6e"),
        ("h100", "expected"),
        ("v5e-24", "v5e-16"),
        ("v5e:2x2x2", "2 dimensions"),
        ("v5p:4x4", "3 dimensions"),
    ],
)
def test_what_is_no_slice_is_refused_with_what_there_is(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_slice(text)


def test_rings_close_where_the_book_says():
    assert [parse_slice("v5e:8x16").ring(i) for i in (0, 1)] == [False, True]
    assert [parse_slice("v5p:2x4x4").ring(i) for i in range(3)] == [False, True, True]


@pytest.mark.parametrize("name", CHIPS)
def test_every_chip_is_complete_and_plausible(name):
    chip = CHIPS[name]
    assert chip.usable <= chip.memory
    assert chip.memory - chip.usable < 2 * GIB
    assert chip.peak("bf16") == chip.peak("f32") > chip.peak("f32:highest")
    assert 100 < chip.peak("bf16") / chip.bandwidth < 1000  # flops per byte
    assert chip.link < chip.bandwidth
    assert 0 < chip.price.spot < chip.price.on_demand
    assert chip.price.region and chip.price.read
