"""GGUF files written here with the `gguf` library, converted and read back."""

import gguf
import jax
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from mappa_jax.models import gguf as ours
from mappa_jax.models import hf
from mappa_jax.models.config import ModelConfig, ModelError, Rope
from mappa_jax.models.tokenizer import Tokenizer
from mappa_jax.types import Message

TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "<|end|>", "<|u|>"]
SHAPE = dict(
    vocab_size=len(TOKENS),
    d_model=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    d_ff=64,
    max_context=128,
    rope=Rope(500.0),
    rms_norm_eps=1e-5,
)
CONFIGS = {
    "llama": ModelConfig(family="llama", tie_embeddings=True, **SHAPE),
    "qwen2": ModelConfig(family="qwen2", qkv_bias=True, **SHAPE),
    "qwen3": ModelConfig(family="qwen3", qk_norm=True, **SHAPE),
    "gemma3": ModelConfig(
        family="gemma3",
        tie_embeddings=True,
        activation="gelu_pytorch_tanh",
        qk_norm=True,
        norm_offset=1.0,
        post_norms=True,
        embed_scale=32**0.5,
        sliding_window=16,
        sliding_layers=(True, True),
        local_rope=Rope(10000.0),
        **SHAPE,
    ),
}
NAMES = {  # Hugging Face -> GGUF, as llama.cpp's converter has it
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
NORMS = {"post_attention_layernorm": "ffn_norm"}
GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "model.norm.weight": "output_norm.weight",
}


def gguf_name(name, cfg):
    if name in TOP:
        return TOP[name]
    _, _, layer, *part, leaf = name.split(".")
    table = NAMES | (GEMMA_NORMS if cfg.post_norms else NORMS)
    return f"blk.{layer}.{table['.'.join(part)]}.{leaf}"


def as_llama_cpp_stores(name, value, cfg):
    """Interleaved rows of Llama's q and k; Gemma's norms with their 1 added."""
    heads = {"q_proj": cfg.n_heads, "k_proj": cfg.n_kv_heads}
    part = name.split(".")[-2]
    if cfg.family == "llama" and part in heads:
        halves = value.reshape(heads[part], 2, -1, *value.shape[1:])
        return halves.swapaxes(1, 2).reshape(value.shape)
    if cfg.family == "gemma3" and "norm" in part:
        return value + 1
    return value


def hf_tensors(params, cfg):
    """Names and values as Hugging Face has them."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = hf.tensor_name(cfg, hf.path_name(path))
        for i in range(cfg.n_layers) if "{}" in name else [None]:
            value = np.asarray(leaf if i is None else leaf[i])
            transposed = i is not None and value.ndim == 2
            yield name.format(i), value.T if transposed else value


def random_params(cfg):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        # Eighths: exact when 1 is added and taken away.
        lambda s: (rng.integers(-16, 17, s.shape) / 8).astype(np.float32),
        hf.param_shapes(cfg),
    )


def write(path, cfg, params, kind="F32", arch=None, template="{{ messages }}", **extra):
    arch = arch or cfg.family
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(cfg.n_layers)
    writer.add_context_length(cfg.max_context)
    writer.add_embedding_length(cfg.d_model)
    writer.add_feed_forward_length(cfg.d_ff)
    writer.add_head_count(cfg.n_heads)
    writer.add_head_count_kv(cfg.n_kv_heads)
    writer.add_key_length(cfg.head_dim)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    writer.add_rope_freq_base(cfg.rope.theta)
    if cfg.sliding_window:
        writer.add_sliding_window(cfg.sliding_window)
    for key, value in extra.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    control = [gguf.TokenType.CONTROL] * 2
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(TOKENS) - 2) + control)
    writer.add_token_merges(["h e"])
    writer.add_eos_token_id(len(TOKENS) - 2)
    if template is not None:
        writer.add_chat_template(template)
    wanted = gguf.GGMLQuantizationType[kind]
    for name, value in hf_tensors(params, cfg):
        value = np.ascontiguousarray(as_llama_cpp_stores(name, value, cfg))
        # As real files do, norms and biases stay as they are.
        used = wanted if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(value, used)
        writer.add_tensor(gguf_name(name, cfg), data, raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", CONFIGS)
def test_a_float_file_reads_back_bit_for_bit(family, tmp_path):
    cfg = CONFIGS[family]
    params = random_params(cfg)
    ours.convert(write(tmp_path / "m.gguf", cfg, params), tmp_path / "out")
    got_cfg, got = hf.numpy_params(tmp_path / "out")
    assert got_cfg.rms_norm_eps == pytest.approx(cfg.rms_norm_eps)
    fields = [f for f in cfg.__dataclass_fields__ if f != "rms_norm_eps"]
    assert {f: getattr(got_cfg, f) for f in fields} == {
        f: getattr(cfg, f) for f in fields
    }
    jax.tree.map(np.testing.assert_array_equal, got, params)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_quantised_files_read_back_as_they_dequantise(kind, tmp_path):
    cfg = CONFIGS["llama"]
    params = random_params(cfg)
    ours.convert(write(tmp_path / "m.gguf", cfg, params, kind), tmp_path / "out")
    _, got = hf.numpy_params(tmp_path / "out")
    step = {"F16": 0, "BF16": 0, "Q8_0": 2 / 127, "Q4_0": 4 / 15, "Q4_1": 4 / 15}[kind]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, atol=1.02 * step)
    wanted = gguf.GGMLQuantizationType[kind]
    embed = gguf.dequantize(gguf.quants.quantize(params["embed"], wanted), wanted)
    np.testing.assert_array_equal(got["embed"], embed)


def test_the_tokenizer_comes_along(tmp_path):
    cfg = CONFIGS["llama"]
    template = "{% for m in messages %}<|u|>{{ m['content'] }}<|end|>{% endfor %}"
    path = write(tmp_path / "m.gguf", cfg, random_params(cfg), template=template)
    ours.convert(path, tmp_path / "out")
    tokenizer = Tokenizer(tmp_path / "out")
    end, user = len(TOKENS) - 2, len(TOKENS) - 1
    ids = tokenizer.render([Message("user", "hey")], thinking=False)
    assert ids.tolist() == [user, TOKENS.index("he"), TOKENS.index("y"), end]
    assert tokenizer.stop_ids == (end,)
    assert tokenizer.decode(ids) == "hey"


def test_linear_rope_scaling_is_read(tmp_path):
    cfg = CONFIGS["llama"]
    path = write(
        tmp_path / "m.gguf",
        cfg,
        random_params(cfg),
        rope_scaling_type=gguf.RopeScalingType.LINEAR,
        rope_scaling_factor=4.0,
    )
    ours.convert(path, tmp_path / "out")
    assert hf.read_config(tmp_path / "out").rope == Rope(500.0, "linear", 4.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(arch="mamba"), "architecture 'mamba'"),
        (dict(template=None), "tokenizer.chat_template"),
        (dict(rope_scaling_type=gguf.RopeScalingType.YARN), "yarn"),
        (dict(kind="Q5_0"), "Q5_0"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(changes, message, tmp_path):
    cfg = CONFIGS["llama"]
    path = write(tmp_path / "m.gguf", cfg, random_params(cfg), **changes)
    with pytest.raises(ModelError, match=message):
        ours.convert(path, tmp_path / "out")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(share, tmp_path):
    cfg = CONFIGS["llama"]
    path = write(tmp_path / "m.gguf", cfg, random_params(cfg))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match="not a whole GGUF file"):
        ours.convert(path, tmp_path / "out")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no such GGUF file"):
        ours.convert(tmp_path / "m.gguf", tmp_path / "out")


def test_an_unknown_tensor_is_refused_by_name(tmp_path, monkeypatch):
    cfg = CONFIGS["llama"]
    monkeypatch.setitem(NAMES, "mlp.up_proj", "ffn_router")
    path = write(tmp_path / "m.gguf", cfg, random_params(cfg))
    with pytest.raises(ModelError, match="unknown tensor blk.0.ffn_router.weight"):
        ours.convert(path, tmp_path / "out")
