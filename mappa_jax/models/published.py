"""Architectures of published models, for planning without their files.

Each entry is what the model's config.json on the Hugging Face hub says, read by the
same function as a file. They were compared with the same figures in
github.com/AI-Hypercomputer/maxtext (src/MaxText/configs/models/qwen3-*.yml) and
github.com/google/tunix (tunix/models/qwen2/model.py), and their numbers of weights
with the model cards' (tests/models/test_published.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mappa_jax.models import hf
from mappa_jax.models.config import ModelConfig, ModelError, from_hf
from mappa_jax.models.registry import RANDOM_SIZES


def _qwen3(
    hidden: int, mlp: int, layers: int, heads: int, *, tied: bool
) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
    }


def _llama32(hidden: int, layers: int, heads: int, head_dim: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": hidden,
        "intermediate_size": 8192,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": head_dim,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }


def _smollm2(
    hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, theta: float
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 49152,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 8192,
        "rope_theta": theta,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }


_R1_QWEN_1_5B = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, tied=True),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, tied=True),
    "Qwen/Qwen3-4B": _qwen3(2560, 9728, 36, 32, tied=True),
    "Qwen/Qwen3-8B": _qwen3(4096, 12288, 36, 32, tied=False),
    "Qwen/Qwen3-14B": _qwen3(5120, 17408, 40, 40, tied=False),
    "Qwen/Qwen3-32B": _qwen3(5120, 25600, 64, 64, tied=False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _R1_QWEN_1_5B,
    "meta-llama/Llama-3.2-1B-Instruct": _llama32(2048, 16, 32, 64),
    "meta-llama/Llama-3.2-3B-Instruct": _llama32(3072, 28, 24, 128),
    "smollm2-135m-instruct": _smollm2(576, 1536, 30, 9, 3, 1e5),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2(576, 1536, 30, 9, 3, 1e5),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _smollm2(2048, 8192, 24, 32, 32, 1.3e5),
}


def architecture(name: str) -> ModelConfig:
    """The architecture of a model by its name, or of a folder with config.json.

    Nothing is fetched.

    Raises:
      ModelError: neither in the table nor on this disk.
    """
    if name in PUBLISHED:
        return from_hf(PUBLISHED[name])
    if name.startswith("random:"):
        size = name.removeprefix("random:").partition("/")[0]
        if size in RANDOM_SIZES:
            return RANDOM_SIZES[size]
        raise ModelError(f"model {name!r}: sizes are {sorted(RANDOM_SIZES)}")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return hf.read_config(folder)
    raise ModelError(
        f"model {name!r}: its architecture is not in models/published.py "
        f"({', '.join(sorted(PUBLISHED))}); give a folder with its config.json"
    )
