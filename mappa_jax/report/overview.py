"""The blocks of a report but for its episodes: verdict, curves, facts, config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mappa_jax.config import flat_items
from mappa_jax.report.curves import panels
from mappa_jax.report.index import FORMAT, Digest, Row
from mappa_jax.report.verdict import RESAMPLES, judge_run
from mappa_jax.report.workdir import TRAINING, RunFiles


def overview(run: RunFiles, digests: Mapping[str, Digest], note: str) -> dict[str, Any]:
    """Everything but the episodes."""
    agents = team(run, digests)
    seed, resamples = _bootstrap(run.config)
    problems = problem_scores(run, digests)
    return {
        "format": FORMAT,
        "name": run.folder.resolve().name,
        "agents": agents,
        "done": run.metrics[-1]["step"] if run.metrics else 0,
        "steps": run.config.get("steps"),
        "verdict": judge_run(run.evaluations, problems, resamples, seed),
        "panels": panels(run.metrics, run.evaluations, agents),
        "facts": facts(run, digests),
        "config": flat(run.config),
        "starts": run.starts,
        "notes": [text for text in (note, *notes(run)) if text],
    }


def _bootstrap(config: Mapping[str, Any]) -> tuple[int, int]:
    evaluation = config.get("eval") or {}
    return config.get("seed", 0), evaluation.get("bootstrap", RESAMPLES)


def team(run: RunFiles, digests: Mapping[str, Digest]) -> list[str]:
    """The agents in the order in which they act, as far as it can be told."""
    acted = dict.fromkeys(
        agent
        for file in run.files
        if file.set != "single"
        for row in digests[file.key].rows
        for agent in row.agents
    )
    keys = (k.split("/")[1] for r in run.metrics for k in r if k.startswith("agents/"))
    return list(dict.fromkeys([*acted, *keys]))


def problem_scores(run: RunFiles, digests: Mapping[str, Digest]) -> dict[Any, Any]:
    """(label, step) -> source -> task -> mean outcome over its samples."""
    found: dict[Any, Any] = {}
    for file in run.files:
        if file.set == TRAINING:
            continue
        sources = found.setdefault((file.set, file.step), {})
        for row in digests[file.key].rows:
            if row.outcome is not None:
                tasks = sources.setdefault(row.source, {})
                tasks.setdefault(row.task, []).append(row.outcome)
    return {
        key: {
            source: {task: float(np.mean(scores)) for task, scores in tasks.items()}
            for source, tasks in sources.items()
        }
        for key, sources in found.items()
    }


def facts(run: RunFiles, digests: Mapping[str, Digest]) -> list[list[str]]:
    """A few numbers of the whole run: name and value."""
    rows = [row for digest in digests.values() for row in digest.rows]
    actions = sum(len(row.agents) for row in rows)
    out = [["Episodes on record", f"{len(rows):,}"], ["Actions", f"{actions:,}"]]
    judged = [
        row for f in run.files if f.set == TRAINING for row in digests[f.key].rows
    ]
    if judged:
        missing = sum(row.missing for row in judged)
        total = sum(len(row.agents) for row in judged)
        share = missing / max(total, 1)
        out.append(["Missing verdicts in training", f"{missing:,} ({share:.1%})"])
        out.append(["Judge against outcome", _told(judged, "judge_disagrees")])
        out.append(["Credit against outcome", _told(judged, "credit_disagrees")])
    spent = [row["judge/spent"] for row in run.metrics if row.get("judge/spent")]
    if spent:
        out.append(["Spent on the judge", f"${spent[-1]:,.2f}"])
    seconds = [row.get("seconds/iteration") for row in run.metrics]
    told = [value for value in seconds if value]
    if told:
        out.append(["Median iteration", f"{np.median(told):,.1f} s"])
    return out


def _told(rows: Sequence[Row], name: str) -> str:
    known = [getattr(row, name) for row in rows if getattr(row, name) is not None]
    if not known:
        return "not known"
    return f"{sum(known):,} of {len(known):,} disagree ({sum(known) / len(known):.0%})"


def notes(run: RunFiles) -> list[str]:
    """What is not there, in words."""
    out = []
    if not run.metrics:
        out.append("metrics.jsonl is missing or empty: there are no learning curves.")
    if not run.files:
        out.append("There are no trajectories in this folder: no episodes to read.")
    if run.undone:
        out.append(
            f"{len(run.undone)} files of trajectories are of iterations that the run "
            "has gone back on, and are not shown."
        )
    return out


def flat(config: Mapping[str, Any]) -> list[list[str]]:
    """[key, value] of every leaf of a config, keys joined by dots."""
    items = flat_items(config)
    return [[key, json.dumps(value, ensure_ascii=False)] for key, value in items]
