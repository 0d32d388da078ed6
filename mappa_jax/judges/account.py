"""What the calls of a run have cost, and what those under way may still cost."""

from __future__ import annotations

import asyncio

from mappa_jax.config import BudgetConfig
from mappa_jax.judges.base import Meter
from mappa_jax.judges.ledger import Ledger, Spent


class Account:
    """One for a ledger, shared by all judges that file their calls there.

    Args:
      budget: the caps.
      ledger: whose calls grow as they are filed.
      host, hosts: which of how many spends from the budget here. What was left of a
        cap when they last told one another is divided among them, so that it holds for
        all together; calls that do not divide are the first host's.
    """

    def __init__(
        self, budget: BudgetConfig, ledger: Ledger, host: int = 0, hosts: int = 1
    ):
        self._budget = budget
        self._ledger = ledger
        self._host, self._hosts = host, hosts
        self._held = Spent()
        self._released = asyncio.Event()
        self._in_flight = self._most_in_flight = 0

    def over(self, cost: Spent) -> str | None:
        """The cap that so much more could break, counting what is set aside."""
        spent, settled = self._ledger.spent, self._ledger.settled
        mine = spent.plus(settled, -1).plus(self._held, 1).plus(cost, 1)
        for name in ("calls", "tokens", "usd"):
            cap = getattr(self._budget, name)
            left = cap - getattr(settled, name)
            if cap and getattr(mine, name) > self._part(left):
                return (
                    f"judge.budget.{name}={cap:g} would be passed ({spent.calls} "
                    f"calls, {spent.tokens} tokens, ${spent.usd:.4f} so far); raise it "
                    "and run the same command again to go on"
                )
        return None

    def _part(self, left: float) -> float:
        """This host's part of what is left of a cap."""
        if isinstance(left, float):
            return left / self._hosts
        return left // self._hosts + (left % self._hosts if not self._host else 0)

    def hold(self, cost: Spent) -> None:
        """Sets aside what a call may cost."""
        self._held = self._held.plus(cost, 1)

    def release(self, cost: Spent) -> None:
        """Ends what `hold` began; the call itself is in the ledger by now."""
        self._held = self._held.plus(cost, -1)
        if not self._held.calls:
            self._held = Spent()  # no rounding stays behind
        self._released.set()
        self._released = asyncio.Event()

    @property
    def idle(self) -> bool:
        """Whether nothing is set aside: waiting would free nothing."""
        return not self._held.calls

    async def released(self) -> None:
        """Returns when a call has ended: it may have cost less than was set aside."""
        await self._released.wait()

    def flight(self, change: int) -> None:
        """Counts requests that are at a provider."""
        self._in_flight += change
        self._most_in_flight = max(self._most_in_flight, self._in_flight)

    def meter(self) -> Meter:
        """What is under way and has been spent."""
        return Meter(
            in_flight=self._in_flight,
            most_in_flight=self._most_in_flight,
            calls=self._ledger.spent.calls,
            tokens=self._ledger.spent.tokens,
            usd=self._ledger.spent.usd,
        )
