"""What the judge of a run will cost, from a few trajectories tried before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mappa_jax.config import Config
from mappa_jax.data import Data
from mappa_jax.drift import anchor_rounds
from mappa_jax.judges.base import Meter
from mappa_jax.rollout import Stage, rollout
from mappa_jax.types import Trajectory


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What is still to come; `usd` is 0 where the price is unknown."""

    trajectories: int
    tried: int
    calls: float
    tokens: float
    usd: float

    def __str__(self) -> str:
        money = f", ${self.usd:.2f}" if self.usd else ""
        return (
            f"judge: about {self.calls:,.0f} calls and {self.tokens / 1e6:,.2f} "
            f"million tokens{money} for {self.trajectories:,} trajectories "
            f"(from {self.tried})"
        )


async def forecast(
    stage: Stage, config: Config, data: Data, weights: tuple[Any, Any], start: int
) -> Forecast | None:
    """Tries the next iteration's first `judge.forecast` trajectories.

    They are sampled as the iteration will sample them, so that their verdicts are in
    the ledger when it asks and nothing is paid for twice.

    Returns:
      None where nothing was asked of a paid judge (or all of it was on record).
    """
    tasks = data.train.batch(start)[: config.judge.forecast]
    judge = config.judge
    # Who is asked twice is drawn anew in the run; here it would only add noise.
    stage = dataclasses.replace(stage, duplicates=0.0)
    before = stage.judge.meter()
    async with stage.engine.running(*weights):
        rolling = await rollout(
            stage,
            tasks,
            samples=1,
            step=start + 1,
            evaluation=False,
            on_done=lambda: None,
        )
    tried = (await rolling.close()).trajectories
    left = (config.steps - start) * config.data.prompts_per_step
    return extrapolate(
        tried,
        spent_since(before, stage.judge.meter()),
        left * config.data.samples_per_prompt,
        duplicates=judge.duplicates,
        anchors=judge.anchors * anchor_rounds(judge, start, config.steps),
    )


def extrapolate(
    tried: Sequence[Trajectory],
    spent: Meter,
    trajectories: int,
    *,
    duplicates: float = 0.0,
    anchors: int = 0,
) -> Forecast | None:
    """The cost of `trajectories` like those tried.

    Args:
      tried: with their verdicts.
      spent: what those verdicts took that were not on record: of an ensemble several
        calls each.
      trajectories: how many there will be.
      duplicates: share of the actions that will be judged twice.
      anchors: actions that will be judged besides.
    """
    verdicts = [verdict for t in tried for verdict in t.verdicts]
    asked = sum(not verdict.call.cached for verdict in verdicts)
    if not asked or not spent.calls:
        return None
    actions = trajectories * len(verdicts) / len(tried)
    share = (actions * (1 + duplicates) + anchors) / asked
    return Forecast(
        trajectories=trajectories,
        tried=len(tried),
        calls=share * spent.calls,
        tokens=share * spent.tokens,
        usd=share * spent.usd,
    )


def spent_since(before: Meter, now: Meter) -> Meter:
    """What was spent between two readings."""
    return Meter(
        calls=now.calls - before.calls,
        tokens=now.tokens - before.tokens,
        usd=now.usd - before.usd,
    )
