"""From the phases of a plan to seconds, tokens and dollars of an iteration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mappa_jax.plan import workload
from mappa_jax.plan.planner import Plan

STAGES = ("rollout", "credit", "update")


@dataclasses.dataclass(frozen=True)
class Forecast:
    """One MAPPA iteration at the roofline: a lower bound.

    Attributes:
      seconds: by stage, every phase as long as its longest bound.
      unhidden: of all stages, if nothing overlapped: compute, memory and collectives
        one after the other.
      actions: in an iteration.
      new_tokens: sampled in an iteration.
      trained_tokens: prompts and answers of those that are trained on.
      usd: on demand and spot; empty where nothing is rented.
    """

    seconds: Mapping[str, float]
    unhidden: float
    actions: int
    new_tokens: int
    trained_tokens: int
    usd: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def rates(self) -> dict[str, float]:
        """Tokens a second of all chips together."""
        return {
            "sampled_while_sampling": self.new_tokens / self.seconds["rollout"],
            "trained_while_training": self.trained_tokens
            / (self.seconds["credit"] + self.seconds["update"]),
            "sampled_over_all": self.new_tokens / self.total,
        }


def forecast(plan: Plan) -> Forecast | None:
    """None where some program was not compiled, so that a part is missing."""
    stages = {phase.stage for phase in plan.phases if phase.use.calls}
    if stages != {*STAGES} or not any(p.name == "decode" for p in plan.phases):
        return None
    seconds = {
        stage: sum(p.seconds for p in plan.phases if p.stage == stage)
        for stage in STAGES
    }
    unhidden = sum(
        p.use.calls
        * (p.bounds.compute + p.bounds.memory + sum(p.bounds.links.values()))
        for p in plan.phases
    )
    every, load = workload.actions(plan.config), plan.load
    agents = plan.config.agents.values()
    lengths = zip(every, load.new, agents, strict=True)
    trained = sum(
        n * (load.prompt + new) for n, new, agent in lengths if agent.trainable
    )
    price = plan.fabric.chip.price
    hours = plan.chips * sum(seconds.values()) / 3600
    return Forecast(
        seconds=seconds,
        unhidden=unhidden,
        actions=sum(every),
        new_tokens=sum(n * new for n, new in zip(every, load.new, strict=True)),
        trained_tokens=trained,
        usd={"on_demand": hours * price.on_demand, "spot": hours * price.spot}
        if price
        else {},
    )


def assumptions(plan: Plan) -> list[str]:
    """What the forecast takes for granted, in words."""
    config, load = plan.config, plan.load
    names = list(config.agents)
    new = ", ".join(f"{n} {t}" for n, t in zip(names, load.new, strict=True))
    return [
        f"every prompt has {load.prompt} tokens, every answer: {new} "
        "(--prompt_tokens, --new_tokens)",
        f"{workload.rollouts(config)} trajectories, every agent takes all its turns: "
        f"{sum(workload.actions(config))} actions, all of them trained on, no prefix "
        "shared",
        "slots are always full, agents on different slices of the mesh always busy, "
        "the cache is read up to the middle of an answer",
        "arithmetic, memory and links overlap perfectly; latencies, the host, the "
        "judge, the sandbox, evaluation and checkpoints take no time",
    ]
