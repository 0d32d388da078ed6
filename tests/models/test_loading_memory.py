"""Weights go from the file into their arrays, without a second copy of the model."""

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from mappa_jax.models import hf


@pytest.fixture
def large(micro):
    """(folder, bytes) of a model of seven large parameters, none much of the whole."""
    cfg = dataclasses.replace(
        micro,
        d_model=1024,
        n_heads=16,
        n_kv_heads=16,
        head_dim=64,
        d_ff=1024,
        n_layers=8,
        sliding_layers=(),
    )
    params = jax.tree.map(lambda s: np.ones(s.shape, np.float32), hf.param_shapes(cfg))
    with tempfile.TemporaryDirectory() as folder:  # not kept, as tmp_path would be
        hf.save_params(params, cfg, Path(folder))
        yield folder, sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_needs_little_more_than_the_weights(large):
    folder, size = large
    assert size > 200e6
    script = Path(__file__).with_name("loading_memory.py")
    done = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout) / size
    assert 0.9 < grown < 1.5
