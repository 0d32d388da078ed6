"""The MathChat experiment of the paper (arXiv 2601.23228).

  python launch/train.py --config=configs/mathchat.py:qwen3-4b --workdir=...
  python launch/train.py --config=configs/mathchat.py:r1-distill-1.5b --workdir=...
  python launch/train.py --config=configs/mathchat.py:rehearsal --workdir=...

512 of the 933 AIME 1983-2024 problems, 32 prompts x 2 samples per iteration, 8
epochs = 128 iterations, gemini-2.5-flash as judge (GEMINI_API_KEY), evaluation every
4 iterations on AIME 2025 and 32 AMC problems, avg@4 at temperature 0.6. Needs
accelerators: three sets of weights, their gradients and moments are in memory.

The rehearsal is one iteration of all this with two layers of random weights that read
bytes, and with the offline rubric: batch, contexts, limits and problems are the run's.
It needs no accelerator and no key, and some hours of two CPU cores.
"""

from mappa_jax.config import AgentConfig, default_config

MODELS = {
    "qwen3-4b": dict(model="Qwen/Qwen3-4B", thinking=True),
    "r1-distill-1.5b": dict(
        model="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", thinking=True
    ),
    "rehearsal": dict(model="random:long"),
}


def get_config(arg=None):
    arg = arg or "qwen3-4b"
    if arg not in MODELS:
        raise ValueError(f"configs/mathchat.py takes one of {[*MODELS]}, got {arg!r}")
    agent = AgentConfig(
        **MODELS[arg], max_new_tokens=4096, temperature=1.0, learning_rate=1e-6
    )
    config = default_config(solver=agent, coder=agent, verifier=agent)
    config.agents.coder.max_turns = 2
    config.steps = 128
    config.mode = "full"
    config.dtype = "bfloat16"

    config.data.source = "competition_math:aime_1983_2024"
    config.data.eval_source = "competition_math:aime_2025,competition_math:amc_eval_32"
    config.data.subset = 512
    config.data.prompts_per_step = 32
    config.data.samples_per_prompt = 2

    config.judge.provider = "gemini"
    config.judge.model = "gemini-2.5-flash"
    config.judge.thinking_tokens = 4096  # below judge.max_output_tokens
    # DeepSeek's template has no tool turn.
    config.workflow.tool_role = arg != "r1-distill-1.5b"
    config.workflow.tool_output_tokens = 2048
    config.workflow.handoff_tokens = 8192

    config.sampler.slots = 64
    config.sampler.prompt_buckets = (1024, 2048, 4096, 8192, 24576)
    config.sampler.extend_buckets = (2560,)  # a tool's output, and a little more
    config.sampler.context = 24576 + 4096
    config.packing.row_tokens = 24576 + 4096
    config.packing.row_action_tokens = 4096
    config.packing.rows = 1

    config.eval.every = 4
    config.eval.at_start = True
    config.eval.samples = 4
    config.eval.temperature = 0.6
    config.checkpoint.every = 4
    if arg == "rehearsal":
        config.steps = 1
        config.dtype = "float32"  # a CPU has no fast bfloat16
        config.judge.provider = "rubric"
        config.eval.every, config.eval.at_start = 0, False
    return config
