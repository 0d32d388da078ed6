"""The README.md of an exported agent: what it is, of which data, judge and results."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from mappa_jax.config import Config
from mappa_jax.team_file import config_digest
from mappa_jax.workflows import find_workflow

_MERGED = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{agent}")
model = AutoModelForCausalLM.from_pretrained("{agent}")
chat = [{{"role": "user", "content": "..."}}]
inputs = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"{more}
)
output = model.generate(**inputs)
print(tokenizer.decode(output[0][inputs["input_ids"].shape[1]:]))"""
_PEFT = (
    _MERGED.replace(
        "from transformers import ",
        "from peft import PeftModel\nfrom transformers import GenerationConfig, ",
    )
    .replace(
        'model = AutoModelForCausalLM.from_pretrained("{agent}")',
        'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "{agent}")\n'
        'sampling = GenerationConfig.from_pretrained("{agent}")',
    )
    .replace("(**inputs)", "(**inputs, generation_config=sampling)")
)


@functools.cache
def _template() -> str:
    return (resources.files("mappa_jax") / "cards" / "agent.md").read_text("utf-8")


def make_card(
    config: Config,
    agent: str,
    *,
    folder: str,
    step: int,
    kind: str,
    base_folder: str | None,
    results: Sequence[Mapping[str, Any]],
) -> str:
    """The card as Markdown with YAML front matter.

    Args:
      config: of the run.
      agent: its name.
      folder: of the agent, relative to the export.
      step: of the checkpoint.
      kind: "merged" or "peft".
      base_folder: of the base, if it lies beside the adapter.
      results: lines of evaluations.jsonl.
    """
    from huggingface_hub import ModelCard, ModelCardData

    own = config.agents[agent]
    roles = find_workflow(config.workflow.name).roles
    usage = _PEFT if kind == "peft" else _MERGED
    more = ",\n    enable_thinking=True" if own.thinking else ""
    data = ModelCardData(
        base_model=own.model,
        library_name="peft" if kind == "peft" else "transformers",
        pipeline_tag="text-generation",
        tags=["mappa_jax", "multi-agent", config.workflow.name],
    )
    card = ModelCard.from_template(
        data,
        template_str=_template(),
        agent=agent,
        kind=kind,
        duty=next(role.duty for role in roles if role.name == agent),
        team=" -> ".join(role.name for role in roles),
        workflow=config.workflow.name,
        facts=_facts(config, agent, step),
        results=[row for line in results for row in _rows(line)],
        usage=usage.format(agent=folder, base=base_folder or own.model, more=more),
        stop=", ".join(f"`{stop!r}`" for stop in own.stop),
        base=own.model,
        base_folder=base_folder,
    )
    return str(card).rstrip("\n") + "\n"


def _facts(config: Config, agent: str, step: int) -> list[tuple[str, Any]]:
    own, judge, data = config.agents[agent], config.judge, config.data
    judged = judge.provider
    if judge.provider not in ("rubric", "ensemble"):
        judged += f" ({judge.model})"
    if judge.members:
        judged += f" of {judge.members}"
    frozen = "" if own.trainable else " (this agent was not trained)"
    weights = {
        "full": "its own, all trained",
        "lora": "an adapter of its own on the base",
        "shared": "one set that plays every role",
    }
    facts = [
        ("base model", f"`{own.model}`"),
        ("weights", weights[config.mode] + frozen),
        ("training problems", f"`{data.source}`"),
        ("held-out problems", f"`{data.eval_source or data.source}` (held out)"),
        ("judge", judged),
        ("iterations", f"{step} of {config.steps}"),
        ("seed", config.seed),
        ("config (SHA-256)", f"`{config_digest(config)}`"),
        ("new tokens an action", own.max_new_tokens),
        ("sampled at", f"temperature {own.temperature:g}, top_p {own.top_p:g}"),
    ]
    return [(name, str(value).replace("|", "\\|")) for name, value in facts]


def _rows(line: Mapping[str, Any]) -> list[list[str]]:
    """A row of the table for each source of an evaluation."""
    return [
        [
            str(line["label"]),
            source.replace("|", "\\|"),
            str(line["step"]),
            _interval(row, "avg"),
            _interval(row, "pass"),
            str(row["k"]),
            str(row["problems"]),
        ]
        for source, row in line["sources"].items()
    ]


def _interval(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return "-"
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
