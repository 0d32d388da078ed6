"""The shape of a decoder-only transformer, and how to read it from Hugging Face.

Families differ by data, not by code: every difference between Llama, Qwen2,
Qwen3 and Gemma 3 is a field of `ModelConfig`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")


class ModelError(ValueError):
    """Weights or a model description that cannot be used; says which and why."""


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary position embedding. `kind` is "default", "linear" or "llama3".

    `low_freq_factor`, `high_freq_factor` and `original_context` (tokens) belong
    to the Llama 3 rule: wavelengths beyond original_context / low_freq_factor are
    stretched by `factor`, those below original_context / high_freq_factor are
    kept, and the ones between are blended.
    """

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_context: int = 0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Static description of one architecture; hashable, so jit can close over it."""

    family: str
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    max_context: int
    rope: Rope
    rms_norm_eps: float
    activation: str = "silu"
    tie_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_offset: float = 0.0  # Gemma multiplies by 1 + weight
    post_norms: bool = False  # Gemma normalises a block's output as well
    embed_scale: float = 1.0
    attn_scale: float = 0.0  # multiplies q.k; 0 is replaced by head_dim ** -0.5
    final_softcap: float = 0.0  # of the logits, cap * tanh(x / cap); 0: none
    sliding_window: int = 0  # tokens; of the layers marked below
    sliding_layers: tuple[bool, ...] = ()
    local_rope: Rope | None = None  # of the sliding layers, where it differs

    def __post_init__(self):
        if not self.attn_scale:
            object.__setattr__(self, "attn_scale", self.head_dim**-0.5)
        if not self.sliding_layers:
            object.__setattr__(self, "sliding_layers", (False,) * self.n_layers)
        if self.n_heads % self.n_kv_heads:
            raise ModelError(
                f"num_attention_heads={self.n_heads} is not a multiple of "
                f"num_key_value_heads={self.n_kv_heads}"
            )

    @property
    def n_params(self) -> int:
        """Number of weights, embeddings counted once where they are tied."""
        attention = self.d_model * self.head_dim * 2 * (self.n_heads + self.n_kv_heads)
        layer = attention + 3 * self.d_model * self.d_ff
        tables = 1 if self.tie_embeddings else 2
        return self.n_layers * layer + tables * self.vocab_size * self.d_model


# Hugging Face architecture -> our family.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3",
}


def from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """Reads a Hugging Face config.json.

    Both layouts are read: rope_theta with rope_scaling, and the newer
    rope_parameters (one entry, or one per layer type).

    Raises:
      ModelError: an unknown architecture, activation or RoPE type, or a setting
        that would change the result and that is not implemented; named.
    """
    names = config.get("architectures") or ["(none)"]
    if names[0] not in ARCHITECTURES:
        raise ModelError(
            f"architecture {names[0]!r} is not supported; supported are "
            + ", ".join(sorted(ARCHITECTURES))
        )
    family = ARCHITECTURES[names[0]]
    for key, neutral in _MUST_BE_NEUTRAL.items():
        if config.get(key, neutral) not in (neutral, None):
            raise ModelError(f"config.json: {key}={config[key]!r} is not supported")
    heads = config["num_attention_heads"]
    layers = config["num_hidden_layers"]
    shape = dict(
        family=family,
        vocab_size=config["vocab_size"],
        d_model=config["hidden_size"],
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        d_ff=config["intermediate_size"],
        max_context=config["max_position_embeddings"],
        rms_norm_eps=config["rms_norm_eps"],
        tie_embeddings=config.get("tie_word_embeddings", family == "gemma3"),
    )
    return ModelConfig(**shape, **_FAMILIES[family](config))


_MUST_BE_NEUTRAL = {
    "partial_rotary_factor": 1.0,
    "use_bidirectional_attention": False,
    "quantization_config": None,
    "attn_logit_softcapping": None,  # no Gemma 3 has it; transformers ignores it
}


def _llama(config: Mapping[str, Any]) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    return dict(
        rope=_rope(_rope_entry(config), config),
        activation=_activation(config.get("hidden_act", "silu")),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
    )


def _qwen2(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        rope=_rope(_rope_entry(config), config),
        activation=_activation(config.get("hidden_act", "silu")),
        qkv_bias=True,
        **_qwen_window(config),
    )


def _qwen3(config: Mapping[str, Any]) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    return dict(
        rope=_rope(_rope_entry(config), config),
        activation=_activation(config.get("hidden_act", "silu")),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        **_qwen_window(config),
    )


def _qwen_window(config: Mapping[str, Any]) -> dict[str, Any]:
    window = config.get("sliding_window")
    if not (config.get("use_sliding_window", False) and window):
        return {}
    first = config.get("max_window_layers", config["num_hidden_layers"])
    kinds = config.get("layer_types") or [
        "sliding_attention" if i >= first else "full_attention"
        for i in range(config["num_hidden_layers"])
    ]
    return dict(sliding_window=window, sliding_layers=_sliding(kinds, config))


def _gemma3(config: Mapping[str, Any]) -> dict[str, Any]:
    pattern = config.get("sliding_window_pattern", 6)
    kinds = config.get("layer_types") or [
        "sliding_attention" if (i + 1) % pattern else "full_attention"
        for i in range(config["num_hidden_layers"])
    ]
    bias = bool(config.get("attention_bias", False))
    ropes = config.get("rope_parameters") or {}
    local = ropes.get("sliding_attention") or {
        "rope_theta": config.get("rope_local_base_freq", 10000.0)
    }
    return dict(
        rope=_rope(_rope_entry(config, "full_attention", 1e6), config),
        local_rope=_rope(local, config),
        activation=_activation(config.get("hidden_activation", "gelu_pytorch_tanh")),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        norm_offset=1.0,
        post_norms=True,
        embed_scale=math.sqrt(config["hidden_size"]),
        attn_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        final_softcap=config.get("final_logit_softcapping") or 0.0,
        sliding_window=config.get("sliding_window") or 4096,
        sliding_layers=_sliding(kinds, config),
    )


_FAMILIES = {"llama": _llama, "qwen2": _qwen2, "qwen3": _qwen3, "gemma3": _gemma3}


def _sliding(kinds: list[str], config: Mapping[str, Any]) -> tuple[bool, ...]:
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown or len(kinds) != config["num_hidden_layers"]:
        raise ModelError(
            f"config.json: layer_types {sorted(set(kinds))} x {len(kinds)}"
        )
    return tuple(kind == "sliding_attention" for kind in kinds)


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ModelError(f"activation {name!r} is not supported; {ACTIVATIONS} are")
    return name


def _rope_entry(
    config: Mapping[str, Any], layer_type: str = "", theta: float = 10000.0
) -> Mapping[str, Any]:
    ropes = config.get("rope_parameters")
    if ropes and layer_type:
        return ropes[layer_type]
    if ropes:
        return ropes
    scaling = config.get("rope_scaling") or {}
    return {"rope_theta": config.get("rope_theta", theta), **scaling}


def _rope(entry: Mapping[str, Any], config: Mapping[str, Any]) -> Rope:
    kind = entry.get("rope_type") or entry.get("type") or "default"
    theta = float(entry["rope_theta"])
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, float(entry["factor"]))
    if kind == "llama3":
        return Rope(
            theta,
            kind,
            float(entry["factor"]),
            float(entry["low_freq_factor"]),
            float(entry["high_freq_factor"]),
            int(
                entry.get("original_max_position_embeddings")
                or config["max_position_embeddings"]
            ),
        )
    raise ModelError(
        f"RoPE type {kind!r} is not supported; default, linear, llama3 are"
    )


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The config.json that `from_hf` reads back as `cfg`."""
    by_family = {family: name for name, family in ARCHITECTURES.items()}
    out: dict[str, Any] = {
        "architectures": [by_family[cfg.family]],
        "model_type": {"gemma3": "gemma3_text"}.get(cfg.family, cfg.family),
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_ff,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.head_dim,
        "max_position_embeddings": cfg.max_context,
        "rms_norm_eps": cfg.rms_norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        "hidden_act": cfg.activation,
        "rope_theta": cfg.rope.theta,
        "attention_bias": cfg.qkv_bias,
        "torch_dtype": "float32",
    }
    if cfg.rope.kind != "default":
        out["rope_scaling"] = _rope_to_hf(cfg.rope)
    if cfg.family == "llama":
        out["mlp_bias"] = cfg.mlp_bias
    if any(cfg.sliding_layers) or cfg.family == "gemma3":
        out |= {
            "sliding_window": cfg.sliding_window,
            "layer_types": [
                "sliding_attention" if s else "full_attention"
                for s in cfg.sliding_layers
            ],
        }
    if cfg.family in ("qwen2", "qwen3"):
        out["use_sliding_window"] = any(cfg.sliding_layers)
        out["max_window_layers"] = (
            cfg.sliding_layers.index(True) if any(cfg.sliding_layers) else cfg.n_layers
        )
    if cfg.family == "gemma3":
        assert cfg.local_rope is not None
        out |= {
            "hidden_activation": cfg.activation,
            "query_pre_attn_scalar": round(cfg.attn_scale**-2, 6),
            "final_logit_softcapping": cfg.final_softcap or None,
            "rope_local_base_freq": cfg.local_rope.theta,
        }
    return out


def _rope_to_hf(rope: Rope) -> dict[str, Any]:
    out: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "llama3":
        out |= {
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_context,
        }
    return out
