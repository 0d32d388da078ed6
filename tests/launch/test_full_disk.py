"""A disk that fills up stops a run with one clear line; freed, it goes on."""

import json
import shutil
from pathlib import Path

import pytest

from mappa_jax import records

FULL = Path("/dev/full")  # every write fails: no space left on device


def steps(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def saved(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_line_and_the_run_goes_on_later(
    train, trained, tmp_path
):
    workdir = shutil.copytree(trained, tmp_path / "run")
    path = records.training_path(workdir, 2)
    part = path.with_name(path.name + ".tmp")
    part.symlink_to(FULL)
    done = train(workdir, steps=2)
    assert done.returncode == 2, done.stderr
    error = done.stderr.strip().splitlines()
    assert len(error) == 1, done.stderr
    assert str(workdir) in error[0]
    assert "No space left on device" in error[0]
    assert "free some space and run the same command again" in error[0]
    assert steps(workdir) == [1]
    assert saved(workdir) == ["1"]

    part.unlink()
    done = train(workdir, steps=2)
    assert done.returncode == 0, done.stderr
    assert steps(workdir) == [1, 2]
    assert saved(workdir) == ["1", "2"]
