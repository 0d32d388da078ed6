"""A byte-level team of 1.4 million weights an agent, on sums: docs/results.md.

  python benchmarks/experiments/traces.py --config=configs/bytes.py --out=traces.jsonl
  python launch/sft.py --config=configs/bytes.py --traces=traces.jsonl \\
    --workdir=runs/warm --epochs=3 --learning_rate=1e-3
  python launch/sweep.py --sweep=configs/sweeps/credit.py --workdir=runs/credit

--config=configs/bytes.py:two_kinds has products beside the sums, for a judge that likes
one kind better (configs/sweeps/bias.py).

Its weights are random; a sweep starts it from what launch/sft.py has left.
"""

from mappa_jax.config import AgentConfig, default_config


def get_config(arg=None):
    if arg not in (None, "two_kinds"):
        raise ValueError(f"configs/bytes.py takes two_kinds or nothing, got {arg!r}")
    # The rate is configs/sweeps/rate.py's finding.
    agent = AgentConfig(model="random:medium", max_new_tokens=64, learning_rate=3e-5)
    config = default_config(solver=agent, coder=agent, verifier=agent)
    config.agents.coder.max_turns = 2
    config.steps = 40

    config.data.source = "reasoning_gym:chain_sum"
    config.data.params = {
        "chain_sum": dict(min_terms=2, max_terms=3, min_digits=1, max_digits=2)
    }
    if arg == "two_kinds":
        config.data.source += ",reasoning_gym:products"
        two = dict(min_terms=2, max_terms=2, min_digits=1, max_digits=2)
        config.data.params = {**config.data.params, "products": two}
    config.data.train_size = 4096
    config.data.eval_size = 64
    config.data.prompts_per_step = 16
    config.data.samples_per_prompt = 2

    config.workflow.instructions = False
    config.workflow.tool_output_tokens = 48
    config.workflow.handoff_tokens = 64
    config.sampler.slots = 32
    config.sampler.prefill_rows = 2
    config.sampler.prompt_buckets = (128, 192, 256, 320)
    config.sampler.context = 384
    config.sampler.chunk = 8
    # Short rows, one at a time: so small a model gains nothing from larger products.
    config.packing.row_tokens = 512
    config.packing.row_action_tokens = 256
    config.packing.rows = 1

    config.remat = "none"
    config.objective.mask_truncated = False
    config.optimizer.actions_per_update = 32
    config.optimizer.warmup_fraction = 0.0
    config.eval.at_start = True
    config.eval.at_end = True
    config.eval.every = 10
    config.eval.samples = 1
    config.eval.temperature = 1.0
    config.checkpoint.every = 10
    config.checkpoint.keep = 1
    return config
