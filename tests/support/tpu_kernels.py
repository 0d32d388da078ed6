"""The fused kernels, compiled for one chip of v5e: what they need beside arguments.

Run by the interpreter that has libtpu; prints one JSON object.
"""

import functools
import json
import os

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from mappa_jax.models import attention
from mappa_jax.models.cache import Cache

TOPOLOGY = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
CHIP = SingleDeviceSharding(TOPOLOGY.devices[0])
K, G, H = 8, 2, 128  # as Qwen3's
FAR = 2**31 - 1


def shape(*dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=CHIP)


ints = functools.partial(shape, dtype=jnp.int32)


def decode(q, k, v, positions, layer, blocks):
    where = (layer, None, positions, jnp.int32(FAR), blocks)
    how = dict(block=128, scale=0.1, fused="tpu")
    return attention.attend_cache(q, Cache(k, v), *where, **how)


def rows(q, k, v, positions, ends):
    where = (positions, ends, jnp.int32(FAR))
    out = attention.attend_rows(q, k, v, *where, scale=0.1, fused="tpu")
    return out.astype(jnp.float32).sum()


CACHE, HEADS, PLACES = shape(4, 16, K, 2048, H), shape(2, 1024, K, H), ints(2, 1024)
PROGRAMS = {
    "decode": (
        decode,
        shape(16, 1, K, G, H),
        CACHE,
        CACHE,
        ints(16, 1),
        ints(),
        ints(),
    ),
    "rows": (
        jax.grad(rows, argnums=(0, 1, 2)),
        *(shape(2, 1024, K, G, H), HEADS, HEADS, PLACES, PLACES),
    ),
}


def needs(function, *args):
    """Bytes."""
    compiled = jax.jit(function).lower(*args).compile()
    memory = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "scratch": memory.temp_size_in_bytes,
        "mosaic": "tpu_custom_call" in compiled.as_text(),
    }


print(json.dumps({name: needs(*program) for name, program in PROGRAMS.items()}))
