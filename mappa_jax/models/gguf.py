"""GGUF files: read once, written as a Hugging Face folder.

After that there is one way to load weights. Quantised tensors are dequantised
to float32 by the `gguf` library.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from mappa_jax.models.config import ModelConfig, ModelError, from_hf, to_hf
from mappa_jax.models.hf import save_tensors, tensor_name

QUANTISATIONS = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K")

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
# A GGUF tensor, or its part of a layer -> our parameter; `hf` knows its name there.
_TOP = {
    "token_embd.weight": "embed",
    "output.weight": "head",
    "output_norm.weight": "final_norm/weight",
}
_PARTS = {
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "attn_q_norm": "q_norm",
    "attn_k_norm": "k_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
    "attn_norm": "attn_norm",
    "ffn_norm": "mlp_norm",
}
_POST_NORMS = {"post_attention_norm": "attn_out_norm", "post_ffw_norm": "mlp_out_norm"}


def convert(path: Path, folder: Path) -> None:
    """Writes config.json, float32 safetensors and the tokenizer of a GGUF file.

    Raises:
      ModelError: the file is missing, truncated, of an unknown architecture,
        quantisation or tokenizer, or has no chat template.
    """
    reader = _open(Path(path))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    arch = fields["general.architecture"]
    if arch not in _ARCHITECTURES:
        raise ModelError(f"{path}: GGUF architecture {arch!r} is not supported")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _tokenizer(fields, path).save_pretrained(str(folder))
    cfg = from_hf(_config(fields, {t.name for t in reader.tensors}))
    save_tensors(_tensors(reader, cfg, path), folder)
    (folder / "config.json").write_text(json.dumps(to_hf(cfg), indent=1))


def _open(path: Path) -> gguf.GGUFReader:
    if not path.exists():
        raise ModelError(f"{path}: no such GGUF file")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, OverflowError) as e:
        raise ModelError(f"{path}: not a whole GGUF file ({e}); fetch it again") from e


def _config(fields: dict[str, Any], names: set[str]) -> dict[str, Any]:
    arch = fields["general.architecture"]

    def get(key: str, default: Any = None) -> Any:
        value = fields.get(f"{arch}.{key}", default)
        if value is None:
            raise ModelError(f"GGUF: the field {arch}.{key} is missing")
        return value

    if "rope_freqs.weight" in names:
        raise ModelError(
            "GGUF: rope_freqs (Llama 3 RoPE scaling) is not supported here"
        )
    scaling = fields.get(f"{arch}.rope.scaling.type", "none")
    heads, width = get("attention.head_count"), get("embedding_length")
    config = {
        "architectures": [_ARCHITECTURES[arch]],
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": width,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length", width // heads),
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in names,
    }
    if scaling == "linear":
        config["rope_scaling"] = {
            "rope_type": "linear",
            "factor": get("rope.scaling.factor"),
        }
    elif scaling != "none":
        raise ModelError(f"GGUF: RoPE scaling {scaling!r} is not supported")
    if arch == "gemma3":
        config |= {
            "sliding_window": get("attention.sliding_window"),
            "query_pre_attn_scalar": config["head_dim"],
            "rope_theta": get("rope.freq_base", 1e6),
        }
    return config


def _tensors(
    reader: gguf.GGUFReader, cfg: ModelConfig, path: Path
) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face's names and values, without what the converters did to them."""
    fix = _fixes(cfg)
    parts = _PARTS | (_POST_NORMS if cfg.post_norms else {})
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        if kind not in QUANTISATIONS:
            raise ModelError(
                f"{path}: tensor {tensor.name} is {kind}; supported: {QUANTISATIONS}"
            )
        value = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in _TOP:
            ours = _TOP[tensor.name]
            name = tensor_name(cfg, ours)
        else:
            _, layer, part, leaf = tensor.name.split(".")
            if part not in parts:
                raise ModelError(f"{path}: unknown tensor {tensor.name}")
            ours = parts[part]
            name = tensor_name(cfg, f"layers/{ours}/{leaf}").format(layer)
        yield name, fix(ours, value)


def _fixes(cfg: ModelConfig) -> Callable[[str, np.ndarray], np.ndarray]:
    """Undoes what the GGUF converters do to the weights of an architecture.

    Returns:
      A function of our parameter's name and its value.
    """
    heads = {"q": cfg.n_heads, "k": cfg.n_kv_heads}

    def llama(ours: str, value: np.ndarray) -> np.ndarray:
        # Rows of q and k were interleaved for another RoPE layout.
        if ours not in heads:
            return value
        paired = value.reshape(heads[ours], -1, 2, *value.shape[1:])
        return paired.swapaxes(1, 2).reshape(value.shape)

    def gemma3(ours: str, value: np.ndarray) -> np.ndarray:
        return value - 1.0 if "norm" in ours else value

    def same(_: str, value: np.ndarray) -> np.ndarray:
        return value

    return {"llama": llama, "gemma3": gemma3}.get(cfg.family, same)


def _tokenizer(fields: dict[str, Any], path: Path) -> Any:
    """The tokenizer that the file describes, as a `transformers` fast tokenizer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind = fields["tokenizer.ggml.model"]
    template = fields.get("tokenizer.chat_template")
    if template is None:
        raise ModelError(f"{path}: the GGUF file has no tokenizer.chat_template")
    pre = fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise ModelError(
            f"{path}: GGUF tokenizer {kind}/{pre} is not supported; convert the "
            "original Hugging Face folder instead"
        )
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    core = Tokenizer(models.BPE(vocab, merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[pre](pre_tokenizers))
    core.decoder = decoders.ByteLevel()
    # USER_DEFINED tokens (<think>, <tool_call>) are whole, but part of the text.
    kinds = {gguf.TokenType.CONTROL: True, gguf.TokenType.USER_DEFINED: False}
    types = fields["tokenizer.ggml.token_type"]
    core.add_tokens(
        [
            AddedToken(token, special=kinds[type_], normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ in kinds
        ]
    )
    ids = {
        f"{name}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in fields
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=core, **ids)
    fast.chat_template = template
    return fast


_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
    r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _smollm(p: Any) -> list[Any]:
    return [p.Digits(individual_digits=True), p.ByteLevel(add_prefix_space=False)]


def _qwen2(p: Any) -> list[Any]:
    from tokenizers import Regex

    return [
        p.Split(Regex(_QWEN_SPLIT), "isolated"),
        p.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


_PRE_TOKENIZERS = {"smollm": _smollm, "qwen2": _qwen2}
