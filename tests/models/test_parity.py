"""The decoder computes what `transformers` computes, for every family."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mappa_jax.models import hf
from mappa_jax.models.cache import init_cache
from mappa_jax.models.config import ModelError, from_hf, to_hf
from mappa_jax.models.decoder import Decoder, logits

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(p.name for p in GOLDEN.iterdir())


def rows_logits(cfg, params, tokens, positions=None, ends=None):
    if positions is None:
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        ends = np.full_like(tokens, tokens.shape[1])
    model = Decoder(cfg)

    def run(params):
        hidden, _ = model.apply({"params": params}, tokens, positions, ends)
        return logits(params, cfg, hidden)

    return np.asarray(jax.jit(run)(params))


def relative_error(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("case", CASES)
def test_rows_match_transformers(case):
    expected = np.load(GOLDEN / case / "expected.npz")
    cfg, params = hf.numpy_params(GOLDEN / case)
    got = rows_logits(cfg, params, expected["tokens"])
    assert relative_error(got, expected["logits"]) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_decoding_step_by_step_matches_transformers(case):
    """A prefill of 9 tokens, then one token at a time over the cache."""
    expected = np.load(GOLDEN / case / "expected.npz")
    tokens, want = expected["tokens"], expected["logits"]
    cfg, params = hf.numpy_params(GOLDEN / case)
    model = Decoder(cfg, cache_block=8)
    n, total, start = *tokens.shape, 9

    @jax.jit
    def prefill(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(start), (n, start))
        ends = jnp.full_like(positions, start)
        return model.apply({"params": params}, tokens, positions, ends, keep_kv=True)[1]

    @jax.jit
    def step(params, cache, token, position):
        positions = jnp.full((n, 1), position)
        hidden, cache = model.apply(
            {"params": params},
            token,
            positions,
            cache=cache,
            blocks=position // 8 + 1,
        )
        return logits(params, cfg, hidden[:, 0]), cache

    kept = prefill(params, tokens[:, :start])
    cache = jax.tree.map(
        lambda empty, part: empty.at[:, :, :, :start].set(part),
        init_cache(cfg, n, 32),
        kept,
    )
    for t in range(start, total):
        got, cache = step(params, cache, tokens[:, t : t + 1], jnp.int32(t))
        assert relative_error(np.asarray(got), want[:, t]) < 1e-4, t


@pytest.mark.parametrize("case", CASES)
def test_packed_sequences_do_not_see_each_other(case):
    expected = np.load(GOLDEN / case / "expected.npz")
    cfg, params = hf.numpy_params(GOLDEN / case)
    tokens = expected["tokens"]
    width = tokens.shape[1]
    packed = tokens.reshape(1, -1)
    positions = np.tile(np.arange(width), 2)[None]
    ends = np.repeat([width, 2 * width], width)[None]
    got = rows_logits(cfg, params, packed, positions, ends)
    assert relative_error(got.reshape(2, width, -1), expected["logits"]) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_a_shared_prefix_is_as_if_each_had_its_own(case):
    """One prefix and two continuations, depth first, against two whole rows."""
    cfg, params = hf.numpy_params(GOLDEN / case)
    tokens = np.load(GOLDEN / case / "expected.npz")["tokens"].copy()
    width = tokens.shape[1]
    common = width // 2
    tokens[1, :common] = tokens[0, :common]
    want = rows_logits(cfg, params, tokens)
    tree = np.concatenate([tokens[0], tokens[1, common:]])[None]
    positions = np.concatenate([np.arange(width), np.arange(common, width)])[None]
    total = tree.shape[1]
    ends = np.repeat([total, width, total], [common, width - common, width - common])
    got = rows_logits(cfg, params, tree, positions, ends[None])[0]
    assert relative_error(got[:width], want[0]) < 1e-4
    assert relative_error(got[width:], want[1, common:]) < 1e-4


# Each field of config.json that is read, and a value that must change the logits.
CHANGES = {
    "llama_biases_llama3_rope": {
        "rms_norm_eps": 0.5,
        "hidden_act": "silu",
        "rope_parameters.rope_theta": 99.0,
        "rope_parameters.factor": 9.0,
        "rope_parameters.low_freq_factor": 0.9,
        "rope_parameters.high_freq_factor": 5.0,
        "rope_parameters.original_max_position_embeddings": 60,
        "rope_parameters.rope_type": "linear",
        "tie_word_embeddings": True,
    },
    "qwen2_window": {
        "sliding_window": 9,
        "use_sliding_window": False,
        "layer_types": ["sliding_attention"] * 3,
    },
    "qwen3_biases_window": {"sliding_window": 4, "rms_norm_eps": 0.5},
    "gemma3_softcap": {
        "sliding_window": 3,
        "layer_types": ["full_attention"] * 3,
        "query_pre_attn_scalar": 3,
        "final_logit_softcapping": None,
        "hidden_activation": "silu",
        "rope_parameters.sliding_attention.rope_theta": 99.0,
        "rope_parameters.full_attention.factor": 7.0,
    },
}


@pytest.mark.parametrize(
    ("case", "key"), [(c, k) for c, keys in CHANGES.items() for k in keys]
)
def test_every_field_that_is_read_changes_the_result(case, key):
    expected = np.load(GOLDEN / case / "expected.npz")
    raw = json.loads((GOLDEN / case / "config.json").read_text())
    cfg, params = hf.numpy_params(GOLDEN / case)
    *path, last = key.split(".")
    entry = raw
    for part in path:
        entry = entry[part]
    entry[last] = CHANGES[case][key]
    changed = from_hf(raw)
    assert changed != cfg
    got = rows_logits(changed, params, expected["tokens"])
    assert relative_error(got, expected["logits"]) > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_config_round_trip(case):
    cfg = hf.read_config(GOLDEN / case)
    again = from_hf(to_hf(cfg))
    assert again.attn_scale == pytest.approx(cfg.attn_scale)
    assert again == dataclasses.replace(cfg, attn_scale=again.attn_scale)


@pytest.mark.parametrize("case", CASES)
def test_a_written_folder_reads_back_bit_for_bit(case, tmp_path):
    cfg, params = hf.numpy_params(GOLDEN / case)
    hf.save_params(params, cfg, tmp_path)
    _, again = hf.numpy_params(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, again)


def _raw(case="llama_tied_linear_rope"):
    return json.loads((GOLDEN / case / "config.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"hidden_act": "swish2"}, "swish2"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "yarn"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    with pytest.raises(ModelError, match=message):
        from_hf(_raw() | change)
