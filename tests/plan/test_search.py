"""What the search tries, and what it keeps."""

import dataclasses

import pytest

from mappa_jax.assemble import make_team, seat_agents
from mappa_jax.config import ConfigError, changed, resolve
from mappa_jax.models.published import architecture
from mappa_jax.parallel import mesh as meshlib
from mappa_jax.plan import workload
from mappa_jax.plan.planner import Plan
from mappa_jax.plan.search import meshes, search

USABLE = 1000.0


@pytest.fixture
def config(tiny):
    return seat_agents(resolve(tiny({"mode": "lora"})))


@pytest.fixture
def shapes(config):
    return [architecture(a.model) for a in config.agents.values()]


def test_keys_are_changed_at_any_depth(config):
    found = changed(config, {"mesh.fsdp": 4, "remat": "full", "packing.rows": 4})
    assert (found.mesh.fsdp, found.remat, found.packing.rows) == (4, "full", 4)
    assert config.mesh.fsdp == 1


def test_meshes_cover_what_the_model_allows(config, shapes):
    found = list(meshes(config, shapes, 4))
    sizes = {tuple(m[f"mesh.{a}"] for a in meshlib.AXES) for m in found}
    # Two key and value heads; no divisor of three agents but one divides four.
    assert sizes == {
        (1, 4, 1, 1),
        (1, 2, 2, 1),
        (1, 1, 4, 1),
        (1, 2, 1, 2),
        (1, 1, 2, 2),
    }
    for m in found:
        ways = m["mesh.data"] * m["mesh.fsdp"]
        assert m["packing.rows"] == m["sampler.prefill_rows"] == ways
        assert m["sampler.slots"] % ways == 0
    three = {m["mesh.agent"] for m in meshes(config, shapes, 3)}
    assert three == {1, 3}


class Fake:
    """Plans whose memory and seconds are functions of the config."""

    def __init__(self, plan, need, seconds):
        self.plan, self.need, self.seconds = plan, need, seconds
        self.asked = []

    def __call__(self, config, only):
        self.asked.append((config, tuple(only)))
        shapes = [architecture(a.model) for a in config.agents.values()]
        devices = meshlib.make_mesh(config.mesh, self.plan_devices(config))
        team = make_team(config, shapes, devices)
        chosen = [p for p in self.plan.phases if p.name.startswith(tuple(only))]
        phases = [
            dataclasses.replace(
                p,
                hbm=dict.fromkeys(p.hbm, 0.0) | {"temporaries": self.need(config, p)},
                use=workload.Use(1.0),
                bounds=dataclasses.replace(
                    p.bounds, compute=self.seconds(config), memory=0.0, links={}
                ),
            )
            for p in chosen
        ]
        chip = dataclasses.replace(self.plan.fabric.chip, usable=USABLE)
        fabric = dataclasses.replace(
            self.plan.fabric, chip=chip, mesh=dict(devices.shape)
        )
        return Plan(config, team, fabric, self.plan.load, phases)

    @staticmethod
    def plan_devices(config):
        import jax

        return jax.devices()[:4]


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    """The toy chip holds any cache."""
    monkeypatch.setattr(
        "mappa_jax.plan.search._slots", lambda config, shapes, found, kv: 4
    )


def test_the_quickest_that_fits_comes_first(plan, config, shapes):
    def need(config, phase):
        return 500 if config.mesh.tensor == 2 else 2000

    fake = Fake(plan, need, lambda c: 1.0 / c.mesh.fsdp)
    found = search(config, shapes, 4, fake, compiles=100)
    assert all(f.usable for f in found)
    assert found[0].changes["mesh.tensor"] == 2
    assert found[0].changes["mesh.fsdp"] == 2
    assert [f.seconds for f in found] == sorted(f.seconds for f in found)
    assert "--config.mesh.tensor=2" in found[0].flags
    # Updates come first; only whole plans are offered, no program compiled twice.
    assert fake.asked[0][1] == ("update",) and "update" not in fake.asked[-1][1]
    assert {p.name for p in found[0].plan.phases} == {p.name for p in plan.phases}


def test_what_runs_beside_the_update_has_to_fit_beside_it(plan, config, shapes):
    """Each half fits by itself, here only with the smaller cache both together."""

    def found(need):
        fake = Fake(plan, lambda c, p: need, lambda c: 1.0)

        def plan_of(config, only):
            kv = 350.0 if config.sampler.kv_dtype == "compute" else 200.0
            made = fake(config, only)
            return dataclasses.replace(made, beside={"params": 100.0, "kv": kv})

        return [f for f in search(config, shapes, 4, plan_of, compiles=99) if f.usable]

    assert not found(500)
    for one in found(300):
        assert one.changes["sampler.kv_dtype"] == "float8_e4m3fn"
        update = next(p for p in one.plan.phases if p.name == "update")
        assert update.total == 300 + 300 + 100 + 200
    assert found(300)


def test_whole_plans_are_sorted_by_all_their_phases(plan, config, shapes):
    """Updates of one mesh alike, of which the second leaves the quickest sampler."""
    fake = Fake(plan, lambda c, p: 500, None)

    def seconds(config):
        if fake.asked[-1][1] == ("update",):
            return 1.0 if config.mesh.fsdp == 4 else 2.0
        return 0.1 if config.packing.rows == 8 else 1.0

    fake.seconds = seconds
    found = search(config, shapes, 4, fake, compiles=200)
    assert found[0].changes["packing.rows"] == 8
    assert len(found) == 3 and found[0].seconds < found[1].seconds


def test_rows_and_remat_are_tried_where_the_first_try_fits(plan, config, shapes):
    fake = Fake(plan, lambda c, p: 500, lambda c: 1.0)
    search(config, shapes, 4, fake, compiles=100)
    remats = {c.remat for c, _ in fake.asked}
    assert remats == {"full", "projections", "none"}
    assert {c.packing.rows for c, _ in fake.asked} == {2, 4, 8}


def test_a_full_chip_is_not_tried_with_more(plan, config, shapes):
    fake = Fake(plan, lambda c, p: 900, lambda c: 1.0)
    search(config, shapes, 4, fake, compiles=100)
    assert {c.remat for c, _ in fake.asked} == {"full"}


def test_a_cache_of_another_type_is_tried_if_the_first_does_not_fit(
    plan, config, shapes
):
    def need(config, phase):
        small = config.sampler.kv_dtype != "compute"
        return 500 if small or phase.name == "update" else 2000

    found = search(config, shapes, 4, Fake(plan, need, lambda c: 1.0), compiles=200)
    assert found[0].fits
    assert found[0].changes["sampler.kv_dtype"] == "float8_e4m3fn"


def test_if_nothing_fits_the_nearest_comes_first(plan, config, shapes):
    fake = Fake(plan, lambda c, p: 2000.0 * c.mesh.data, lambda c: 1.0)
    found = search(config, shapes, 4, fake, compiles=100)
    assert not found[0].fits
    assert found[0].fill == pytest.approx(2.0)


def test_an_update_that_fits_is_no_plan_that_fits(plan, config, shapes):
    """The sampler never does."""
    fake = Fake(plan, lambda c, p: 500 if p.name == "update" else 2000, lambda c: 1.0)
    found = search(config, shapes, 4, fake, compiles=100)
    assert found and not any(f.usable for f in found)
    assert not any(f.to_json()["fits"] for f in found)


def test_no_more_is_compiled_than_allowed(plan, config, shapes):
    """And what was not tried to the end is not offered as a plan."""
    fake = Fake(plan, lambda c, p: 500, lambda c: 1.0)
    found = search(config, shapes, 4, fake, compiles=3)
    assert len(fake.asked) == 3
    assert found and not any(f.usable for f in found)


def test_what_the_config_refuses_is_said_and_passed_over(plan, config, shapes):
    fake, said = Fake(plan, lambda c, p: 500, lambda c: 1.0), []

    def plan_of(config, only):
        if config.mesh.data > 1:
            raise ConfigError("config.mesh.data: no")
        return fake(config, only)

    found = search(config, shapes, 4, plan_of, compiles=100, note=said.append)
    assert found and all(f.changes["mesh.data"] == 1 for f in found)
    assert any("config.mesh.data: no" in text for text in said)
