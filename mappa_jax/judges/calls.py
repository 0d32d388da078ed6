"""The judge that asks a model: everything between a request and its verdict.

The life of a call: render the prompt; look into the ledger, where the same content may
have been answered; check the budget; wait for the rate limits, the circuit breaker and
one of `concurrency` slots; ask, and ask again after a pause as long as the fault is one
that passes and the deadline allows; write the call down; read the verdict strictly.
Every way in which this fails has its own `MissingReason`, and none becomes a number.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import itertools
import json
import logging
import random
import statistics
import time
from collections.abc import Sequence

from mappa_jax.config import JudgeConfig
from mappa_jax.judges.base import JudgeError, Meter
from mappa_jax.judges.ledger import ANSWERED, Entry, Ledger
from mappa_jax.judges.limits import CircuitBreaker, TokenBucket
from mappa_jax.judges.prices import Price
from mappa_jax.judges.prompts import CHARS_PER_TOKEN, Prompt, probe, render
from mappa_jax.judges.provider import Fault, Provider, Reply, Usage
from mappa_jax.judges.schema import read_verdict
from mappa_jax.types import JudgeCall, JudgeRequest, Missing, MissingReason, Verdict

log = logging.getLogger(__name__)

# Pauses between attempts: exponential from the first to the longest, with jitter.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
# Faults of the endpoint in a row after which it counts as down, and the pause between
# trials from then on.
DOWN_AFTER, TRIAL_PAUSE_S = 8, 5.0
SHOWN_CHARS = 200  # of a faulty answer, in the detail of a Missing
HEDGE_AFTER = 20  # latencies that must be known before the slowest can be told
DRAIN_S = 10.0  # calls under way are given so long to end when the judge closes


class CallingJudge:
    """See `Judge`.

    Args:
      provider: whom to ask.
      config: limits, deadline, budget.
      ledger: what was asked before; new calls are appended. One that is read-only is
        replayed: nobody is asked.
      price: of the model; None where it is unknown.
      secrets: never to be written anywhere.

    Raises:
      JudgeError: a budget in money needs a price.
    """

    def __init__(
        self,
        provider: Provider,
        config: JudgeConfig,
        ledger: Ledger,
        price: Price | None,
        secrets: Sequence[str] = (),
    ):
        if config.budget.usd and price is None:
            raise JudgeError(
                f"judge.budget.usd needs the price of {provider.model!r}, which the "
                "table does not have: add it to a table of your own (judge.prices), or "
                "set judge.budget.tokens or judge.budget.calls instead"
            )
        self.name = provider.name
        self._provider = provider
        self._config = config
        self._ledger = ledger
        self._price = price
        self._secrets = [secret for secret in secrets if secret]
        self._slots = asyncio.Semaphore(config.concurrency)
        self._requests = TokenBucket(config.rpm)
        self._tokens = TokenBucket(config.tpm)
        self._breaker = CircuitBreaker(DOWN_AFTER, TRIAL_PAUSE_S, config.outage_s)
        self._jitter = random.Random(0)  # its draws reach no result
        self._asking: dict[str, asyncio.Task[Entry]] = {}
        self._reserved = Usage()  # of the calls under way, a guess
        self._latencies: collections.deque[float] = collections.deque(maxlen=200)
        self._meter = Meter()

    # -- the protocol ----------------------------------------------------------

    async def check(self) -> None:
        """One short call, as the calls of the run will be.

        Raises:
          JudgeError: the key, the model, the quota or the endpoint will not do.
        """
        if self._config.replay:
            return
        await self._provider.open()
        prompt = probe(self._provider.form)
        if self._over_budget(prompt):
            return  # said by the first verdict; replies on record still serve
        entry = await self._entry(prompt, self._key(prompt), "")
        if entry.outcome == ANSWERED:
            read = read_verdict(entry.answer, prompt)
            if not isinstance(read, MissingReason):
                return
            entry = dataclasses.replace(
                entry,
                outcome=read.value,
                detail=f"it said {entry.answer[:SHOWN_CHARS]!r}",
            )
        raise JudgeError(
            f"the judge {self.name} ({self._provider.model}) does not answer a first "
            f"call: {entry.outcome}: {entry.detail}"
        )

    async def score(self, request: JudgeRequest) -> Verdict | Missing:
        """See `Judge.score`."""
        prompt = render(request, self._config, self._provider.form)
        key = self._key(prompt, request.repeat)
        if self._config.replay:
            entry = self._ledger.at(key, request.address)
            if entry is None:
                call = JudgeCall(self.name, self._provider.model, prompt.sha256)
                detail = (
                    f"judge.replay={self._config.replay!r} has no call of this "
                    "content: the run has gone another way than the one it repeats"
                )
                return Missing(MissingReason.INFRASTRUCTURE, detail, call)
            return self._verdict(entry, prompt, request, cached=True)
        while True:
            if (entry := self._ledger.answered(key)) is not None:
                return self._verdict(entry, prompt, request, cached=True)
            if (task := self._asking.get(key)) is not None:
                entry = await asyncio.shield(task)
                return self._verdict(entry, prompt, request, cached=True)
            if (cap := self._over_budget(prompt)) is None:
                break
            if not self._asking:
                call = JudgeCall(self.name, self._provider.model, prompt.sha256)
                return Missing(MissingReason.BUDGET, cap, call)
            # What is under way may turn out to cost less than was set aside for it.
            await asyncio.wait(
                self._asking.values(), return_when=asyncio.FIRST_COMPLETED
            )
            await asyncio.sleep(0)
        entry = await asyncio.shield(self._begin(prompt, key, request.address))
        return self._verdict(entry, prompt, request, cached=False)

    def _begin(self, prompt: Prompt, key: str, address: str) -> asyncio.Task[Entry]:
        """A call as a task of its own: what is paid for is written down even if whoever
        asked has gone. Its cost is set aside from now on."""
        guess = self._guess(prompt)
        self._reserve(guess, 1)
        task = asyncio.create_task(self._entry(prompt, key, address))
        self._asking[key] = task

        def end(_: asyncio.Task[Entry]) -> None:
            self._asking.pop(key, None)
            self._reserve(guess, -1)

        task.add_done_callback(end)
        return task

    def meter(self) -> Meter:
        """See `Judge.meter`."""
        spent = self._ledger.spent
        return dataclasses.replace(
            self._meter,
            usd=spent.usd,
            calls=spent.calls,
            down_since=self._breaker.down_since,
        )

    def sync(self) -> None:
        """See `Judge.sync`."""
        self._ledger.sync()

    async def aclose(self) -> None:
        """Gives the calls under way a moment to be answered and written down."""
        under_way = [*self._asking.values()]
        if under_way:
            _, late = await asyncio.wait(under_way, timeout=DRAIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._provider.aclose()

    # -- one call --------------------------------------------------------------

    def _key(self, prompt: Prompt, repeat: int = 0) -> str:
        provider = self._provider
        content = [
            provider.name,
            provider.model,
            dict(provider.settings()),
            prompt.text,
        ]
        content += [repeat] if repeat else []
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    async def _entry(self, prompt: Prompt, key: str, address: str) -> Entry:
        """Asks, and writes the call down."""
        answer, usage, attempts, latency = await self._ask_until_deadline(prompt)
        fault = answer if isinstance(answer, Fault) else None
        entry = Entry(
            key=key,
            address=address,
            provider=self._provider.name,
            model=self._provider.model,
            outcome=fault.reason.value if fault else ANSWERED,
            detail=self._redact(fault.detail) if fault else "",
            answer=None if fault else self._redact(answer.text),
            usage=usage,
            usd=self._price.of(usage) if self._price else 0.0,
            latency_s=latency,
            attempts=attempts,
            time=time.time(),
        )
        self._ledger.append(entry, prompt.text)
        return entry

    async def _ask_until_deadline(
        self, prompt: Prompt
    ) -> tuple[Reply | Fault, Usage, int, float]:
        """The answer or the last fault, all attempts' usage, their number, seconds.

        The deadline counts the attempts and the pauses between them, not the waiting
        for slots, limits and a provider that is down.
        """
        config, used, paid = self._config, 0.0, Usage()
        pause, latency = FIRST_PAUSE_S, 0.0
        nothing = f"no answer within judge.deadline_s={config.deadline_s}"
        last = Fault(MissingReason.TIMEOUT, nothing, down=True)
        for attempt in itertools.count(1):
            if not await self._breaker.passage():
                detail = f"down for judge.outage_s={config.outage_s}: {last.detail}"
                return dataclasses.replace(last, detail=detail), paid, attempt, latency
            await self._requests.take()
            await self._tokens.take(self._guess(prompt).total)
            async with self._slots:
                self._enter(1)
                started = time.monotonic()
                try:
                    async with asyncio.timeout(config.deadline_s - used):
                        answer = await self._hedged(prompt.text)
                except TimeoutError:
                    self._breaker.failed()
                    return last, paid, attempt, latency + config.deadline_s - used
                finally:
                    took = time.monotonic() - started
                    self._enter(-1)
            used, latency, paid = used + took, latency + took, _sum(paid, answer.usage)
            if not isinstance(answer, Fault):
                self._breaker.succeeded()
                self._latencies.append(took)
                return answer, paid, attempt, latency
            if answer.down:
                self._breaker.failed()
            else:
                self._breaker.succeeded()
            if not answer.passing:
                return answer, paid, attempt, latency
            last, wait = answer, answer.retry_after_s
            if wait is None:
                wait = pause * self._jitter.uniform(0.5, 1.0)
            if used + wait >= config.deadline_s:
                return answer, paid, attempt, latency
            await asyncio.sleep(wait)
            used += wait
            pause = min(2 * pause, LONGEST_PAUSE_S)
        raise AssertionError("unreachable")

    async def _hedged(self, text: str) -> Reply | Fault:
        """One attempt; with judge.hedge, one of the slowest is asked a second time."""
        slow = self._slow_after()
        first = asyncio.create_task(self._provider.ask(text))
        calls = [first]
        try:
            done, _ = await asyncio.wait(calls, timeout=slow)
            if not done:
                calls.append(asyncio.create_task(self._provider.ask(text)))
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            answers = [call.result() for call in calls if call.done()]
            good = [answer for answer in answers if isinstance(answer, Reply)]
            if not good and len(answers) < len(calls):  # the other may still come
                await asyncio.wait(calls)
                answers = [call.result() for call in calls]
                good = [answer for answer in answers if isinstance(answer, Reply)]
            return (good or answers)[0]
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    def _slow_after(self) -> float | None:
        """Seconds after which a call belongs to the share `judge.hedge`; None: off."""
        share, known = self._config.hedge, self._latencies
        if not share or len(known) < HEDGE_AFTER:
            return None
        return statistics.quantiles(known, n=100)[round(100 * (1 - share)) - 1]

    def _verdict(
        self, entry: Entry, prompt: Prompt, request: JudgeRequest, *, cached: bool
    ) -> Verdict | Missing:
        call = JudgeCall(
            judge=entry.provider,
            model=entry.model,
            prompt_hash=prompt.sha256,
            tokens_in=0 if cached else entry.usage.prompt,
            tokens_out=0 if cached else entry.usage.answer + entry.usage.thinking,
            cost=0.0 if cached else entry.usd,
            latency_s=0.0 if cached else entry.latency_s,
            attempts=0 if cached else entry.attempts,
            cached=cached,
        )
        if entry.outcome != ANSWERED:
            return Missing(MissingReason(entry.outcome), entry.detail, call)
        read = read_verdict(entry.answer, prompt)
        if isinstance(read, MissingReason):
            return Missing(read, repr(entry.answer[:SHOWN_CHARS]), call)
        correct = read.correct if request.is_last else None
        return Verdict(read.score, read.rationale, call, correct)

    # -- limits ----------------------------------------------------------------

    def _guess(self, prompt: Prompt) -> Usage:
        """Tokens that a call may use, before it is made."""
        read = len(prompt.text) // CHARS_PER_TOKEN + 1
        return Usage(prompt=read, answer=self._config.max_output_tokens)

    def _reserve(self, usage: Usage, sign: int) -> None:
        held = self._reserved
        self._reserved = dataclasses.replace(
            held,
            prompt=held.prompt + sign * usage.prompt,
            answer=held.answer + sign * usage.answer,
        )

    def _over_budget(self, prompt: Prompt) -> str | None:
        """The cap that one more call could break, counting those under way."""
        budget, spent = self._config.budget, self._ledger.spent
        usage = _sum(self._reserved, self._guess(prompt))
        calls = spent.calls + len(self._asking) + 1
        usd = spent.usd + (self._price.of(usage) if self._price else 0.0)
        reached = {
            "calls": (calls, budget.calls),
            "tokens": (spent.tokens + usage.total, budget.tokens),
            "usd": (usd, budget.usd),
        }
        for name, (would_be, cap) in reached.items():
            if cap and would_be > cap:
                return (
                    f"judge.budget.{name}={cap:g} would be passed ({spent.calls} "
                    f"calls, {spent.tokens} tokens, ${spent.usd:.4f} so far); raise it "
                    "and run the same command again to go on"
                )
        return None

    def _enter(self, change: int) -> None:
        meter = self._meter
        meter.in_flight += change
        meter.most_in_flight = max(meter.most_in_flight, meter.in_flight)

    def _redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return text


def _sum(a: Usage, b: Usage) -> Usage:
    names = [field.name for field in dataclasses.fields(Usage)]
    return Usage(**{name: getattr(a, name) + getattr(b, name) for name in names})
