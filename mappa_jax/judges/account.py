"""What the calls of a run have cost, and what those under way may still cost."""

from __future__ import annotations

import asyncio

from mappa_jax.config import BudgetConfig
from mappa_jax.judges.base import Meter
from mappa_jax.judges.ledger import Spent


class Account:
    """One for a ledger, shared by all judges that file their calls there.

    Args:
      budget: the caps.
      spent: the ledger's, which grows as calls are filed.
    """

    def __init__(self, budget: BudgetConfig, spent: Spent):
        self._budget = budget
        self._spent = spent
        self._held = Spent()
        self._released = asyncio.Event()
        self._in_flight = self._most_in_flight = 0

    def over(self, cost: Spent) -> str | None:
        """The cap that so much more could break, counting what is set aside."""
        spent, held = self._spent, self._held
        reached = {
            "calls": (spent.calls + held.calls + cost.calls, self._budget.calls),
            "tokens": (spent.tokens + held.tokens + cost.tokens, self._budget.tokens),
            "usd": (spent.usd + held.usd + cost.usd, self._budget.usd),
        }
        for name, (would_be, cap) in reached.items():
            if cap and would_be > cap:
                return (
                    f"judge.budget.{name}={cap:g} would be passed ({spent.calls} "
                    f"calls, {spent.tokens} tokens, ${spent.usd:.4f} so far); raise it "
                    "and run the same command again to go on"
                )
        return None

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
            calls=self._spent.calls,
            tokens=self._spent.tokens,
            usd=self._spent.usd,
        )
