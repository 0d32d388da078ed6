"""Trying the team on held-out problems: avg@k and pass@k with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mappa_jax import records
from mappa_jax.config import Config, EvalConfig
from mappa_jax.rollout import Stage, rollout
from mappa_jax.statistics import (
    majority_by_source,
    mean_estimate,
    quality_by_kind,
    scores_by_source,
    summarise,
)
from mappa_jax.types import Task, Trajectory


async def evaluate(
    stage: Stage,
    weights: tuple[Any, Any],
    tasks: Mapping[str, Sequence[Task]],
    config: EvalConfig,
    *,
    seed: int,
    step: int,
    workdir: Path | None,
    on_done: Callable[[], None],
    label: str = "",
) -> dict[str, Any]:
    """Every problem `config.samples` times.

    Args:
      stage: the team; its seats carry the evaluation temperature.
      weights: (trainable, frozen).
      tasks: by source.
      config: samples and bootstrap.
      seed: of the bootstrap.
      step: iterations done, part of the random addresses and of the records' name.
      workdir: trajectories go there, and a line of evaluations.jsonl; None: nowhere.
      on_done: called after each trajectory.
      label: what is evaluated, where it is not the team in training.

    Returns:
      By source: avg, avg_low, avg_high, pass, pass_low, pass_high (95% intervals
      bootstrapped over problems), problems, samples, k (of pass@k), failed (runs
      that ended early; those that the team did not cause are in no average), tokens
      (sampled, of a trajectory) and, with several samples, maj, maj_low and maj_high:
      the answer that most of them gave, which costs `samples` times as many. A source
      without a graded run is absent. Where outcomes tell of quality, `kinds` holds
      `statistics.quality_by_kind`.
    """
    out: dict[str, Any] = {}
    for source, problems in tasks.items():
        async with stage.engine.running(*weights):
            rolling = await rollout(
                stage,
                problems,
                samples=config.samples,
                step=step,
                evaluation=True,
                on_done=on_done,
            )
        rolled = await rolling.close()
        if workdir is not None:
            name = f"{label}_{source}" if label else source
            path = records.evaluation_path(workdir, step, name)
            records.write_trajectories(path, rolled.trajectories)
        scores = scores_by_source(rolled.trajectories)
        k = config.pass_k or config.samples
        failed = sum(t.failure is not None for t in rolled.trajectories)
        found = summarise(scores, k, config.bootstrap, seed)
        for summary in found.values():
            out[source] = _flat(summary) | {
                "k": k,
                "failed": failed,
                "tokens": _tokens(rolled.trajectories),
            }
        if config.samples > 1:
            for values in majority_by_source(rolled.trajectories).values():
                vote = mean_estimate(values, config.bootstrap, seed)
                out[source] |= {
                    "maj": vote["value"],
                    "maj_low": vote["low"],
                    "maj_high": vote["high"],
                }
        kinds = quality_by_kind(rolled.trajectories, config.bootstrap, seed)
        if kinds:
            out[source]["kinds"] = kinds
    if workdir is None:
        return out
    line = {"step": step, "label": label or "team", "sources": out}
    records.append_row(workdir / "evaluations.jsonl", line)
    return out


def _tokens(trajectories: Sequence[Trajectory]) -> float:
    """Sampled ones of a trajectory, on average: what one try costs."""
    return sum(len(a.token_ids) for t in trajectories for a in t.actions) / max(
        len(trajectories), 1
    )


def _flat(summary: Mapping[str, Any]) -> dict[str, float]:
    out = {
        "avg": summary["value"],
        "avg_low": summary["low"],
        "avg_high": summary["high"],
        "problems": summary["problems"],
        "samples": summary["samples"],
    }
    if "pass" in summary:
        passed = summary["pass"]
        out |= {
            "pass": passed["value"],
            "pass_low": passed["low"],
            "pass_high": passed["high"],
        }
    return out


def single_agent(config: Config) -> Config:
    """The config of one agent that may write as much as the whole team.

    In data science it may act as often as the team's agents together; elsewhere it
    has one turn as long as all of theirs.
    """
    first = next(iter(config.agents.values()))
    name = config.workflow.name
    if name == "datascience":
        turns = sum(agent.max_turns for agent in config.agents.values())
        agent = dataclasses.replace(first, max_turns=turns)
        single, sampler, packing = (
            "datascience_single",
            config.sampler,
            config.packing,
        )
    else:
        budget = sum(a.max_new_tokens * a.max_turns for a in config.agents.values())
        agent = dataclasses.replace(first, max_new_tokens=budget, max_turns=1)
        block = config.sampler.cache_block
        longest = config.sampler.prompt_buckets[-1] + budget
        context = -(-longest // block) * block
        single = "single"
        sampler = dataclasses.replace(config.sampler, context=context)
        packing = dataclasses.replace(
            config.packing, row_tokens=context, row_action_tokens=budget
        )
    # One agent cannot be divided over the mesh: what agents had, its rows get.
    mesh = config.mesh
    data = mesh.data if -1 in (mesh.agent, mesh.data) else mesh.data * mesh.agent
    slices = mesh.agent
    if slices == -1:
        slices = jax.device_count() // (mesh.data * mesh.fsdp * mesh.tensor)
    mesh = dataclasses.replace(mesh, agent=1, data=-1 if mesh.agent == -1 else data)
    sampler = dataclasses.replace(
        sampler,
        slots=sampler.slots * slices,
        widths=tuple(width * slices for width in sampler.widths),
    )
    return dataclasses.replace(
        config,
        mesh=mesh,
        agents={"single": agent},
        workflow=dataclasses.replace(config.workflow, name=single),
        sampler=sampler,
        packing=packing,
    )
