"""Adapters in and out, as the library `peft` keeps them.

Its update is x + (lora_alpha / r) * lora_B lora_A x, ours x + (alpha / rank) * x A B:
so lora_A is A transposed and lora_B is B transposed; alpha and rank are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from mappa_jax.models.config import ModelConfig, ModelError
from mappa_jax.models.hf import tensor_name

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_FACTORS = {"a": "lora_A", "b": "lora_B"}


def _module(cfg: ModelConfig, target: str) -> str:
    """`peft`'s name of what a target adapts; "{}" stands for the layer."""
    name = tensor_name(cfg, f"layers/{target}/kernel").removesuffix(".weight")
    return f"base_model.model.{name}"


def save_adapter(
    own: Mapping[str, Any], cfg: ModelConfig, folder: Path, *, alpha: float, base: str
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors.

    Args:
      own: by target, "a" [L, in, R] and "b" [L, R, out], at the agent's own rank R.
      cfg: of the base.
      folder: made if need be.
      alpha: the update is alpha / R times the product.
      base: the base's name, for the record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{_module(cfg, target).format(layer)}.{factor}.weight": np.ascontiguousarray(
            np.asarray(leaf[name][layer], np.float32).T
        )
        for target, leaf in own.items()
        for name, factor in _FACTORS.items()
        for layer in range(cfg.n_layers)
    }
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
    rank = next(iter(own.values()))["a"].shape[-1]
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "target_modules": [_module(cfg, target).rsplit(".", 1)[1] for target in own],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
    }
    (folder / CONFIG).write_text(json.dumps(described, indent=1) + "\n")


def load_adapter(
    folder: Path, cfg: ModelConfig, targets: tuple[str, ...]
) -> dict[str, dict[str, np.ndarray]]:
    """What `save_adapter` was given as `own`.

    Raises:
      ModelError: a file is missing or damaged, or it adapts something else.
    """
    path = folder / WEIGHTS
    try:
        tensors = load_file(str(path))
    except Exception as e:  # safetensors has errors of several classes
        raise ModelError(f"{path}: no adapter could be read ({e})") from e

    def stacked(target: str, factor: str) -> np.ndarray:
        name = f"{_module(cfg, target)}.{factor}.weight"
        try:
            return np.stack(
                [tensors.pop(name.format(i)).T for i in range(cfg.n_layers)]
            )
        except KeyError as e:
            raise ModelError(f"{path}: the tensor {e} is missing") from e

    own = {
        target: {name: stacked(target, factor) for name, factor in _FACTORS.items()}
        for target in targets
    }
    if tensors:
        raise ModelError(f"{path}: adapts what lora.targets does not: {min(tensors)}")
    return own
