"""The data-science experiment: engineer -> modeller -> analyst (arXiv 2601.23228).

  python launch/train.py --config=configs/datascience.py --workdir=... \
    --config.data.source=dsbench:PATH/dsbench_modeling_train.json \
    --config.data.eval_source=dsbench:PATH/dsbench_modeling_eval.json \
    --config.data.folder=PATH_TO_THE_CSV_FILES
  python launch/train.py --config=configs/datascience.py:cpu --workdir=runs/datascience

Without an argument, the paper's settings: Qwen3-4B x3, 64 DSBench tasks for training
and 8 for evaluation (docs/data.md says where the files come from), 16 prompts x 2
samples per iteration stratified by kind of task, 30 epochs = 120 iterations,
gemini-2.5-pro as judge (GEMINI_API_KEY), evaluation every 2 iterations with 4 trials of
each task. Needs accelerators.

With "cpu", the default weights on two cores with the offline rubric, on tasks made of
what scikit-learn ships and generates: it shows the pipeline on real data, files and
code. A model of 135M parameters seldom solves them.
"""

from mappa_jax.config import AgentConfig, default_config

PRELOAD = ("numpy", "pandas", "joblib", "sklearn.ensemble", "sklearn.linear_model")


def get_config(arg=None):
    if arg not in (None, "cpu"):
        raise ValueError(f"configs/datascience.py takes nothing or cpu, got {arg!r}")
    return _cpu() if arg == "cpu" else _paper()


def _base(agent):
    config = default_config(engineer=agent, modeller=agent, analyst=agent)
    config.workflow.name = "datascience"
    config.data.stratify = True
    config.sandbox.preload = PRELOAD
    return config


def _paper():
    agent = AgentConfig(
        model="Qwen/Qwen3-4B",
        thinking=True,
        max_new_tokens=16384,
        max_turns=4,
        learning_rate=1e-6,
    )
    config = _base(agent)
    config.steps = 120
    config.dtype = "bfloat16"

    config.data.source = "dsbench:dsbench_modeling_train.json"
    config.data.eval_source = "dsbench:dsbench_modeling_eval.json"
    config.data.prompts_per_step = 16
    config.data.samples_per_prompt = 2

    config.judge.provider = "gemini"
    config.judge.model = "gemini-2.5-pro"
    config.judge.rubric = "paper"

    config.sandbox.wall_seconds = 600.0
    config.sandbox.cpu_seconds = 600
    config.sandbox.memory_mb = 16384
    config.sandbox.processes = 64
    config.sandbox.file_mb = 4096
    config.sandbox.disk_mb = 8192
    config.sandbox.workers = 16
    config.workflow.tool_output_tokens = 2048
    config.workflow.handoff_tokens = 8192

    config.sampler.slots = 32
    config.sampler.prompt_buckets = (2048, 4096, 8192, 16384, 24576)
    config.sampler.extend_buckets = (2560,)  # a tool's output, and a little more
    config.sampler.context = 24576 + 16384
    config.packing.row_tokens = 24576 + 16384
    config.packing.row_action_tokens = 16384
    config.packing.rows = 1

    config.eval.every = 2
    config.eval.at_start = True
    config.eval.samples = 4
    config.eval.temperature = 0.6
    config.checkpoint.every = 2
    return config


def _cpu():
    agent = AgentConfig(
        max_new_tokens=192, max_turns=2, temperature=0.8, learning_rate=1e-4
    )
    config = _base(agent)
    config.steps = 2
    config.mode = "lora"

    config.data.source = "tabular:all"
    config.data.train_size = 24
    config.data.eval_size = 6
    config.data.prompts_per_step = 2
    config.data.samples_per_prompt = 2
    config.workflow.example = True
    config.workflow.tool_role = False
    config.workflow.tool_output_tokens = 128
    config.workflow.handoff_tokens = 192

    config.sandbox.wall_seconds = 60.0
    config.sandbox.cpu_seconds = 30
    config.sandbox.memory_mb = 2048

    config.sampler.slots = 4
    config.sampler.prefill_rows = 1  # agents finish their turns at different times
    config.sampler.prompt_buckets = (704, 1088, 1472)
    config.sampler.context = 1664
    config.packing.row_tokens = 1664
    config.packing.row_action_tokens = 768
    config.packing.rows = 1
    config.optimizer.actions_per_update = 8
    config.optimizer.warmup_fraction = 0.0
    config.objective.mask_truncated = False
    config.kl.beta = 0.01

    config.eval.at_end = True
    config.eval.samples = 1
    config.checkpoint.every = 1
    return config
