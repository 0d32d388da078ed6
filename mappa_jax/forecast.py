"""What the judge of a run will cost, from a few trajectories tried before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mappa_jax.config import Config
from mappa_jax.data import Data
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
    return extrapolate(tried, left * config.data.samples_per_prompt)


def extrapolate(tried: Sequence[Trajectory], trajectories: int) -> Forecast | None:
    """The cost of `trajectories` like those tried."""
    calls = [v.call for t in tried for v in t.verdicts if not v.call.cached]
    if not calls:
        return None
    share = trajectories / len(tried)
    return Forecast(
        trajectories=trajectories,
        tried=len(tried),
        calls=share * len(calls),
        tokens=share * sum(call.tokens_in + call.tokens_out for call in calls),
        usd=share * sum(call.cost for call in calls),
    )
