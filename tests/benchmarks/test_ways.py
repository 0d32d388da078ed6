"""Comparisons of whole rollouts and iterations, on the tiny team."""

import pytest
import scripts

from mappa_jax.assemble import seat_agents
from mappa_jax.config import resolve


@pytest.fixture(scope="module")
def benchmark(launch_path):
    """A file of benchmarks/ as a module, by name."""
    folder = launch_path.parent / "benchmarks"
    return lambda name: scripts.load(folder / f"{name}.py")


@pytest.fixture
def config(tiny, assemble):  # `assemble` has the launch scripts use one device
    changes = {"sampler.extend_buckets": (64,), "data.prompts_per_step": 2}
    return seat_agents(resolve(tiny(changes)))


async def test_ways_to_sample(benchmark, config, cache):
    found = await benchmark("sampler_ways").measure(config, cache, "turns", rounds=1)
    anew, kept = found["anew"], found["kept"]
    assert anew["prefill"]["times_as_fast"] == 1.0
    assert kept["prefill"]["seconds"] > 0 < kept["decode_a_token"]["seconds"]
    assert kept["prompt_tokens"] == anew["prompt_tokens"] > 0
    for row in found.values():
        assert row["agreement"]["tokens"] > 0
        assert row["agreement"]["largest"] < 1e-3


async def test_iterations_before_and_beside_an_update(benchmark, config, cache):
    found = await benchmark("staleness").measure(config, cache, steps=2, rounds=1)
    assert set(found["times_as_fast"]) == {"before", "beside"}
    assert all(len(s) == 1 and s[0] > 0 for s in found["seconds"].values())
