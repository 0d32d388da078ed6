"""A plan of the tiny team on four simulated devices, made once."""

import jax
import pytest

from mappa_jax.assemble import seat_agents
from mappa_jax.config import resolve
from mappa_jax.models.published import architecture
from mappa_jax.plan import planner, workload
from mappa_jax.plan.chips import Chip, Price
from mappa_jax.plan.roofline import Fabric

TOY = Chip(
    "toy",
    memory=2**30,
    usable=2**30,
    bandwidth=1e9,
    flops={"bf16": 1e11, "f32": 1e11},
    link=1e8,
    axes=1,
    ring=1,
    per_host=4,
    price=Price(2.0, 1.0, "nowhere"),
)
SMALL = {
    "mesh.data": 1,
    "mesh.fsdp": 2,
    "mesh.tensor": 2,
    "packing.rows": 2,
    "sampler.prompt_buckets": (256, 512),
}


@pytest.fixture(scope="session")
def plan_of(tiny):
    """(changes, only, chip) -> a plan on devices of the toy chip: four if the changes
    leave the mesh alone."""

    def make(changes=None, only=(), chip=TOY):
        config = seat_agents(resolve(tiny(SMALL | (changes or {}))))
        return planner.make_plan(
            config,
            [architecture(a.model) for a in config.agents.values()],
            lambda mesh: Fabric(chip, dict(mesh.shape)),
            jax.devices()[: config.mesh.data * config.mesh.fsdp * config.mesh.tensor],
            workload.assumed(config),
            tpu=False,
            only=only,
        )

    return make


@pytest.fixture(scope="session")
def plan(plan_of):
    return plan_of()
