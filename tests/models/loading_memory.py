"""Prints by how many bytes loading a model's weights grew this process, at its peak.

python tests/models/loading_memory.py FOLDER

Counted is anonymous memory: the pages of the mapped file are the system's to drop.
"""

import sys
import threading
from pathlib import Path

import jax

from mappa_jax.models import hf


def anonymous() -> int:
    """Bytes of this process that only it holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


class Peak(threading.Thread):
    """Watches the anonymous memory until asked for its peak."""

    def __init__(self):
        super().__init__(daemon=True)
        self._done = threading.Event()
        self._peak = 0

    def run(self) -> None:
        while not self._done.wait(0.001):
            self._peak = max(self._peak, anonymous())

    def stop(self) -> int:
        self._done.set()
        self.join()
        return max(self._peak, anonymous())


def main(folder: Path) -> None:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    cfg = hf.read_config(folder)
    shardings = jax.tree.map(lambda _: device, hf.param_shapes(cfg))
    before = anonymous()
    peak = Peak()
    peak.start()
    params = hf.load_params(folder, cfg, shardings)
    jax.block_until_ready(params)  # still held when the peak is read
    print(peak.stop() - before)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
