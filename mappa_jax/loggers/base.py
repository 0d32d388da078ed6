"""What a logger is told of an iteration: numbers, distributions, and texts to read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from mappa_jax.types import Action, Missing, Trajectory, Verdict


@dataclasses.dataclass(frozen=True)
class Shown:
    """What there is to see of an iteration besides its numbers.

    Attributes:
      scores: by agent, of its actions that have a verdict, in 0..10.
      tokens: by agent, how many each action has.
      texts: by agent, one action with what came of it, as Markdown.
    """

    scores: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    tokens: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Logger(Protocol):
    """Where an iteration is shown; metrics.jsonl is written in any case.

    `write` gets the flattened metrics that are finite.
    """

    def write(self, step: int, numbers: Mapping[str, float], shown: Shown) -> None: ...
    def close(self) -> None: ...


def shown(trajectories: Sequence[Trajectory], agents: Sequence[str]) -> Shown:
    """Of a batch, by agent; the text is that of its first action."""
    acted = {
        name: [
            (trajectory, action, verdict)
            for trajectory in trajectories
            for action, verdict in zip(
                trajectory.actions, trajectory.verdicts, strict=True
            )
            if action.agent == name
        ]
        for name in agents
    }
    return Shown(
        scores={
            name: [v.score for _, _, v in rows if isinstance(v, Verdict)]
            for name, rows in acted.items()
        },
        tokens={
            name: [len(action.token_ids) for _, action, _ in rows]
            for name, rows in acted.items()
        },
        texts={name: as_markdown(*rows[0]) for name, rows in acted.items() if rows},
    )


def as_markdown(
    trajectory: Trajectory, action: Action, verdict: Verdict | Missing
) -> str:
    """An action with its task, what its program printed, and its verdict."""
    parts = [("task", trajectory.task.prompt), (action.agent, action.text)]
    if action.observation is not None:
        parts.append(("observation", action.observation.stdout))
    if isinstance(verdict, Missing):
        said = f"no verdict: {verdict.reason.value} {verdict.detail}"
    else:
        said = f"{verdict.score:g} of 10. {verdict.rationale}"
    return "\n\n".join(f"**{title}**\n\n{quoted(t)}" for title, t in parts) + (
        f"\n\n**judge**\n\n{quoted(said)}\n"
    )


def quoted(text: str) -> str:
    """As a block of code, which Markdown shows as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
