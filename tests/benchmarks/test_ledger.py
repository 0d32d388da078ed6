"""The ledger's arithmetic, and the whole of it on the tiny team."""

import json
import subprocess
import sys

import numpy as np
import pytest
import scripts

from mappa_jax.models.attention import _attend_whole
from mappa_jax.timeline import Span, Timeline


@pytest.fixture(scope="module")
def ledger(launch_path):
    return scripts.load(launch_path.parent / "benchmarks" / "ledger.py")


def test_keys_are_counted_as_attention_sees_them(ledger):
    """By attention itself: with values that mark their key, and equal scores."""
    ends = np.array([[5, 2, 3, 5, 5, 7, 7, 0]], np.int32)
    t = ends.shape[1]
    zeros = np.zeros((1, t, 1, 1), np.float32)
    marks = np.eye(t, dtype=np.float32)[None, :, None]
    where = (np.zeros_like(ends), ends, np.int32(2**30))
    out = _attend_whole(zeros[..., None], zeros, marks, where, 1.0)
    seen = (np.asarray(out)[0, :, 0, 0] > 0).sum(-1)
    used = ends[0] > 0  # a query of padding sees nobody, and softmax then everybody
    assert ledger.seen_by_rows(ends) == seen[used].sum()
    assert ledger.seen_by_rows([[4, 4, 4, 4]]) == 10


def test_a_tokens_work_is_two_operations_a_weight(ledger, micro):
    """Against the weights' own shapes."""
    from mappa_jax.models import hf

    shapes = hf.param_shapes(micro, np.float32)
    kernels = [x["kernel"] for x in shapes["layers"].values() if "kernel" in x]
    assert ledger.token_flops(micro) == 2 * sum(np.prod(k.shape) for k in kernels)
    assert ledger.head_flops(micro) == 2 * np.prod(shapes["embed"].shape)
    assert ledger.seen_flops(micro) == 2 * 2 * 2 * 4 * 4  # layers, products, heads


def test_an_iterations_phases_exclude_each_other(ledger):
    def iteration(t):
        return [
            Span("engine", "prefill", t, t + 2),
            Span("sandbox", "program", t + 1, t + 4),
            Span("engine", "decode", t + 3, t + 5),
            Span("train", "rollout", t, t + 6),
            Span("train", "verdicts", t + 6, t + 7),
            Span("train", "pack", t + 7, t + 7.5),
            Span("train", "credit", t + 7, t + 8),
            Span("train", "update", t + 8, t + 9.5),
            Span("train", "save", t + 9.5, t + 9.75),
        ]

    spans = Timeline([s for t in (0, 10, 20, 30) for s in iteration(t)])
    found = ledger.iterations(spans)
    assert len(found) == 2
    assert found[0] == {
        "prefill": 2,
        "decode": 2,
        "sandbox exposed": 1,
        "rollout, host": 1,
        "judge exposed": 1,
        "pack": 0.5,
        "credit": 0.5,
        "update": 1.5,
        "write and save": 0.25,
        "other": 0.25,
    }
    assert sum(found[0].values()) == 10


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_the_tiny_teams_ledger(launch_path, cache, tmp_path, mode):
    script = launch_path.parent / "benchmarks" / "ledger.py"
    done = subprocess.run(
        [
            *(sys.executable, str(script), "--config=configs/tiny.py"),
            *(f"--config.mode={mode}", f"--cache_dir={cache}", f"--out={tmp_path}"),
        ],
        cwd=launch_path.parent,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "ledger.json").read_text())
    assert found["compilations_after_warm_up"] == 0
    assert found["weights_copied_from_update_to_sampler"] == 0
    assert found["compile_seconds"]["from cache"] < found["compile_seconds"]["cold"]
    for program in found["programs"]:
        shares = [program["mfu"], program["copy_share"]]
        assert all(0 < s < 1.5 for s in shares if s is not None), program
    assert (tmp_path / "ledger.png").stat().st_size > 10_000
    assert (tmp_path / "ledger.md").read_text() in done.stdout + "\n"
