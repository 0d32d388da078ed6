"""Seconds and bounds, by hand."""

import numpy as np
import pytest

from mappa_jax.plan import roofline
from mappa_jax.plan.chips import CHIPS, Chip, Slice
from mappa_jax.plan.count import Collective, Cost
from mappa_jax.plan.roofline import Fabric

CHIP = Chip(
    "toy",
    memory=1e9,
    usable=1e9,
    bandwidth=1e6,
    flops={"bf16": 1e9, "f32:highest": 1e8},
    link=1e3,
    axes=2,
    ring=4,
    per_host=4,
)


def fabric(shape, mesh, chip=CHIP):
    """Devices in row-major order on a grid, last coordinate fastest."""
    places = np.stack(np.indices(shape), -1).reshape(-1, len(shape))
    return Fabric(chip, mesh, places, Slice(chip, shape))


def seconds(where, members, kind="all-gather"):
    return where.seconds(Collective(kind, tuple(members)), 1000.0)


def test_the_longest_part_is_the_bound():
    where = fabric((2, 2), {"data": 2, "fsdp": 2})
    cost = Cost(
        matmul={"bf16": 3e9, "f32:highest": 2e8, "s8": 1e9},
        bytes=4e6,
        sent={Collective("all-gather", (0, 1)): 9e3},
        calls={Collective("all-gather", (0, 1)): 2.0},
    )
    found = roofline.bounds(cost, where)
    assert found.compute == pytest.approx(3 + 2 + 1)  # s8 runs as bf16 does
    assert found.memory == pytest.approx(4)
    assert found.links == {"fsdp": pytest.approx(9)}
    assert (found.seconds, found.name) == (pytest.approx(9), "interconnect:fsdp")
    (row,) = roofline.traffic(cost, where)
    assert (row.kind, row.axes, row.bytes, row.calls) == ("all-gather", "fsdp", 9e3, 2)
    assert roofline.intensity(cost) == pytest.approx(4.2e9 / 4e6)


def test_a_collective_along_two_axes_counts_for_both():
    where = fabric((2, 2), {"data": 2, "fsdp": 2})
    key = Collective("all-reduce", (0, 1, 2, 3))
    found = roofline.bounds(Cost(sent={key: 4e3}, calls={key: 1.0}), where)
    assert found.links == {"data": pytest.approx(2), "fsdp": pytest.approx(2)}


def test_neighbours_on_a_line_use_a_link_in_one_direction():
    assert seconds(fabric((2, 2), {"x": 4}), [0, 1]) == pytest.approx(1)


def test_a_closed_ring_uses_both_directions():
    """Four chips in a row close into a ring on this chip; two do not."""
    assert seconds(fabric((4, 2), {"x": 8}), [0, 2, 4, 6]) == pytest.approx(1 / 2)


def test_a_box_uses_a_link_for_each_of_its_dimensions():
    assert seconds(fabric((2, 2), {"x": 4}), range(4)) == pytest.approx(1 / 2)


def test_members_that_stand_apart_share_links_with_those_between():
    """Every second of eight in a row: two groups on the same links."""
    where = fabric((8, 1), {"x": 8}, CHIP)
    assert seconds(where, [0, 2]) == pytest.approx(2)


def test_a_group_that_is_no_box_uses_one_link():
    assert seconds(fabric((4, 4), {"x": 16}), [0, 1, 4, 14]) >= 1


def test_all_to_all_pays_for_the_way():
    """A ring of eight: a quarter of the way round on average, both directions."""
    where = fabric((8, 1), {"x": 8})
    assert seconds(where, range(8), "all-to-all") == pytest.approx(8 / 4 / 2)


def test_devices_on_a_switch_send_at_the_measured_rate():
    assert Fabric(CHIP, {"x": 2}).seconds(
        Collective("all-reduce", (0, 1)), 1000.0
    ) == pytest.approx(1)


def test_nothing_to_do_takes_no_time():
    assert roofline.bounds(Cost(), fabric((2, 2), {"x": 4})).seconds == 0


def test_v5e_gathers_along_a_whole_side_at_both_links():
    """scaling-book, part 3: an axis of 16 chips of v5e moves 1e11 bytes a second."""
    where = fabric((16, 16), {"data": 16, "fsdp": 16}, CHIPS["v5e"])
    key = Collective("all-gather", tuple(range(16)))
    assert where.seconds(key, 1e11) == pytest.approx(1)
