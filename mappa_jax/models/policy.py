"""The team's weights: what is trained, what is frozen, who uses what.

mode "full": every agent has its own weights, stacked on a leading axis; the reference
policy is a frozen copy of the initial ones.
mode "lora": one frozen base for all, an adapter per agent on a leading axis; the
reference policy is the base with adapters off and costs no memory.
mode "shared": one set of weights plays every role; its stack has the size one.

Agents of unlike architecture, and in mode "full" those that are not trained, stand
apart in groups: each is one stack, and has a Policy of its own.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
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
from mappa_jax.parallel.mesh import Layout


@dataclasses.dataclass(frozen=True)
class Policy:
    """The static half of one group of agents.

    Attributes:
      cfg: the architecture.
      mode: "full", "lora" or "shared".
      members: the agents' places in the team.
      lora: alpha and targets (mode "lora").
      dtype: of the compute.
      remat: what the backward pass keeps, of decoder.REMAT, or "none".
      fused: attention by the kernels of the mesh's platform (models/kernels.py).
      mesh: where the group lives; None: one device.
      ranks: of each member's adapter (mode "lora").
      trainable: whether any member is trained.
      reference: the reference policy is needed (mode "full" and "shared").
      stacked_reference: mode "full": agents start from different weights, so the
        reference has an agent axis too.
    """

    cfg: ModelConfig
    mode: Literal["full", "lora", "shared"]
    members: tuple[int, ...]
    lora: LoRAConfig
    dtype: Any
    remat: str = "none"
    fused: bool = False
    mesh: Mesh | None = None
    ranks: tuple[int, ...] = ()
    trainable: bool = True
    reference: bool = True
    stacked_reference: bool = False

    @property
    def agents(self) -> int:
        return len(self.members)

    @property
    def layout(self) -> Layout:
        return Layout(self.mesh, apart=self.mode != "shared")

    @property
    def sets(self) -> int:
        """How many sets of weights there are."""
        return 1 if self.mode == "shared" else self.agents

    @property
    def lanes(self) -> int:
        """How many stacks of rows with a gradient of their own, see learning/batch."""
        return {"full": self.agents, "lora": self.layout.slices, "shared": 1}[self.mode]

    @property
    def pools(self) -> int:
        """How many sets of slots the sampler has; with adapters agents share one."""
        return self.agents // self.layout.slices if self.mode == "full" else 1

    def decoder(self, *, rows: tuple[str, ...] | None, **options: Any) -> Decoder:
        """The model; `rows` are the mesh axes of its rows' axis."""
        return Decoder(
            self.cfg,
            dtype=self.dtype,
            layout=self.layout,
            rows=rows,
            fused=self.platform if self.fused else None,
            **options,
        )

    @property
    def platform(self) -> str:
        """Of the devices, as JAX names it."""
        devices = self.mesh.devices.flat if self.mesh else jax.devices()
        return devices[0].platform

    def scales(self) -> np.ndarray:
        """[agents] float32, alpha / rank of each adapter."""
        return np.float32(self.lora.alpha) / np.asarray(self.ranks, np.float32)

    def lane_of(self, agent: int) -> int:
        """The lane of an agent, counted within the group."""
        return agent // (self.agents // self.lanes)

    def in_lanes(self, trainable: Any) -> Any:
        """The trained tree with a leading axis of lanes, as `for_training` takes it.

        Mode "lora": [lanes, agents of a lane, ...].
        """
        if self.mode != "lora":
            return trainable
        return jax.tree.map(
            lambda p: p.reshape(self.lanes, -1, *p.shape[1:]), trainable
        )

    def out_of_lanes(self, grads: Any) -> Any:
        """The inverse of `in_lanes`."""
        if self.mode != "lora":
            return grads
        return jax.tree.map(lambda p: p.reshape(-1, *p.shape[2:]), grads)

    def over_lanes(self, function: Callable) -> Callable:
        """`function` of every lane: those of one slice of the mesh in turn, slices side
        by side.

        Args:
          function: takes a lane's count and blocks, which say how much it has to do,
            and whatever else is its own.

        Returns:
          A function of counts [W] int32, blocks [W, M] int32 and trees with a leading
          axis of lanes, to a tree with one. What lies side by side turns as often as
          the longest of it.
        """
        slices, each = self.layout.slices, self.lanes // self.layout.slices

        def split(x: jax.Array) -> jax.Array:
            return x.reshape(slices, each, *x.shape[1:])

        def over(counts: jax.Array, blocks: jax.Array, *own: Any) -> Any:
            turns = (split(counts).max(0), split(blocks).max(0))

            def one_slice(*own: Any) -> Any:
                if each > 1:
                    return jax.lax.map(lambda lane: function(*lane), (*turns, *own))
                only = jax.tree.map(lambda x: x[0], (*turns, *own))
                return jax.tree.map(lambda x: x[None], function(*only))

            out = self.layout.over_agents(one_slice)(*jax.tree.map(split, own))
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

        return over

    def adapters(self, own: Any, scale_A: jax.Array, row_agent: jax.Array) -> Adapters:
        """The adapters of one lane.

        Args:
          own: the lane's adapters, leading axis A: its agents.
          scale_A: [A] float32.
          row_agent: [N] int32, each row's agent, counted within the group.
        """
        a = {name: leaf["a"].swapaxes(0, 1) for name, leaf in own.items()}
        b = {name: leaf["b"].swapaxes(0, 1) for name, leaf in own.items()}
        return Adapters(a, b, scale_A, row_agent % scale_A.shape[0])

    def for_training(
        self, own: Any, frozen: Any, scale_A: jax.Array | None, row_agent: jax.Array
    ) -> tuple[Any, Adapters | None]:
        """Parameters and adapters of one lane.

        Args:
          own: mode "lora": the lane's adapters; else one set of weights.
          frozen: the base (mode "lora").
          scale_A: [A] float32, of the lane's adapters (mode "lora").
          row_agent: [R] int32, each row's agent, counted within the group.
        """
        if self.mode != "lora":
            return own, None
        return frozen, self.adapters(own, scale_A, row_agent)

    def in_int8(
        self, trainable: Any, frozen: Any, rounded: Callable[[Any], Any]
    ) -> tuple[Any, Any]:
        """What `for_sampling` reads of (trainable, frozen), with its matrices in int8
        by `int8.params` or `int8.param_shapes`; adapters stay as they are."""
        if self.mode == "lora":
            return trainable, rounded(frozen)
        if self.trainable:
            return rounded(trainable), None
        return None, rounded(frozen)

    def for_sampling(self, trainable: Any, frozen: Any) -> tuple[Any, Any]:
        """(params, adapters) of the rows, by slice of the mesh.

        Returns:
          Mode "full": weights [slices, pools, ...], None. Mode "lora": the base, and
          (adapters [slices, A, ...], scales [slices, A]). Mode "shared": weights
          [1, 1, ...], None.
        """
        slices = self.layout.slices
        if self.mode == "lora":
            scales = jnp.asarray(self.scales()).reshape(slices, -1)
            return frozen, (self.in_lanes(trainable), scales)
        weights = trainable if self.trainable else frozen
        return jax.tree.map(
            lambda p: p.reshape(slices, -1, *p.shape[1:]), weights
        ), None

    def of_pool(self, params: Any, pool: jax.Array) -> tuple[Any, jax.Array | None]:
        """(weights, `member` of `Decoder`) for one pool of a slice; only what stands
        outside the layers is taken out of the stack."""
        if self.mode == "lora":
            return params, None
        if self.pools == 1:
            return jax.tree.map(lambda p: p[0], params), None
        own = {
            name: leaf if name == "layers" else jax.tree.map(lambda p: p[pool], leaf)
            for name, leaf in params.items()
        }
        return own, pool


def check_mesh(policy: Policy, names: Sequence[str]) -> None:
    """Refuses a mesh on which the group cannot lie.

    Raises:
      ConfigError: naming the key and the remedy.
    """
    layout, cfg = policy.layout, policy.cfg
    if policy.agents % layout.slices:
        members = [names[m] for m in policy.members]
        raise ConfigError(
            f"config.mesh.agent={layout.slices} does not divide the {policy.agents} "
            f"agents {members} of one group; set it to 1, or to a number that divides "
            "every group"
        )
    if cfg.n_kv_heads % layout.tensor:
        raise ConfigError(
            f"config.mesh.tensor={layout.tensor} does not divide the model's "
            f"{cfg.n_kv_heads} key and value heads; choose a divisor of them, and more "
            "of mesh.fsdp"
        )


def trainable_shapes(policy: Policy, dtype: Any) -> Any:
    """The trained tree as ShapeDtypeStructs, leading axis `sets`."""
    base = hf.param_shapes(policy.cfg, dtype)
    if policy.mode != "lora":
        return jax.tree.map(
            lambda s: jax.ShapeDtypeStruct((policy.sets, *s.shape), dtype), base
        )
    layers, rank = policy.cfg.n_layers, max(policy.ranks)

    def adapter(name: str) -> dict[str, Any]:
        if name not in base["layers"]:
            raise ConfigError(f"lora.targets: this model has no {name!r}")
        _, wide, out = base["layers"][name]["kernel"].shape
        lead = (policy.sets, layers)
        return {
            "a": jax.ShapeDtypeStruct((*lead, wide, rank), jnp.float32),
            "b": jax.ShapeDtypeStruct((*lead, rank, out), jnp.float32),
        }

    return {name: adapter(name) for name in policy.lora.targets}


def placed_shapes(policy: Policy, mesh: Mesh, dtype: Any) -> tuple[Any, Any]:
    """(trainable, frozen) as ShapeDtypeStructs that say where each array lies; None
    stands for what the group does not have."""
    lead = (policy.layout.agent_axis,)

    def placed(shapes: Any, lead: tuple[str | None, ...]) -> Any:
        where = meshlib.param_shardings(mesh, shapes, lead)
        return jax.tree.map(
            lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w),
            shapes,
            where,
        )

    stacked = placed(trainable_shapes(policy, dtype), lead)
    one = placed(hf.param_shapes(policy.cfg, dtype), ())
    if policy.mode == "lora":
        return stacked, one
    if not policy.trainable:
        return None, stacked
    if not policy.reference:
        return stacked, None
    return stacked, stacked if policy.stacked_reference else one


def init(
    policy: Policy, folders: Sequence[Path], mesh: Mesh, seed: int, dtype: Any
) -> tuple[Any, Any]:
    """(trainable, frozen), sharded; see `placed_shapes`.

    Args:
      policy: the static half.
      folders: the Hugging Face folder of each member's initial weights.
      mesh: where the arrays live.
      seed: of the adapters.
      dtype: of the weights.
    """
    shapes = placed_shapes(policy, mesh, dtype)
    trainable, frozen = jax.tree.map(lambda s: s.sharding, shapes)
    own = folders[: policy.sets]
    if policy.mode == "lora":
        base = hf.load_params(folders[0], policy.cfg, frozen, dtype)
        return _init_adapters(policy, shapes[0], seed), base
    if not policy.trainable:
        return None, _stack(policy, own, frozen, dtype)
    weights = _stack(policy, own, trainable, dtype)
    if not policy.reference:
        return weights, None
    if policy.stacked_reference:
        return weights, _stack(policy, own, frozen, dtype)
    return weights, hf.load_params(folders[0], policy.cfg, frozen, dtype)


def _stack(policy: Policy, folders: Sequence[Path], shardings: Any, dtype: Any) -> Any:
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


def _init_adapters(policy: Policy, shapes: Any, seed: int) -> Any:
    """a is normal with variance 1/in, b is zero: the policy starts as the base.

    An agent whose rank is below the largest has zeros in a's further columns: neither
    they nor b's further rows ever have a gradient.
    """
    ranks = np.asarray(policy.ranks)[:, None, None, None]

    def make():
        def one(path, shape):
            name = meshlib.path_name(path)
            if name.endswith("/b"):
                return jnp.zeros(shape.shape, shape.dtype)
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
            scale = shape.shape[-2] ** -0.5
            a = scale * jax.random.normal(key, shape.shape, shape.dtype)
            return jnp.where(jnp.arange(shape.shape[-1]) < ranks, a, 0.0)

        return jax.tree_util.tree_map_with_path(one, shapes)

    return jax.jit(make, out_shardings=jax.tree.map(lambda s: s.sharding, shapes))()


def agent_params(policy: Policy, trainable: Any, frozen: Any, agent: int) -> Any:
    """One agent's whole weights, adapters merged: what an export writes.

    `agent` is counted within the group.
    """
    if policy.mode != "lora":
        stack = trainable if policy.trainable else frozen
        return jax.tree.map(lambda p: p[agent if policy.sets > 1 else 0], stack)
    own: Mapping[str, Any] = jax.tree.map(lambda p: p[agent], trainable)
    layers = dict(frozen["layers"])
    for name, leaf in own.items():
        update = policy.scales()[agent] * jnp.einsum(
            "lir,lro->lio", leaf["a"], leaf["b"], precision="highest"
        )
        kernel = layers[name]["kernel"]
        merged = (kernel.astype(jnp.float32) + update).astype(kernel.dtype)
        layers[name] = {**layers[name], "kernel": merged}
    return {**frozen, "layers": layers}


def agent_adapter(policy: Policy, trainable: Any, agent: int) -> Any:
    """One agent's adapter (mode "lora") without the padding of its rank: by target, "a"
    [L, in, R] and "b" [L, R, out], float32 NumPy.

    `agent` is counted within the group.
    """
    rank = policy.ranks[agent]
    return {
        name: {
            "a": np.asarray(leaf["a"][agent])[..., :rank],
            "b": np.asarray(leaf["b"][agent])[:, :rank],
        }
        for name, leaf in trainable.items()
    }


def stack_adapters(policy: Policy, adapters: Sequence[Any], like: Any) -> Any:
    """The trained tree of a group (mode "lora") with these adapters, the inverse of
    `agent_adapter`: one for each member, placed like `like`.

    Raises:
      ValueError: an adapter has another shape.
    """

    def one(path: Any, place: Any) -> Any:
        name, leaf = meshlib.path_name(path).rsplit("/", 1)
        out = np.zeros(place.shape, place.dtype)
        for i, (own, rank) in enumerate(zip(adapters, policy.ranks, strict=True)):
            part = out[i, ..., :rank] if leaf == "a" else out[i, :, :rank]
            part[...] = own[name][leaf]
        return meshlib.place(out, place.sharding)

    return jax.tree_util.tree_map_with_path(one, like)
