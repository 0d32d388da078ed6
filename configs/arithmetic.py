"""Does it learn? SmolLM2-135M x3 with adapters on reasoning-gym sums.

  python launch/train.py --config=configs/arithmetic.py --workdir=runs/arithmetic
  python launch/report.py --workdir=runs/arithmetic --out=docs/arithmetic.png

Like configs/quickstart.py, with more iterations and an evaluation on held-out
problems before, between and after. docs/results.md has what came of it.
"""

import importlib.util
from pathlib import Path


def get_config(arg=None):
    if arg is not None:
        raise ValueError(f"configs/arithmetic.py takes no argument, got {arg!r}")
    config = _load("quickstart").get_config()
    config.steps = 40
    config.data.train_size = 2048
    config.data.eval_size = 48
    for agent in config.agents.values():
        agent.learning_rate = 3e-4
    config.eval.at_start = True
    config.eval.at_end = True
    config.eval.every = 10
    config.eval.samples = 1
    config.checkpoint.every = 2
    return config


def _load(name):
    """A sibling config file as a module."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
