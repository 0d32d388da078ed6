"""The decoder against `transformers` itself, on configs that no file pins."""

from pathlib import Path

import jax
import numpy as np
import pytest
import scripts

from mappa_jax.models import hf
from mappa_jax.models.decoder import Decoder, logits

pytestmark = pytest.mark.slow
pytest.importorskip("torch", reason="transformers computes the reference with torch")


@pytest.fixture(scope="module")
def golden():
    return scripts.load(Path(__file__).with_name("make_golden.py"))


def random_changes(name, rng):
    """Sizes and switches of a config class, drawn anew."""
    kv_heads = int(rng.choice([1, 2, 3]))
    heads = kv_heads * int(rng.choice([1, 2]))
    changes = dict(
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=int(rng.choice([4, 8])),
        hidden_size=8 * heads,
        intermediate_size=int(rng.choice([16, 28])),
        num_hidden_layers=int(rng.choice([2, 4])),
        tie_word_embeddings=bool(rng.integers(2)),
        rms_norm_eps=float(rng.choice([1e-6, 0.01])),
    )
    theta = float(rng.choice([20.0, 1e4]))
    rope = dict(rope_type="default", rope_theta=theta)
    if name == "Gemma3TextConfig":
        local = dict(rope_type="default", rope_theta=float(rng.choice([10.0, 99.0])))
        kinds = ["sliding_attention", "full_attention"]
        return changes | dict(
            rope_parameters=dict(sliding_attention=local, full_attention=rope),
            layer_types=[
                kinds[int(k)] for k in rng.integers(0, 2, changes["num_hidden_layers"])
            ],
            sliding_window=int(rng.choice([3, 9])),
            query_pre_attn_scalar=int(rng.choice([5, 20])),
        )
    if name == "LlamaConfig":
        changes["mlp_bias"] = bool(rng.integers(2))
    if name in ("LlamaConfig", "Qwen3Config"):
        changes["attention_bias"] = bool(rng.integers(2))
    return changes | dict(rope_parameters=rope)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "name", ["LlamaConfig", "Qwen2Config", "Qwen3Config", "Gemma3TextConfig"]
)
def test_fresh_configs_match_transformers(golden, name, seed, tmp_path):
    rng = np.random.default_rng(seed)
    model = golden.random_model(name, random_changes(name, rng), seed)
    model.save_pretrained(tmp_path)
    tokens = rng.integers(0, 61, (2, 20)).astype(np.int32)
    want = golden.reference_logits(model, tokens)
    cfg, params = hf.numpy_params(tmp_path)
    positions = np.broadcast_to(np.arange(20), tokens.shape)

    @jax.jit
    def run(params, *rows):
        hidden, _ = Decoder(cfg).apply({"params": params}, *rows)
        return logits(params, cfg, hidden)

    got = np.asarray(
        run(params, tokens, positions, np.full_like(tokens, tokens.shape[1]))
    )
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
