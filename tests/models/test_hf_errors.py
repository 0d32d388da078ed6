"""Damaged or unfitting model folders are refused, and the message says where."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mappa_jax.models import hf
from mappa_jax.models.config import ModelError

Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(micro_folder, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(micro_folder, tmp_path / "model")


def rewrite(folder, change):
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refused(folder, message):
    with pytest.raises(ModelError, match=message) as caught:
        hf.numpy_params(folder)
    assert str(folder) in str(caught.value)


def test_a_whole_folder_is_read(folder, micro):
    assert hf.numpy_params(folder)[0] == micro


def test_a_missing_config(folder):
    (folder / "config.json").unlink()
    refused(folder, "config.json is missing")


def test_a_malformed_config_names_the_line(folder):
    (folder / "config.json").write_text('{\n "a": 1,\n oops\n}')
    refused(folder, "config.json: line 3")


def test_a_config_without_a_key_names_it(folder):
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    del raw["hidden_size"]
    path.write_text(json.dumps(raw))
    refused(folder, "'hidden_size' is missing")


def test_a_missing_tensor(folder):
    rewrite(folder, lambda t: t.pop(Q))
    refused(folder, f"1 tensors missing: .*{Q}")


def test_an_unknown_tensor(folder):
    rewrite(folder, lambda t: t.update({"model.extra": np.zeros(1, np.float32)}))
    refused(folder, "a llama model does not have: .*model.extra")


def test_a_tensor_of_another_shape(folder):
    rewrite(folder, lambda t: t.update({Q: np.zeros((8, 4), np.float32)}))
    refused(folder, rf"{Q} has shape \[8, 4\], config.json asks for \[16, 16\]")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_truncated_file(folder, share):
    (path,) = folder.glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(folder, f"{path.name}: not a whole safetensors file")


def test_no_weights_at_all(folder):
    for path in folder.glob("model*"):
        path.unlink()
    refused(folder, "no .*safetensors file")


def test_an_index_that_names_a_missing_file(folder):
    (path,) = folder.glob("*.safetensors")
    path.unlink()
    refused(folder, f"names missing files: .*{path.name}")


def test_rotary_buffers_of_old_exports_are_ignored(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, lambda t: t.update({name: np.zeros(2, np.float32)}))
    hf.numpy_params(folder)


def test_large_models_are_written_in_several_files(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "SHARD_BYTES", 600)
    cfg, params = hf.numpy_params(folder)
    hf.save_params(params, cfg, tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    _, again = hf.numpy_params(tmp_path / "many")
    jax.tree.map(np.testing.assert_array_equal, params, again)
