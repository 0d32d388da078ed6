"""Programs without loops, compiled for v5e: what XLA says of them and what we count.

Run by the interpreter that has libtpu; prints one JSON object.
"""

import json
import os

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mappa_jax.plan import hlo, memory
from mappa_jax.plan.count import count
from mappa_jax.plan.groups import axes_of

DEVICES = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
MESH = Mesh(np.asarray(DEVICES).reshape(2, 4), ("data", "fsdp"))
B16 = jnp.bfloat16


WHOLE = P()


def shape(*dims, spec=WHOLE, dtype=B16):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(MESH, spec))


def attention(q, k, v):
    scores = jnp.einsum("ntkgh,nskh->nkgts", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores, -1).astype(B16)
    return jnp.einsum("nkgts,nskh->ntkgh", weights, v)


def loss(w, x):
    return (jnp.tanh(x @ w).astype(jnp.float32) ** 2).sum()


HEADS = shape(1, 512, 2, 128)
PROGRAMS = {
    "product": (lambda a, b: a @ b, shape(512, 1024), shape(1024, 2048)),
    "attention": (attention, shape(1, 512, 2, 4, 128), HEADS, HEADS),
    "feed-forward": (
        lambda x, w, v: jax.nn.silu(x @ w) @ v,
        *(shape(1024, 512), shape(512, 1536), shape(1536, 512)),
    ),
    "highest": (
        lambda a, b: jnp.matmul(a, b, precision="highest"),
        *(shape(256, 256, dtype=jnp.float32), shape(256, 256, dtype=jnp.float32)),
    ),
    "padded": (lambda a: a * 2, shape(3, 5, 16, dtype=jnp.float32)),
    "gathered": (
        lambda x, w: x @ w,
        *(shape(1024, 4096, spec=P("data")), shape(4096, 8192, spec=P("fsdp"))),
    ),
    "gradient": (
        jax.grad(loss),
        *(
            shape(4096, 2048, spec=P("fsdp")),
            shape(8192, 4096, spec=P(("data", "fsdp"))),
        ),
    ),
}


def examine(function, *shapes):
    compiled = jax.jit(function).lower(*shapes).compile()
    told, sizes = compiled.cost_analysis(), compiled.memory_analysis()
    module = hlo.parse(compiled.as_text())
    ours = count(module, 8)
    mesh = dict(MESH.shape)
    return {
        "flops": [ours.flops, told["flops"]],
        "transcendental": [ours.transcendental, told.get("transcendentals", 0)],
        "arguments": [
            sum(memory.arguments(module).values()),
            sizes.argument_size_in_bytes,
        ],
        "results": [
            memory.fresh_results(module),
            sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        ],
        "matmul": dict(ours.matmul),
        "sent": {
            f"{one.kind} {axes_of(one.members, mesh)}": size
            for one, size in ours.sent.items()
        },
    }


if __name__ == "__main__":
    print(json.dumps({name: examine(*case) for name, case in PROGRAMS.items()}))
