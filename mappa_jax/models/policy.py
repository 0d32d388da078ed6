"""The team's weights as one object: what is trained, what is frozen, who uses what.

mode "full": every agent has its own weights, stacked on a leading agent axis; the
reference policy is a frozen copy of the initial ones.
mode "lora": one frozen base for all, an adapter per agent on a leading agent axis;
the reference policy is the base with adapters off and costs no memory.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mappa_jax.config import ConfigError, LoRAConfig
from mappa_jax.models import hf
from mappa_jax.models.config import ModelConfig
from mappa_jax.models.decoder import Adapters, Decoder
from mappa_jax.parallel import mesh as meshlib


@dataclasses.dataclass(frozen=True)
class Policy:
    """The static half of the team's policies.

    Attributes:
      cfg: the architecture, one for all agents.
      mode: "full" or "lora".
      agents: the number of agents, A.
      lora: rank, alpha and targets (mode "lora").
      dtype: of the compute.
      remat: recompute layers in the backward pass.
      stacked_reference: mode "full": agents start from different weights, so the
        reference has an agent axis too.
    """

    cfg: ModelConfig
    mode: Literal["full", "lora"]
    agents: int
    lora: LoRAConfig
    dtype: Any
    remat: bool
    stacked_reference: bool = False

    def decoder(self, **options: Any) -> Decoder:
        return Decoder(self.cfg, dtype=self.dtype, **options)

    @property
    def scale(self) -> float:
        return self.lora.alpha / self.lora.rank

    @property
    def lanes(self) -> int:
        """How many stacks of rows the model runs side by side, see learning/batch."""
        return self.agents if self.mode == "full" else 1

    def for_training(
        self, trainable: Any, frozen: Any, row_agent: jax.Array
    ) -> tuple[Any, Adapters | None]:
        """Parameters and adapters of one lane.

        Args:
          trainable: mode "full": one agent's weights; mode "lora": all adapters, with
            their agent axis.
          frozen: the base (mode "lora").
          row_agent: [R] int32, which agent's adapter each row uses.
        """
        if self.mode == "full":
            return trainable, None
        a = {name: leaf["a"].swapaxes(0, 1) for name, leaf in trainable.items()}
        b = {name: leaf["b"].swapaxes(0, 1) for name, leaf in trainable.items()}
        return frozen, Adapters(a, b, row_agent, self.scale)

    def for_sampling(self, trainable: Any, frozen: Any, agent: jax.Array) -> Any:
        """(params, lora) of a batch of rows.

        In mode "full" all rows belong to `agent`; in mode "lora" each row names its
        own, and the adapters of all agents are passed.
        """
        if self.mode == "full":
            return jax.tree.map(lambda p: p[agent], trainable), None
        base, adapters = self.for_training(trainable, frozen, agent)
        return base, (adapters.a, adapters.b, adapters.scale)


def trainable_shapes(policy: Policy, dtype: Any) -> Any:
    """The trained tree as ShapeDtypeStructs, leading axis A."""
    base = hf.param_shapes(policy.cfg, dtype)
    if policy.mode == "full":
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct((policy.agents, *s.shape), dtype), base
        )
    layers, rank = policy.cfg.n_layers, policy.lora.rank

    def adapter(name: str) -> dict[str, Any]:
        if name not in base["layers"]:
            raise ConfigError(f"lora.targets: this model has no {name!r}")
        _, wide, out = base["layers"][name]["kernel"].shape
        lead = (policy.agents, layers)
        return {
            "a": jax.ShapeDtypeStruct((*lead, wide, rank), jnp.float32),
            "b": jax.ShapeDtypeStruct((*lead, rank, out), jnp.float32),
        }

    return {name: adapter(name) for name in policy.lora.targets}


def init(
    policy: Policy, folders: list[Path], mesh: Mesh, seed: int, dtype: Any
) -> tuple[Any, Any]:
    """(trainable, frozen), sharded.

    Args:
      policy: the static half.
      folders: the Hugging Face folder of each agent's initial weights.
      mesh: where the arrays live.
      seed: of the adapters.
      dtype: of the weights.
    """
    shapes = trainable_shapes(policy, dtype)
    placed = meshlib.param_shardings(mesh, shapes, agent_axis=True)
    base_placed = meshlib.param_shardings(
        mesh, hf.param_shapes(policy.cfg, dtype), agent_axis=False
    )
    if policy.mode == "lora":
        frozen = hf.load_params(folders[0], policy.cfg, base_placed, dtype)
        return _init_adapters(shapes, placed, seed), frozen
    trainable = _stack(policy, folders, placed, dtype)
    if policy.stacked_reference:
        return trainable, _stack(policy, folders, placed, dtype)
    return trainable, hf.load_params(folders[0], policy.cfg, base_placed, dtype)


def _stack(policy: Policy, folders: list[Path], shardings: Any, dtype: Any) -> Any:
    """Every agent's weights, read from its folder straight into its shards."""
    opened = {folder: hf.Tensors(folder) for folder in folders}
    shapes = hf.param_shapes(policy.cfg, dtype)

    def one(path, shape, sharding):
        name = hf.tensor_name(policy.cfg, meshlib.path_name(path))
        readers = [hf.reader(opened[folder], name, shape) for folder in folders]

        def read(index):
            chosen = range(*index[0].indices(len(folders)))
            return np.stack([readers[i](index[1:]) for i in chosen])

        whole = (len(folders), *shape.shape)
        return jax.make_array_from_callback(whole, sharding, read)

    for tensors in opened.values():
        hf.check_names(tensors, policy.cfg, shapes)
    return jax.tree_util.tree_map_with_path(one, shapes, shardings)


def _init_adapters(shapes: Any, shardings: Any, seed: int) -> Any:
    """a is normal with variance 1/in, b is zero: the policy starts as the base."""

    def make():
        def one(path, shape):
            name = meshlib.path_name(path)
            if name.endswith("/b"):
                return jnp.zeros(shape.shape, shape.dtype)
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
            scale = shape.shape[-2] ** -0.5
            return scale * jax.random.normal(key, shape.shape, shape.dtype)

        return jax.tree_util.tree_map_with_path(one, shapes)

    return jax.jit(make, out_shardings=shardings)()


def agent_params(policy: Policy, trainable: Any, frozen: Any, agent: int) -> Any:
    """One agent's whole weights, adapters merged: what an export writes."""
    own: Mapping[str, Any] = jax.tree.map(lambda p: p[agent], trainable)
    if policy.mode == "full":
        return own
    layers = dict(frozen["layers"])
    for name, leaf in own.items():
        update = policy.scale * jnp.einsum("lir,lro->lio", leaf["a"], leaf["b"])
        kernel = layers[name]["kernel"]
        merged = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
        layers[name] = {**layers[name], "kernel": merged}
    return {**frozen, "layers": layers}
