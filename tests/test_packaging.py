"""The wheel: everything that a command needs is inside."""

import importlib.util
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command, **more):
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, timeout=900, **more
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("without setuptools no wheel is built")
    out = tmp_path_factory.mktemp("wheel")
    tree = tmp_path_factory.mktemp("tree") / "clone"
    kept = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in kept:  # a copy: a build leaves folders behind
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q")
    run(*pip, "--no-deps", "--no-build-isolation", "-w", out, ".", cwd=tree)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def test_modules_prompts_and_assets_are_inside(unpacked):
    files = (p for p in (ROOT / "mappa_jax").rglob("*") if p.is_file())
    ours = {p.relative_to(ROOT) for p in files if "__pycache__" not in p.parts}
    assert {".py", ".txt", ".json"} <= {p.suffix for p in ours}
    assert not {str(p) for p in ours if not (unpacked / p).exists()}
    assert {p.name.split("-")[0] for p in unpacked.iterdir()} == {"mappa_jax"}


def test_every_launch_script_is_a_console_command(unpacked):
    (entries,) = unpacked.glob("*.dist-info/entry_points.txt")
    lines = entries.read_text().splitlines()
    for path in (ROOT / "launch").glob("*.py"):
        command = f"mappa-{path.stem.replace('_', '-')}"
        assert f"{command} = mappa_jax.commands.{path.stem}:run" in lines


def test_a_command_runs_from_the_wheel(unpacked, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(unpacked), "JAX_PLATFORMS": "cpu"}
    code = (
        "import mappa_jax, sys; from mappa_jax.commands.train import run; "
        "print(mappa_jax.__file__); sys.argv = ['mappa-train', '--help']; run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        **dict(capture_output=True, text=True, env=environment, cwd=tmp_path),
    )
    assert str(unpacked) in done.stdout
    assert "Trains a team." in done.stdout and "--workdir" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_installs_into_an_empty_environment(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", wheel)
    outside = {"cwd": tmp_path, "env": {"PATH": os.environ["PATH"]}}
    run(python, "-c", "import mappa_jax.commands.assembly", **outside)
    said = run(tmp_path / "env" / "bin" / "mappa-completion", **outside)
    assert "mappa-train" in said
