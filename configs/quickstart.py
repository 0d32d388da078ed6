"""SmolLM2-135M x3 on word sums, with adapters: a few minutes on two CPU cores.

make quickstart
python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

from mappa_jax.config import AgentConfig, default_config


def get_config(arg=None):
    if arg is not None:
        raise ValueError(f"configs/quickstart.py takes no argument, got {arg!r}")
    agent = AgentConfig(
        model="smollm2-135m-instruct",
        max_new_tokens=96,
        temperature=1.0,
        learning_rate=2e-4,
    )
    config = default_config(solver=agent, coder=agent, verifier=agent)
    config.agents.coder.max_turns = 2
    config.steps = 3
    config.mode = "lora"

    config.data.source = "reasoning_gym:chain_sum"
    config.data.params = {
        "chain_sum": dict(min_terms=2, max_terms=3, min_digits=1, max_digits=2)
    }
    config.data.train_size = 512
    config.data.eval_size = 16
    config.data.prompts_per_step = 4
    config.data.samples_per_prompt = 4

    config.workflow.tool_output_tokens = 64
    config.workflow.handoff_tokens = 96
    config.sampler.slots = 16
    config.sampler.prompt_buckets = (128, 256, 384)
    config.sampler.context = 512
    config.train_buckets = (256, 512)

    config.objective.mask_truncated = False  # at 96 tokens most of the signal is there
    config.optimizer.actions_per_update = 16
    config.optimizer.rows_per_microbatch = 8
    config.optimizer.warmup_fraction = 0.0
    return config
