"""Word problems: SmolLM2-135M x3 with adapters, process against outcome.

  python launch/train.py --config=configs/words.py --workdir=runs/words_alone
  python launch/sweep.py --sweep=configs/sweeps/words.py --workdir=runs/words

The team of configs/arithmetic.py, on problems that have to be read.
docs/results.md, 5, has what came of it.
"""

import importlib.util
from pathlib import Path


def get_config(arg=None):
    if arg is not None:
        raise ValueError(f"configs/words.py takes no argument, got {arg!r}")
    config = _load("arithmetic").get_config()
    config.data.source = "reasoning_gym:leg_counting"
    config.data.params = {
        "leg_counting": dict(min_animals=2, max_animals=2, max_instances=9)
    }
    for agent in config.agents.values():
        agent.max_new_tokens = 64
    config.workflow.handoff_tokens = 64
    config.sampler.prompt_buckets = (256, 384, 512)
    config.sampler.context = 640
    config.packing.row_tokens = 640
    return config


def _load(name):
    """A sibling config file as a module."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
