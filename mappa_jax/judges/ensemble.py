"""Several judges on every action: their mean or median, and how far they disagree."""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
from collections.abc import Mapping

from mappa_jax.config import BudgetConfig
from mappa_jax.judges.account import Account
from mappa_jax.judges.base import Judge, Meter
from mappa_jax.judges.ledger import Ledger
from mappa_jax.types import JudgeCall, JudgeRequest, Missing, Verdict

COMBINE = {"mean": statistics.fmean, "median": statistics.median}


class EnsembleJudge:
    """See `Judge`. An action has a verdict only if every member gave one.

    The mean over those that happened to answer would mix the members' offsets into the
    reward; so the first member's `Missing` stands for all.

    Args:
      members: by name.
      combine: "mean" or "median" of their scores.
      account: the one that those members share which have one.
    """

    name = "ensemble"

    def __init__(
        self,
        members: Mapping[str, Judge],
        combine: str,
        account: Account | None = None,
    ):
        self._members = dict(members)
        self._account = account or Account(BudgetConfig(), Ledger(None))
        self._combine = COMBINE[combine]

    async def check(self) -> None:
        """See `Judge.check`."""
        for member in self._members.values():
            await member.check()

    async def score(self, request: JudgeRequest) -> Verdict | Missing:
        """See `Judge.score`."""
        asked = (member.score(request) for member in self._members.values())
        found = await asyncio.gather(*asked)
        call = _call([verdict.call for verdict in found])
        for name, verdict in zip(self._members, found, strict=True):
            if isinstance(verdict, Missing):
                return Missing(verdict.reason, f"{name}: {verdict.detail}", call)
        scores = [verdict.score for verdict in found]
        said = (
            f"{name} ({verdict.score:g}): {verdict.rationale}"
            for name, verdict in zip(self._members, found, strict=True)
        )
        opinions = {v.correct for v in found if v.correct is not None}
        return Verdict(
            score=self._combine(scores),
            rationale="\n".join(said),
            call=call,
            correct=opinions.pop() if len(opinions) == 1 else None,
            disagreement=max(scores) - min(scores),
        )

    def meter(self) -> Meter:
        """The shared account's; down since the first of the members is."""
        meters = [member.meter() for member in self._members.values()]
        down = [m.down_since for m in meters if m.down_since is not None]
        return dataclasses.replace(
            self._account.meter(), down_since=min(down, default=None)
        )

    def sync(self) -> None:
        """See `Judge.sync`."""
        for member in self._members.values():
            member.sync()

    async def aclose(self) -> None:
        """See `Judge.aclose`."""
        for member in self._members.values():
            await member.aclose()


def _call(calls: list[JudgeCall]) -> JudgeCall:
    return JudgeCall(
        judge="ensemble",
        model="+".join(call.model or call.judge for call in calls),
        tokens_in=sum(call.tokens_in for call in calls),
        tokens_out=sum(call.tokens_out for call in calls),
        cost=sum(call.cost for call in calls),
        latency_s=max(call.latency_s for call in calls),
        attempts=sum(call.attempts for call in calls),
        cached=all(call.cached for call in calls),
    )
