"""Fails to save a checkpoint and prints the error; a process of test_checkpoints.py.

python tests/failed_save.py FOLDER "large files"|"files"|"folders"

What is named cannot be made. Orbax's threads go on failing after that, which must not
reach other tests.
"""

import contextlib
import errno
import os
import resource
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from mappa_jax.checkpoints import CheckpointError, Checkpoints
from mappa_jax.config import CheckpointConfig
from mappa_jax.learning.update import GroupState, TeamState


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def refuse_folders() -> None:
    def refuse(path, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    os.mkdir = refuse


FULL = {
    "large files": lambda: limit_files(1 << 16),
    "files": lambda: limit_files(0),
    "folders": refuse_folders,
}


def main(folder: str, full: str) -> None:
    noise = np.random.default_rng(0).normal(size=(2, 1 << 16)).astype(np.float32)
    zeros = jnp.zeros((2,), jnp.int32)
    weights = {"q": jnp.asarray(noise)}
    group = GroupState(trainable=weights, opt_state=(), updates=zeros, skipped=zeros)
    state = TeamState(groups=(group,), beta=zeros)
    checkpoints = Checkpoints(Path(folder), CheckpointConfig())
    FULL[full]()
    try:
        with contextlib.closing(checkpoints):
            checkpoints.save(2, state, {}, {})
            checkpoints.wait()
    except CheckpointError as e:
        print(e)


if __name__ == "__main__":
    main(*sys.argv[1:])
