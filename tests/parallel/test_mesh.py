"""The mesh, and where the rules place every parameter."""

import concurrent.futures
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mappa_jax.config import ConfigError, LoRAConfig, MeshConfig
from mappa_jax.models import hf
from mappa_jax.models.policy import Policy, trainable_shapes
from mappa_jax.models.registry import RANDOM_SIZES
from mappa_jax.parallel import mesh as meshlib

TINY = RANDOM_SIZES["tiny"]


@pytest.fixture(scope="module")
def mesh():
    return meshlib.make_mesh(MeshConfig(2, 1, 2, 2))


def test_one_device_is_a_mesh_of_ones():
    mesh = meshlib.make_mesh(MeshConfig(), jax.devices()[:1])
    assert dict(mesh.shape) == dict(agent=1, data=1, fsdp=1, tensor=1)


def test_minus_one_takes_what_is_left():
    mesh = meshlib.make_mesh(MeshConfig(agent=2, data=-1, tensor=2))
    assert dict(mesh.shape) == dict(agent=2, data=2, fsdp=1, tensor=2)


@pytest.mark.parametrize("config", [MeshConfig(3), MeshConfig(2, 2, 1, 1)])
def test_sizes_that_do_not_fit_are_refused(config):
    with pytest.raises(ConfigError, match="do not fit 8 devices"):
        meshlib.make_mesh(config)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("embed", P("tensor", "fsdp")),
        ("head", P("tensor", "fsdp")),
        ("layers/q/kernel", P(None, "fsdp", "tensor")),
        ("layers/o/kernel", P(None, "tensor", "fsdp")),
        ("layers/gate/kernel", P(None, "fsdp", "tensor")),
        ("layers/down/kernel", P(None, "tensor", "fsdp")),
        ("layers/q_norm/weight", P(None, None)),
        ("final_norm/weight", P(None)),
        ("q/a", P(None, "fsdp", None)),
        ("q/b", P(None, None, "tensor")),
        ("down/b", P(None, None, "fsdp")),
    ],
)
def test_a_name_decides_the_placement(name, want):
    assert meshlib.spec(meshlib.param_axes(name)) == want


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(KeyError, match="layers/new/kernel"):
        meshlib.param_axes("layers/new/kernel")


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_every_parameter_is_placed_with_its_agents(mesh, mode):
    policy = Policy(TINY, mode, (0, 1), LoRAConfig(), jnp.float32, ranks=(16, 16))
    shapes = trainable_shapes(policy, jnp.float32)
    placed = meshlib.param_shardings(mesh, shapes, ("agent",))
    for leaf, where in zip(
        jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True
    ):
        assert where.spec[0] == "agent"
        assert len(where.spec) == len(leaf.shape)


def test_large_parameters_are_split_over_fsdp_and_tensor(mesh):
    shapes = hf.param_shapes(TINY)
    placed = meshlib.param_shardings(mesh, shapes)
    kernel = shapes["layers"]["gate"]["kernel"].shape
    part = placed["layers"]["gate"]["kernel"].shard_shape(kernel)
    assert part == (kernel[0], kernel[1] // 2, kernel[2] // 2)


def test_an_uneven_dimension_is_refused_by_name():
    mesh = meshlib.make_mesh(MeshConfig(1, 1, 1, 8))
    shapes = {"embed": jax.ShapeDtypeStruct((12, 16), np.float32)}
    with pytest.raises(ConfigError, match=r"embed: dimension 0 \(vocab, size 12\)"):
        meshlib.param_shardings(mesh, shapes)


def test_rows_lie_over_data_and_fsdp(mesh):
    apart, shared = meshlib.Layout(mesh), meshlib.Layout(mesh, apart=False)
    assert apart.row_axes == ("data", "fsdp")
    assert (apart.slices, apart.ways, apart.tensor) == (2, 2, 2)
    assert shared.row_axes == ("agent", "data", "fsdp")
    assert (shared.slices, shared.ways, shared.tensor) == (1, 4, 2)


def test_two_threads_share_what_has_one_order():
    def on(*devices):
        return SimpleNamespace(devices=np.asarray(devices, object))

    def device(platform, process=0):
        return SimpleNamespace(platform=platform, process_index=process)

    cpu, tpu, other = device("cpu"), device("tpu"), device("tpu", 1)
    assert meshlib.shared_by_threads(on(cpu)) and meshlib.shared_by_threads(on(tpu))
    assert meshlib.shared_by_threads(on(tpu, tpu))
    assert not meshlib.shared_by_threads(on(cpu, cpu))
    assert not meshlib.shared_by_threads(on(tpu, other))


def test_programs_start_one_at_a_time():
    starting, most = [], []

    def program(name):
        starting.append(name)
        time.sleep(0.005)
        most.append(len(starting))
        starting.remove(name)
        return name

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda i: meshlib.start(program, i), range(16)))
    assert names == list(range(16)) and set(most) == {1}


def test_path_names():
    tree = {"layers": {"q": {"kernel": 1}}}
    ((path, _),) = jax.tree_util.tree_leaves_with_path(tree)
    assert meshlib.path_name(path) == "layers/q/kernel"
