"""A random byte-level team that trains in seconds: tests and smoke runs.

python launch/train.py --config=configs/tiny.py --workdir=/tmp/tiny
"""

from mappa_jax.config import AgentConfig, default_config


def get_config(arg=None):
    if arg is not None:
        raise ValueError(f"configs/tiny.py takes no argument, got {arg!r}")
    agent = AgentConfig(model="random:tiny", max_new_tokens=16, learning_rate=3e-3)
    config = default_config(
        solver=agent,
        coder=agent,
        verifier=agent,
    )
    config.steps = 3
    config.agents.coder.max_turns = 2
    config.data.source = "reasoning_gym:chain_sum"
    config.data.params = {
        "chain_sum": dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1)
    }
    config.data.train_size = 32
    config.data.eval_size = 4
    config.data.prompts_per_step = 4
    config.data.samples_per_prompt = 2
    config.sampler.slots = 8
    config.sampler.prefill_rows = 4
    config.sampler.prompt_buckets = (512, 768)
    config.sampler.context = 1024
    config.sampler.chunk = 8
    config.packing.row_tokens = 1024
    config.packing.row_action_tokens = 64
    config.packing.rows = 2
    config.objective.mask_truncated = False
    config.optimizer.actions_per_update = 8
    config.optimizer.warmup_fraction = 0.0
    config.remat = "none"
    config.eval.samples = 2
    config.eval.bootstrap = 200
    return config
