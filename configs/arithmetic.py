"""Does it learn? SmolLM2-135M x3 with adapters on reasoning-gym sums.

  python launch/train.py --config=configs/arithmetic.py --workdir=runs/arithmetic
  python launch/report.py --workdir=runs/arithmetic --out=docs/arithmetic.png
  python launch/train.py --config=configs/arithmetic.py:words --workdir=runs/words_alone

Like configs/quickstart.py, with more iterations and an evaluation on held-out
problems before, between and after. With "words" on problems that have to be read, how
many legs so many animals have (configs/sweeps/words.py). docs/results.md has what came
of both.
"""

from pathlib import Path

from mappa_jax.plugins import run_file


def get_config(arg=None):
    if arg not in (None, "words"):
        raise ValueError(f"configs/arithmetic.py takes words or nothing, got {arg!r}")
    config = run_file(Path(__file__).with_name("quickstart.py")).get_config()
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
    if arg == "words":
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
