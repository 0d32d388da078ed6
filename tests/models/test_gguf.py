"""GGUF files written here with the `gguf` library, converted and read back."""

import dataclasses

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


def write(
    path,
    cfg,
    params,
    kind="F32",
    arch=None,
    template="{{ messages }}",
    added=gguf.TokenType.CONTROL,
    **extra,
):
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
    plain = [gguf.TokenType.NORMAL] * (len(TOKENS) - 2)
    writer.add_token_types([*plain, added, added])
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


def by_hand_q4_k(block):
    """[256] of a block of ggml's Q4_K: two halves' scales and minima in six bits."""
    d, least = np.frombuffer(block[:4], np.float16).astype(np.float32)
    packed, quants = block[4:16], np.frombuffer(block[16:], np.uint8)
    out = []
    for j in range(8):
        if j < 4:
            scale, low = packed[j] & 63, packed[j + 4] & 63
        else:
            scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4)
            low = (packed[j + 4] >> 4) | (packed[j] >> 6 << 4)
        part = quants[32 * (j // 2) : 32 * (j // 2) + 32]
        nibbles = part >> 4 if j % 2 else part & 15
        out.append(d * scale * nibbles.astype(np.float32) - least * low)
    return np.concatenate(out)


def by_hand_q6_k(block):
    """[256] of a block of ggml's Q6_K: four low bits, two high ones, 16 scales."""
    low = np.frombuffer(block[:128], np.uint8)
    high = np.frombuffer(block[128:192], np.uint8)
    scales = np.frombuffer(block[192:208], np.int8).astype(np.float32)
    (d,) = np.frombuffer(block[208:], np.float16).astype(np.float32)
    out = np.zeros(256, np.float32)
    for half in range(2):
        for part in range(4):
            nibbles = low[64 * half + 32 * (part % 2) :][:32]
            nibbles = nibbles >> 4 if part >= 2 else nibbles & 15
            bits = (high[32 * half :][:32] >> (2 * part)) & 3
            quants = (nibbles | (bits << 4)).astype(np.float32) - 32
            scale = np.repeat(scales[8 * half + 2 * part :][:2], 16)
            out[128 * half + 32 * part :][:32] = d * scale * quants
    return out


@pytest.mark.parametrize(
    ("kind", "size", "by_hand"),
    [("Q4_K", 144, by_hand_q4_k), ("Q6_K", 210, by_hand_q6_k)],
)
def test_k_quants_read_back_as_by_hand(kind, size, by_hand, tmp_path, monkeypatch):
    """Random blocks; only their float16 scales are kept small and finite."""
    cfg = CONFIGS["llama"]
    wide = {"d_model": 256, "d_ff": 256, "head_dim": 256 // cfg.n_heads}
    cfg = dataclasses.replace(cfg, **wide)
    plain, blocks = gguf.quants.quantize, {}

    def quantise(value, used):
        if used.name != kind:
            return plain(value, used)
        rng = np.random.default_rng(value.size)
        raw = rng.integers(0, 256, (value.size // 256, size), np.uint8)
        scales = np.asarray([0.01, 0.02], np.float16).view(np.uint8)
        if kind == "Q4_K":
            raw[:, :4] = scales
        else:
            raw[:, 208:] = scales[:2]
        blocks[value.shape] = raw
        return raw.reshape(value.shape[0], -1)

    monkeypatch.setattr(gguf.quants, "quantize", quantise)
    path = write(tmp_path / "m.gguf", cfg, random_params(cfg), kind)
    ours.convert(path, tmp_path / "out")
    _, got = hf.numpy_params(tmp_path / "out")
    raw = blocks[got["embed"].shape]
    want = np.stack([by_hand(block.tobytes()) for block in raw])
    np.testing.assert_allclose(got["embed"], want.reshape(got["embed"].shape), 1e-6)


def test_user_defined_tokens_are_whole_and_part_of_the_text(tmp_path):
    """As llama.cpp stores <think> of Qwen3."""
    cfg = CONFIGS["llama"]
    added = gguf.TokenType.USER_DEFINED
    path = write(tmp_path / "m.gguf", cfg, random_params(cfg), added=added)
    ours.convert(path, tmp_path / "out")
    tokenizer = Tokenizer(tmp_path / "out")
    ids = tokenizer.encode("he<|u|>y")
    assert ids == [TOKENS.index("he"), len(TOKENS) - 1, TOKENS.index("y")]
    assert tokenizer.decode(ids) == "he<|u|>y"


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
