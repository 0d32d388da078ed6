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
        max_new_tokens=48,
        temperature=0.6,  # at 1.0 a model of this size rambles
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
    config.data.eval_size = 32
    config.data.prompts_per_step = 4
    config.data.samples_per_prompt = 2

    config.workflow.example = True
    config.workflow.tool_output_tokens = 32
    config.workflow.handoff_tokens = 48
    config.sampler.slots = 8
    config.sampler.prefill_rows = 1  # they arrive one by one, as programs end
    config.sampler.prompt_buckets = (192, 256, 384)
    config.sampler.extend_buckets = (64, 128)
    config.sampler.context = 512
    config.packing.row_tokens = 512
    config.packing.row_action_tokens = 192
    config.packing.rows = 1

    config.remat = "none"  # a row fits in memory, and the update is a quarter faster
    config.objective.mask_truncated = False  # so short a limit is often met
    config.optimizer.actions_per_update = 8
    config.optimizer.warmup_fraction = 0.0
    return config
