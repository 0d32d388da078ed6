"""Every test runs on eight simulated CPU devices, with one shared compile cache."""

import gc
import os
import types
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jax
import numpy as np
import pytest
import scripts

from mappa_jax.config import MeshConfig
from mappa_jax.models import hf
from mappa_jax.models.config import ModelConfig, Rope

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache"

jax.config.update("jax_compilation_cache_dir", str(CACHE / "xla-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture(scope="module", autouse=True)
def released() -> Iterator[None]:
    """Lets go of what a module has compiled: a program for eight devices takes hundreds
    of memory mappings, and a process may have 65,530 of them."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def cache() -> Path:
    """Where converted weights stay between test runs."""
    return CACHE


@pytest.fixture(scope="session")
def micro() -> ModelConfig:
    """A model of a few thousand weights."""
    return ModelConfig(
        family="llama",
        vocab_size=48,
        d_model=16,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=4,
        d_ff=24,
        max_context=64,
        rope=Rope(100.0),
        rms_norm_eps=1e-5,
        tie_embeddings=True,
    )


@pytest.fixture(scope="session")
def micro_folders(micro, tmp_path_factory) -> list[Path]:
    """Two folders of different random weights of `micro`.

    They are large enough for the tokens to be unequally likely.
    """
    folders = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        params = jax.tree.map(
            lambda s, rng=rng: rng.normal(0, 0.3, s.shape).astype(np.float32),
            hf.param_shapes(micro),
        )
        folders.append(tmp_path_factory.mktemp(f"micro{seed}"))
        hf.save_params(params, micro, folders[-1])
    return folders


@pytest.fixture(scope="session")
def micro_folder(micro_folders) -> Path:
    return micro_folders[0]


@pytest.fixture(scope="session")
def launch_path() -> Path:
    """Where the launch scripts lie."""
    return ROOT / "launch"


@pytest.fixture(scope="session")
def commands_path() -> Path:
    """Where what they run lies; `scripts.load` undoes the flags."""
    return ROOT / "mappa_jax" / "commands"


@pytest.fixture(scope="session")
def assemble(cache):
    """launch's `assemble` as (config, workdir, progress), on one device."""
    from mappa_jax import assemble as parts
    from mappa_jax.commands import assembly
    from mappa_jax.parallel import mesh

    one = mesh.make_mesh(MeshConfig(), jax.devices()[:1])

    def load_models(config, cache):
        return parts.load_models(config, cache, one)

    # Only what `assembly` sees is changed: the mesh, and the tests' own compile cache.
    mine = {"load_models": load_models, "enable_compilation_cache": lambda folder: None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "parts", types.SimpleNamespace(**vars(parts) | mine))
        yield lambda config, workdir, progress: assembly.assemble(
            config, workdir, cache, progress
        )


@pytest.fixture(scope="session")
def tiny():
    """(changes) -> configs/tiny.py as a ConfigDict, smaller still: {"steps": 4, ...}"""
    module = scripts.load(ROOT / "configs" / "tiny.py")

    def make(changes=None):
        config = module.get_config()
        config.update_from_flattened_dict(TINIER | (changes or {}))
        return config

    return make


TINIER = {
    "data.prompts_per_step": 2,
    "data.eval_size": 2,
    "sampler.slots": 4,
    "sampler.prompt_buckets": (384, 512),
    "sampler.context": 640,
    "packing.row_tokens": 640,
    "optimizer.actions_per_update": 4,
}
