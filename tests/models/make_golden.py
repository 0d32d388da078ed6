"""Makes tests/models/golden/ from `transformers` and torch.

  pip install torch==2.13.0 && python tests/models/make_golden.py

Each folder holds a small random model with unusual settings, as `transformers`
saves it, and the logits that it computes in float32 for a few tokens.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import transformers

GOLDEN = Path(__file__).parent / "golden"
TOKENS = 24

_SMALL = dict(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=128,
    rms_norm_eps=0.03,
    initializer_range=0.25,
)
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

CASES = {
    "llama_biases_llama3_rope": (
        "LlamaConfig",
        dict(
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=False,
            hidden_act="gelu",
            rope_parameters=dict(
                rope_type="llama3",
                rope_theta=73.0,
                factor=4.0,
                low_freq_factor=1.2,
                high_freq_factor=3.0,
                original_max_position_embeddings=40,
            ),
        ),
    ),
    "llama_tied_linear_rope": (
        "LlamaConfig",
        dict(
            head_dim=10,
            tie_word_embeddings=True,
            rope_parameters=dict(rope_type="linear", rope_theta=50.0, factor=3.0),
        ),
    ),
    "qwen2_window": (
        "Qwen2Config",
        dict(
            head_dim=4,
            tie_word_embeddings=False,
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=1,
            rope_parameters=dict(rope_type="default", rope_theta=31.0),
        ),
    ),
    "qwen3_biases_window": (
        "Qwen3Config",
        dict(
            attention_bias=True,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=7,
            max_window_layers=2,
            rope_parameters=dict(rope_type="default", rope_theta=17.0),
        ),
    ),
    "gemma3_softcap": (
        "Gemma3TextConfig",
        dict(
            attention_bias=True,
            tie_word_embeddings=True,
            sliding_window=6,
            layer_types=_SLIDING,
            query_pre_attn_scalar=11,
            final_logit_softcapping=3.0,
            rope_parameters=dict(
                sliding_attention=dict(rope_type="default", rope_theta=23.0),
                full_attention=dict(rope_type="linear", rope_theta=400.0, factor=2.0),
            ),
        ),
    ),
}


def random_model(config_class: str, changes: dict, seed: int):
    """A model whose every weight, norms and biases included, is random."""
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(
        **{**_SMALL, **changes}, attn_implementation="eager"
    )
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    )
    with torch.no_grad():
        for param in model.parameters():
            param.add_(torch.randn_like(param) * 0.1)
    return model.float().eval()


def reference_logits(model, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long()).logits.float().numpy()


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for seed, (name, (config_class, changes)) in enumerate(CASES.items()):
        model = random_model(config_class, changes, seed)
        folder = GOLDEN / name
        model.save_pretrained(folder)
        rng = np.random.default_rng(seed)
        tokens = rng.integers(0, 61, (2, TOKENS)).astype(np.int32)
        logits = reference_logits(model, tokens)
        np.savez(folder / "expected.npz", tokens=tokens, logits=logits)
        print(name, json.dumps(dict(params=model.num_parameters())))


if __name__ == "__main__":
    main()
