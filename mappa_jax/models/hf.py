"""Weights in and out: Hugging Face folders (config.json + safetensors).

Reading goes straight from the memory-mapped file into each device's shard: the
only extra memory is one parameter's shard at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mappa_jax.models.config import ModelConfig, ModelError, from_hf, to_hf
from mappa_jax.models.decoder import Decoder
from mappa_jax.parallel.mesh import path_name

SHARD_BYTES = 1 << 30

# Our layer parameter -> the tensor's name within a Hugging Face layer.
_LAYER = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}
_NORMS = {"mlp_norm": "post_attention_layernorm"}
_POST_NORMS = {
    "attn_out_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}
_TOP = {
    "embed": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    "final_norm/weight": "model.norm.weight",
}


def read_config(folder: Path) -> ModelConfig:
    """Reads `folder`/config.json.

    Raises:
      ModelError: the file is missing or malformed, or describes a model that is
        not supported.
    """
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError as e:
        raise ModelError(f"{path} is missing: not a Hugging Face model folder") from e
    except json.JSONDecodeError as e:
        raise ModelError(f"{path}: line {e.lineno}: {e.msg}") from e
    try:
        return from_hf(raw)
    except KeyError as e:
        raise ModelError(f"{path}: the key {e} is missing") from e


def param_shapes(cfg: ModelConfig, dtype: Any = jnp.float32) -> Any:
    """The parameter tree as ShapeDtypeStructs of `dtype`."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tree = jax.eval_shape(Decoder(cfg).init, jax.random.key(0), one, one, one)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, dtype), tree["params"])


def tensor_name(cfg: ModelConfig, name: str) -> str:
    """The Hugging Face name of our parameter; "{}" stands for the layer."""
    if name in _TOP:
        return _TOP[name]
    _, part, leaf = name.split("/")
    table = _LAYER | (_POST_NORMS if cfg.post_norms else _NORMS)
    return f"model.layers.{{}}.{table[part]}.{'bias' if leaf == 'bias' else 'weight'}"


class Tensors:
    """The tensors of all safetensors files in a folder, opened lazily by mapping.

    Raises:
      ModelError: a file is missing or truncated; named.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._where: dict[str, Any] = {}
        for path in self._files():
            try:
                handle = safe_open(str(path), "numpy")
            except (SafetensorError, OSError) as e:
                raise ModelError(
                    f"{path}: not a whole safetensors file ({e}); fetch it again"
                ) from e
            self._where |= dict.fromkeys(handle.keys(), handle)

    def _files(self) -> list[Path]:
        index = self.folder / "model.safetensors.index.json"
        if not index.exists():
            paths = sorted(self.folder.glob("*.safetensors"))
            if not paths:
                raise ModelError(f"{self.folder}: no *.safetensors file in this folder")
            return paths
        names = set(json.loads(index.read_text())["weight_map"].values())
        paths = [self.folder / name for name in sorted(names)]
        if gone := [p.name for p in paths if not p.exists()]:
            raise ModelError(f"{self.folder}: {index.name} names missing files: {gone}")
        return paths

    def names(self) -> set[str]:
        return set(self._where)

    def get(self, name: str) -> Any:
        """A slice object: index it to read just that part."""
        if name not in self._where:
            raise ModelError(f"{self.folder}: the tensor {name!r} is missing")
        return self._where[name].get_slice(name)


def load_params(
    folder: Path, cfg: ModelConfig, shardings: Any, dtype: Any = jnp.float32
) -> Any:
    """Reads a Hugging Face folder into sharded arrays.

    Args:
      folder: with config.json and *.safetensors.
      cfg: what `read_config` gave.
      shardings: a tree like the parameters, of NamedShardings.
      dtype: of the parameters.

    Raises:
      ModelError: a tensor is missing, unknown or of another shape; a file is
        missing or truncated.
    """
    tensors = Tensors(folder)
    shapes = param_shapes(cfg, dtype)
    check_names(tensors, cfg, shapes)

    def one(path, shape, sharding):
        read = reader(tensors, tensor_name(cfg, path_name(path)), shape)
        return jax.make_array_from_callback(shape.shape, sharding, read)

    return jax.tree_util.tree_map_with_path(one, shapes, shardings)


def reader(tensors: Tensors, name: str, shape: jax.ShapeDtypeStruct):
    """A callback that reads one shard. Kernels are [out, in] there, [in, out] here."""
    transpose = ".layers." in name and len(shape.shape) == 3
    inner = shape.shape[1:] if ".layers." in name else shape.shape
    inner = inner[::-1] if transpose else inner

    def slice_of(tensor_name, index):
        found = tensors.get(tensor_name)
        if tuple(found.get_shape()) != tuple(inner):
            raise ModelError(
                f"{tensors.folder}: {tensor_name} has shape {found.get_shape()}, "
                f"config.json asks for {list(inner)}"
            )
        part = found[index[::-1] if transpose else index]
        return part.T if transpose else part

    def read(index):
        if "{}" not in name:
            return np.asarray(slice_of(name, index), shape.dtype)
        layers = range(*index[0].indices(shape.shape[0]))
        parts = (slice_of(name.format(i), index[1:]) for i in layers)
        first = next(parts)
        out = np.empty((len(layers), *first.shape), shape.dtype)
        out[0] = first
        for i, part in enumerate(parts, 1):
            out[i] = part
        return out

    return read


def check_names(tensors: Tensors, cfg: ModelConfig, shapes: Any) -> None:
    wanted = set(_expected(cfg, shapes))
    ignored = {"lm_head.weight"} if cfg.tie_embeddings else set()
    unknown = {
        n for n in tensors.names() - wanted - ignored if "rotary_emb.inv_freq" not in n
    }
    if missing := sorted(wanted - tensors.names()):
        raise ModelError(
            f"{tensors.folder}: {len(missing)} tensors missing: {missing[:4]}"
        )
    if unknown:
        raise ModelError(
            f"{tensors.folder}: tensors that a {cfg.family} model does not have: "
            f"{sorted(unknown)[:4]}"
        )


def _expected(cfg: ModelConfig, shapes: Any) -> Iterator[str]:
    for path, _ in jax.tree_util.tree_leaves_with_path(shapes):
        name = tensor_name(cfg, path_name(path))
        if "{}" in name:
            yield from (name.format(i) for i in range(cfg.n_layers))
        else:
            yield name


def save_tensors(tensors: Iterator[tuple[str, np.ndarray]], folder: Path) -> None:
    """Writes model-*.safetensors of about a gibibyte each, and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    shard: dict[str, np.ndarray] = {}
    where: dict[str, str] = {}
    count, size, total = 0, 0, 0

    def flush():
        nonlocal shard, size, count
        if shard:
            count += 1
            file = f"model-{count:05d}.safetensors"
            save_file(shard, str(folder / file), metadata={"format": "pt"})
            where.update(dict.fromkeys(shard, file))
        shard, size = {}, 0

    for name, value in tensors:
        if size + value.nbytes > SHARD_BYTES:
            flush()
        shard[name] = np.ascontiguousarray(value)
        size += value.nbytes
        total += value.nbytes
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def save_params(params: Any, cfg: ModelConfig, folder: Path) -> None:
    """Writes parameters as a Hugging Face folder that `transformers` can load."""

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            name = tensor_name(cfg, path_name(path))
            if "{}" not in name:
                yield name, np.asarray(leaf)
                continue
            for i in range(cfg.n_layers):
                part = np.asarray(leaf[i])
                yield name.format(i), part.T if part.ndim == 2 else part

    folder = Path(folder)
    save_tensors(tensors(), folder)
    dtype = str(jax.tree.leaves(params)[0].dtype)
    config = to_hf(cfg) | {"torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def numpy_params(folder: Path) -> tuple[ModelConfig, Mapping[str, Any]]:
    """Config and parameters on the default device, float32: for tests and tools."""
    cfg = read_config(folder)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: device, param_shapes(cfg))
    return cfg, load_params(folder, cfg, shardings)
