"""Which devices a collective joins, in each of XLA's three ways to say it."""

import numpy as np
import pytest

from mappa_jax.plan import groups
from mappa_jax.plan.hlo import HloError

MESH = {"agent": 1, "data": 2, "fsdp": 4, "tensor": 2}  # 16 devices


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("{{0,2},{1,3}}, dimensions={0}", [[0, 2], [1, 3]]),
        ("{{0,1,2,3}}", [[0, 1, 2, 3]]),
        ("{}", [[0, 1, 2, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0), use", [[0, 2], [1, 3]]),
        ("[1,4]<=[4]", [[0, 1, 2, 3]]),
        ("mesh['x'=2,'y'=2] {'y'}, use", [[0, 1], [2, 3]]),
        ("mesh['x'=2,'y'=2] {'x'}", [[0, 2], [1, 3]]),
        ("mesh['x'=2,'y'=2] {'x','y'}", [[0, 1, 2, 3]]),
        ("mesh['x'=4,'y'=1] {'x'}", [[0, 1, 2, 3]]),
        # Device ids of their own: rows of a transposed 2 x 2.
        ("mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'y'}", [[0, 2], [1, 3]]),
        ("mesh['x'=2,'y'=2], device_ids=([4]<=[2,2]T(1,0)) {'y'}", [[0, 2], [1, 3]]),
        # An axis in part: of size 4 the major half, then the minor half.
        ("mesh['x'=4] {'x':(1)2}", [[0, 2], [1, 3]]),
        ("mesh['x'=4] {'x':(2)2}", [[0, 1], [2, 3]]),
    ],
)
def test_groups(text, want):
    assert groups.parse_groups(text, 4).tolist() == want


def test_a_way_that_is_not_known_is_refused():
    with pytest.raises(HloError, match="not understood"):
        groups.parse_groups("<weird>", 4)


def test_the_axes_that_members_differ_along():
    devices = np.arange(16).reshape(tuple(MESH.values()))
    assert groups.axes_of(devices[0, 0, :, 1], MESH) == "fsdp"
    assert groups.axes_of(devices[0, :, 0, 0], MESH) == "data"
    assert groups.axes_of(devices[0, :, :, 0].ravel(), MESH) == "data+fsdp"
    assert groups.axes_of(devices.ravel(), MESH) == "data+fsdp+tensor"
    assert groups.axes_of(devices[0, 0, :2, 0], MESH) == "fsdp/2"
    assert groups.axes_of([5], MESH) == ""
