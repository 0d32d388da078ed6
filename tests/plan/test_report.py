"""The plan as JSON and text, the forecast, and what to change."""

import dataclasses
import json

import jax
import pytest

from mappa_jax.assemble import make_team
from mappa_jax.config import changed
from mappa_jax.parallel.mesh import make_mesh
from mappa_jax.plan import report
from mappa_jax.plan.advice import advise
from mappa_jax.plan.forecast import forecast

KEYS = {
    "name",
    "hbm_bytes_per_chip",
    "flops_per_chip",
    "bytes_per_chip",
    "collective_bytes_per_chip",
    "roofline_seconds",
    "bound",
}


def resized(plan, usable=None, **sizes):
    """The plan with other sizes of memory: of the chip, or by kind in all phases."""
    chip = dataclasses.replace(plan.fabric.chip, usable=usable or plan.usable)
    phases = [dataclasses.replace(p, hbm={**p.hbm, **sizes}) for p in plan.phases]
    fabric = dataclasses.replace(plan.fabric, chip=chip)
    return dataclasses.replace(plan, fabric=fabric, phases=phases)


def test_the_json_has_what_the_docs_promise(plan):
    found = json.loads(json.dumps(report.to_json(plan), allow_nan=False))
    assert found["fits"] is True
    assert found["topology"] == "toy:4"
    assert found["mesh"] == {"agent": 1, "data": 1, "fsdp": 2, "tensor": 2}
    for phase in found["phases"]:
        assert KEYS <= set(phase)
        assert phase["hbm_bytes_per_chip"] == sum(phase["hbm_by_kind"].values())
        sent = sum(row["bytes"] for row in phase["collectives"])
        assert phase["collective_bytes_per_chip"] == sent
        bounds = phase["bounds"]
        parts = [bounds["compute"], bounds["memory"], *bounds["interconnect"].values()]
        assert phase["roofline_seconds"] == max(parts)
        assert not phase["uncounted_custom_calls"]


def test_the_forecast_is_the_sum_of_its_phases(plan):
    found = forecast(plan)
    assert found.actions == 16 and found.new_tokens == 16 * 16
    assert found.trained_tokens == 16 * (512 + 16)
    assert found.total == pytest.approx(sum(p.seconds for p in plan.phases))
    assert found.unhidden > found.total
    hours = 4 * found.total / 3600
    assert found.usd["on_demand"] == pytest.approx(hours * 2.0)
    assert found.usd["spot"] == pytest.approx(hours * 1.0)
    assert found.rates["sampled_over_all"] == pytest.approx(256 / found.total)
    assert 0 < report.efficiency_of(plan) <= 1


def test_without_the_update_there_is_no_forecast(plan):
    fewer = [p for p in plan.phases if p.name != "update"]
    assert forecast(dataclasses.replace(plan, phases=fewer)) is None


def test_the_text_says_whether_it_fits(plan):
    text = report.to_text(plan)
    assert text.rstrip().endswith("FITS")
    for said in ("mesh agent 1, data 1, fsdp 2, tensor 2", "prefill/512", "$"):
        assert said in text
    assert "DOES NOT FIT" in report.to_text(resized(plan, usable=2**16))


def test_what_fits_needs_no_advice(plan):
    assert advise(plan) == []


def test_temporaries_of_the_update_want_shorter_rows_and_more_heads(plan):
    """Four times the room that there is: rows of a quarter, and a little less."""
    config = changed(plan.config, {"mesh.tensor": 1, "mesh.fsdp": 4, "packing.rows": 4})
    mesh = make_mesh(config.mesh, jax.devices()[:4])
    shapes = [policy.cfg for policy in plan.team] * 3
    fabric = dataclasses.replace(plan.fabric, mesh=dict(mesh.shape))
    team = make_team(config, shapes, mesh)
    update = [p for p in plan.phases if p.name == "update"]
    plan = dataclasses.replace(
        plan, config=config, fabric=fabric, team=team, phases=update
    )
    usable = 2.0**30
    plan = resized(plan, usable, temporaries=4 * usable, params=0, optimizer=0, other=0)
    found = {change.key: change.value for change in advise(plan)}
    assert found["remat"] == "full"
    assert found["mesh.tensor"] == "2"
    assert found["packing.row_tokens"] == str(int(640 * 0.9 / 4) // 128 * 128)


def test_a_large_cache_wants_fewer_slots(plan):
    usable = 2.0**30
    sizes = dict(temporaries=0, params=0, optimizer=0, other=0, kv=2 * usable)
    decode = [p for p in plan.phases if p.name == "decode"]
    plan = dataclasses.replace(resized(plan, usable, **sizes), phases=decode)
    plan = resized(plan, usable, **sizes)
    found = {change.key: change for change in advise(plan)}
    assert found["sampler.slots"].value == "2"
    assert "2.0 GiB" in found["sampler.slots"].why
    assert "sampler.kv_dtype" in found


def test_large_weights_want_adapters_or_more_chips(plan):
    usable = 2.0**30
    plan = resized(plan, usable, params=usable, optimizer=2 * usable)
    found = {change.key: change.value for change in advise(plan)}
    assert found["mode"] == "lora"
    assert found["optimizer.moments"] == "bfloat16"
    # 3 times the memory, half as much again for the rest: 18 chips, so 32.
    assert found["mesh.fsdp"] == str(2 * 32 // 4)
