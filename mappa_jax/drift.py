"""Does the judge change? Some of the first actions, judged again and again."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mappa_jax import records
from mappa_jax.config import JudgeConfig
from mappa_jax.judges.base import BudgetReached
from mappa_jax.rollout import Rollout, Stage, judge_request
from mappa_jax.types import (
    JudgeRequest,
    Missing,
    MissingReason,
    Role,
    Trajectory,
    Verdict,
)


async def anchor_drift(
    stage: Stage, workdir: Path, config: JudgeConfig, rolled: Rollout, step: int
) -> dict[str, float]:
    """How far the judge's scores of the anchors have moved since the first iteration.

    The first iteration's first `judge.anchors` scored actions are the anchors, kept in
    WORKDIR/judge_anchors.jsonl.

    Returns:
      Every `judge.anchor_every` iterations `drift`, the mean change in points, and
      `drift_abs`, the mean of its size, over the anchors that have both scores, and
      `anchors_missing`, those that got none this time; else nothing.

    Raises:
      BudgetReached: at a cap.
    """
    path = workdir / "judge_anchors.jsonl"
    if config.anchors and not path.exists():
        kept = _first(rolled.trajectories, config.anchors)
        records.write_trajectories(path, kept)
    if not config.anchors or step % config.anchor_every:
        return {}
    requests, before = [], []
    for trajectory in records.read_trajectories(path):
        asked = requests_of(
            trajectory,
            stage.workflow.roles,
            stage.brief.token_limits,
            stage.show_reference,
        )
        pairs = zip(asked, trajectory.verdicts, strict=True)
        for request, verdict in pairs:
            if isinstance(verdict, Verdict) and len(requests) < config.anchors:
                where = f"anchor/{step}/{len(requests)}"
                request = dataclasses.replace(request, address=where, repeat=step + 1)
                requests.append(request)
                before.append(verdict.score)
    found = await asyncio.gather(*(stage.judge.score(r) for r in requests))
    missing = [verdict for verdict in found if isinstance(verdict, Missing)]
    for verdict in missing:
        if verdict.reason is MissingReason.BUDGET:
            raise BudgetReached(verdict.detail)
    moved = [
        now.score - then
        for now, then in zip(found, before, strict=True)
        if isinstance(now, Verdict)
    ]
    out = {"anchors_missing": len(missing)}
    if moved:
        out |= {"drift": float(np.mean(moved))}
        out |= {"drift_abs": float(np.mean(np.abs(moved)))}
    return out


def anchor_rounds(config: JudgeConfig, start: int, steps: int) -> int:
    """How often the anchors are judged in the iterations after `start`."""
    if not config.anchors:
        return 0
    return steps // config.anchor_every - start // config.anchor_every


def read_drift(path: Path) -> list[dict[str, float]]:
    """What metrics.jsonl says of the anchors: the iterations that judged them again.

    Raises:
      RecordError: a line is damaged.
    """
    names = ("drift", "drift_abs")
    return [
        {"step": row["step"]} | {name: row[f"judge/{name}"] for name in names}
        for row in records.read_rows(path, ("step",))
        if "judge/drift" in row
    ]


def _first(trajectories: Sequence[Trajectory], actions: int) -> list[Trajectory]:
    """As many trajectories as hold so many scored actions."""
    kept, count = [], 0
    for trajectory in trajectories:
        if count >= actions:
            break
        kept.append(trajectory)
        count += sum(isinstance(v, Verdict) for v in trajectory.verdicts)
    return kept


def requests_of(
    trajectory: Trajectory,
    team: tuple[Role, ...],
    token_limits: Mapping[str, int],
    show_reference: str,
) -> list[JudgeRequest]:
    """What a judge is asked of each action of a recorded trajectory; see
    `rollout.judge_request`."""
    return [
        judge_request(
            trajectory.task,
            action,
            trajectory.actions[:index],
            team=team,
            token_limits=token_limits,
            show_reference=show_reference,
        )
        for index, action in enumerate(trajectory.actions)
    ]
