"""Optax transformations, and where their states lie.

All are without the learning rate, which differs by agent, and see one agent at a time.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from mappa_jax.config import OptimizerConfig
from mappa_jax.parallel.mesh import path_name


def optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping and AdamW, or Adafactor's factored second moments."""
    if config.name == "adafactor":
        # With Adafactor's own rules: a rising decay, and updates clipped by their RMS.
        scaling, last = optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    else:
        scaling = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
        last = optax.add_decayed_weights(config.weight_decay)
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return optax.chain(clip, stored_as(config.moments, scaling), last)


def stored_as(
    dtype: str, inner: optax.GradientTransformation
) -> optax.GradientTransformation:
    """`inner`, its floating-point state kept in `dtype` between updates.

    The arithmetic stays in float32: a state is widened, used and rounded again.
    """
    if dtype == "float32":
        return inner

    def cast(tree: Any, to: Any) -> Any:
        def one(x: Any) -> Any:
            # Optax marks the places of parameters with objects that are no arrays.
            floating = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
            return x.astype(to) if floating else x

        return jax.tree.map(one, tree)

    def init(params):
        return cast(inner.init(params), dtype)

    def update(grads, state, params=None):
        updates, state = inner.update(grads, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)


def state_shardings(
    tx: optax.GradientTransformation, params: Any, lead: NamedSharding
) -> Any:
    """Where every leaf of a stacked optimiser state lies.

    A moment lies where its parameter does; one that is a parameter's with dimensions
    summed away (Adafactor's rows and columns), as the dimensions do that are left.

    Args:
      tx: of one agent.
      params: ShapeDtypeStructs with shardings, all with a leading axis of agents.
      lead: of what is not a parameter's: one value per agent.
    """
    states = jax.eval_shape(jax.vmap(tx.init), params)
    owners = optax.tree_utils.tree_map_params(
        tx,
        lambda _, param: param,
        states,
        params,
        transform_non_params=lambda _: lead,
    )

    def one(path: Any, state: Any, owner: Any) -> NamedSharding:
        if owner is lead:
            return lead
        return _left_of(path_name(path), state.shape, owner)

    return jax.tree_util.tree_map_with_path(one, states, owners)


def _left_of(name: str, shape: tuple[int, ...], param: Any) -> NamedSharding:
    """Of the state `name`, shaped so, of a parameter."""
    whole = tuple(param.sharding.spec)
    whole += (None,) * (len(param.shape) - len(whole))
    if shape == param.shape:
        return param.sharding
    dims = [i for i in range(len(whole)) if _without(param.shape, i) == shape]
    if not dims:  # one number for each agent, where nothing is factored
        kept = [whole[0], *[None] * (len(shape) - 1)]
        return NamedSharding(param.sharding.mesh, PartitionSpec(*kept))
    # Of a square kernel the rows' moments lack the last dimension, the columns' the one
    # before it; the state's name tells them apart.
    gone = dims[0] if "v_col" in name.split("/") else dims[-1]
    kept = _without(whole, gone)
    return NamedSharding(param.sharding.mesh, PartitionSpec(*kept))


def _without(values: tuple[Any, ...], i: int) -> tuple[Any, ...]:
    return (*values[:i], *values[i + 1 :])
