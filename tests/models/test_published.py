"""Architectures by name, against the numbers of the model cards."""

import json

import pytest

from mappa_jax.models import hf
from mappa_jax.models.config import ModelError, to_hf
from mappa_jax.models.published import PUBLISHED, architecture
from mappa_jax.models.registry import RANDOM_SIZES, resolve

# Billions of weights on the model cards: all, and without embeddings where it is said.
CARDS = {
    "Qwen/Qwen3-0.6B": (0.6, 0.44),
    "Qwen/Qwen3-1.7B": (1.7, 1.4),
    "Qwen/Qwen3-4B": (4.0, 3.6),
    "Qwen/Qwen3-8B": (8.2, 6.95),
    "Qwen/Qwen3-14B": (14.8, 13.2),
    "Qwen/Qwen3-32B": (32.8, 31.2),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (1.78, None),
    "meta-llama/Llama-3.2-1B-Instruct": (1.23, None),
    "meta-llama/Llama-3.2-3B-Instruct": (3.21, None),
    "smollm2-135m-instruct": (0.135, None),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (0.135, None),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (1.71, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_number_of_weights_is_the_cards(name):
    cfg = architecture(name)
    whole, without = CARDS[name]
    assert cfg.n_params / 1e9 == pytest.approx(whole, rel=0.03)
    if without:
        tables = (1 if cfg.tie_embeddings else 2) * cfg.vocab_size * cfg.d_model
        assert (cfg.n_params - tables) / 1e9 == pytest.approx(without, rel=0.02)


def test_the_default_model_is_what_its_file_says(cache):
    name = "smollm2-135m-instruct"
    folder = cache / "models" / name
    if not folder.exists():
        pytest.skip(f"{name} has not been fetched; make quickstart fetches it")
    here, there = architecture(name), hf.read_config(folder)
    assert here == there.__class__(**{**vars(there), "rms_norm_eps": 1e-5})


def test_random_models_are_those_of_the_registry(cache):
    assert architecture("random:tiny/7") == RANDOM_SIZES["tiny"]
    assert hf.read_config(resolve("random:tiny", cache)) == architecture("random:tiny")


def test_a_folder_is_read(tmp_path):
    cfg = RANDOM_SIZES["small"]
    (tmp_path / "config.json").write_text(json.dumps(to_hf(cfg)))
    assert architecture(str(tmp_path)) == cfg


@pytest.mark.parametrize("name", ["Qwen/Qwen9-900B", "/no/such/folder", "random:huge"])
def test_what_is_not_known_is_refused_by_name_with_the_remedy(name):
    with pytest.raises(ModelError, match=f"{name!r}.*(config.json|sizes are)"):
        architecture(name)
