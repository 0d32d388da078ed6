"""Ctrl-C saves and exits with 130; the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def command(workdir, steps):
    return [
        sys.executable,
        str(ROOT / "launch" / "train.py"),
        f"--config={ROOT}/configs/tiny.py",
        f"--workdir={workdir}",
        f"--cache_dir={ROOT}/.cache",
        f"--config.steps={steps}",
        "--config.checkpoint.every=1000",
        "--config.data.prompts_per_step=1",
    ]


def steps(workdir):
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_interrupted_saved_resumed(tmp_path):
    workdir = tmp_path / "run"
    env = {**os.environ, "XLA_FLAGS": ""}
    first = subprocess.Popen(
        command(workdir, 100_000), stderr=subprocess.PIPE, text=True, env=env
    )
    deadline = time.monotonic() + 400
    while not steps(workdir) and first.poll() is None:
        assert time.monotonic() < deadline, "no iteration in time"
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 130, said
    assert "the same command goes on" in said
    done = max(steps(workdir))
    assert (workdir / "checkpoints" / str(done)).is_dir()

    second = subprocess.run(
        command(workdir, done + 1), capture_output=True, text=True, env=env, timeout=400
    )
    assert second.returncode == 0, second.stderr
    assert steps(workdir) == list(range(1, done + 2))
