"""Numbers as multiples of a scale that a row or column of them has in common: symmetric
int8, without calibration. Weights are kept so for sampling alone, a quarter or half of
the bytes that a step of decoding reads; training has them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

MOST = 127


def rounded(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """int8, and their float32 scales with 1 along `axis`: x is their product, within
    half a 127th of the largest magnitude along it."""
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(axis, keepdims=True) / MOST
    steps = jnp.round(x / jnp.where(scale > 0, scale, 1.0))
    return steps.astype(jnp.int8), scale


def _rounded_shape(
    x: jax.ShapeDtypeStruct, axis: int
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """`rounded` of a placed array: the scale lies as that does, but along `axis`."""
    axis %= len(x.shape)
    shape, spec = list(x.shape), [*x.sharding.spec]
    spec += [None] * (len(shape) - len(spec))
    shape[axis], spec[axis] = 1, None
    where = NamedSharding(x.sharding.mesh, PartitionSpec(*spec))
    return (
        jax.ShapeDtypeStruct(x.shape, jnp.int8, sharding=x.sharding),
        jax.ShapeDtypeStruct(tuple(shape), jnp.float32, sharding=where),
    )


def params(weights: Mapping[str, Any]) -> dict[str, Any]:
    """A Decoder's parameters with its matrices in int8; leading axes are kept.

    Of a projection [.., in, out] every output has a scale, "scale" beside "kernel"; of
    the embedding and the head [.., V, D] every token, in "embed_scale", "head_scale".
    """
    return _mapped(weights, rounded)


def param_shapes(weights: Mapping[str, Any]) -> dict[str, Any]:
    """`params` of ShapeDtypeStructs that say where each array lies."""
    return _mapped(weights, _rounded_shape)


def _mapped(weights: Mapping[str, Any], one: Callable) -> dict[str, Any]:
    out = dict(weights)
    for name in {"embed", "head"} & weights.keys():
        out[name], out[f"{name}_scale"] = one(weights[name], -1)
    layers = {}
    for name, leaf in weights["layers"].items():
        layers[name] = dict(leaf)
        if "kernel" in leaf:
            kernel, scale = one(leaf["kernel"], -2)
            layers[name] |= {"kernel": kernel, "scale": scale}
    return out | {"layers": layers}
