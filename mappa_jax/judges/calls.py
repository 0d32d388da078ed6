"""The judge that asks a model: everything between a request and its verdict.

The life of a call: render the prompt; look into the ledger, where the same content may
have been answered; check the budget; wait for one of `concurrency` slots, then for the
circuit breaker, for a pause that the server asked for and for the rate limits, so that
what was waited for is used at once; ask, and ask again after a pause without the slot,
as long as the fault is one that passes and the deadline allows; write the call down;
read the verdict strictly. Every way in which this fails has its own `MissingReason`,
and none becomes a number.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import json
import random
import statistics
import time
from collections.abc import Mapping, Sequence

from mappa_jax.config import JudgeConfig
from mappa_jax.judges.account import Account
from mappa_jax.judges.base import JudgeError, Meter
from mappa_jax.judges.ledger import ANSWERED, Entry, Ledger, Spent
from mappa_jax.judges.limits import CircuitBreaker, TokenBucket
from mappa_jax.judges.prices import Price
from mappa_jax.judges.prompts import CHARS_PER_TOKEN, Form, Prompt, probe, render
from mappa_jax.judges.provider import SHOWN_CHARS, Fault, Provider, Reply, Usage
from mappa_jax.judges.schema import read_verdict
from mappa_jax.types import JudgeCall, JudgeRequest, Missing, MissingReason, Verdict

# Pauses between attempts: exponential from the first to the longest, with jitter.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
# Faults of the endpoint in a row after which it counts as down, and the pause between
# trials from then on.
DOWN_AFTER, TRIAL_PAUSE_S = 8, 5.0
HEDGE_AFTER = 20  # latencies that must be known before the slowest can be told
DRAIN_S = 10.0  # requests under way are given so long to end when the judge closes


@dataclasses.dataclass
class _Call:
    """A call under way and what it has taken so far.

    Attributes:
      prompt, key, address: what is asked, and where in the run.
      usage: tokens of all attempts; a guess for requests that were abandoned.
      attempts: how many began.
      asked_s: seconds that they took.
      used_s: of the deadline: the same, and the pauses between them.
      at_provider: requests that are there now.
      fault: the last one, if any.
      task: who makes it.
    """

    prompt: Prompt
    key: str
    address: str
    usage: Usage = Usage()
    attempts: int = 0
    asked_s: float = 0.0
    used_s: float = 0.0
    at_provider: int = 0
    fault: Fault | None = None
    task: asyncio.Task[Entry] | None = None


class CallingJudge:
    """See `Judge`.

    Args:
      provider: whom to ask.
      config: limits, deadline, budget.
      ledger: what was asked before; new calls are appended. One that is read-only is
        replayed: nobody is asked.
      account: of the ledger, shared with other judges that append to it.
      price: of the model; None where it is unknown.
      templates: by role.
      secrets: never to be written anywhere.

    Raises:
      JudgeError: a budget in money needs a price.
    """

    def __init__(
        self,
        provider: Provider,
        config: JudgeConfig,
        ledger: Ledger,
        account: Account,
        price: Price | None,
        templates: Mapping[str, str],
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
        self._form: Form = provider.forms[0]
        self._config = config
        self._ledger = ledger
        self._account = account
        self._price = price
        self._templates = templates
        self._secrets = [secret for secret in secrets if secret]
        at_once = provider.at_once or config.concurrency
        self._slots = asyncio.Semaphore(min(at_once, config.concurrency))
        self._requests = TokenBucket(config.rpm)
        self._tokens = TokenBucket(config.tpm)
        self._not_before = 0.0  # of time.monotonic(): the server asked for a pause
        self._breaker = CircuitBreaker(DOWN_AFTER, TRIAL_PAUSE_S, config.outage_s)
        self._jitter = random.Random(0)  # its draws reach no result
        self._asking: dict[str, _Call] = {}
        self._latencies: collections.deque[float] = collections.deque(maxlen=200)
        self._closing = False

    # -- the protocol ----------------------------------------------------------

    async def check(self) -> None:
        """One short call, as the calls of the run will be; none where its answer is on
        record. It settles the form in which verdicts are asked for.

        Raises:
          JudgeError: the key, the model, the quota or the endpoint will not do.
        """
        known = next(filter(self._known, self._provider.forms), None)
        self._form = known or self._form
        if self._config.replay:
            return
        await self._provider.open()
        if known:
            return
        said = []
        for form in self._provider.forms:
            prompt = probe(form)
            if self._account.over(self._cost(prompt)):
                return  # said by the first verdict; replies on record still serve
            call = self._begin(prompt, "")
            entry = await asyncio.shield(call.task)
            reason, detail = self._reading(entry, prompt)
            if not reason:
                self._form = form
                return
            said.append(f"{reason}: {detail}")
            refused = call.fault.refused if call.fault else False
            if not refused and reason != MissingReason.UNPARSABLE.value:
                break
        raise JudgeError(
            f"the judge {self.name} ({self._provider.model}) does not answer a first "
            "call: " + "; nor with judge.form='fenced': ".join(said)
        )

    def _known(self, form: Form) -> bool:
        """Whether a first call of this form was answered well, here or in the run that
        is replayed."""
        prompt = probe(form)
        entry = self._ledger.answered(self._key(prompt))
        return entry is not None and not self._reading(entry, prompt)[0]

    def _reading(self, entry: Entry, prompt: Prompt) -> tuple[str, str]:
        """What is wrong with the answer to a probe; ("", "") where nothing is."""
        if entry.outcome != ANSWERED:
            return entry.outcome, entry.detail
        read = read_verdict(entry.answer, prompt)
        if not isinstance(read, MissingReason):
            return "", ""
        detail = f"it said {entry.answer[:SHOWN_CHARS]!r}"
        if self._config.provider == "openai" and self._config.form == "schema":
            detail += " (judge.form='fenced' asks without a schema)"
        return read.value, detail

    async def score(self, request: JudgeRequest) -> Verdict | Missing:
        """See `Judge.score`."""
        prompt = render(request, self._config, self._form, self._templates)
        key, address = self._key(prompt, request.repeat), request.address
        if self._config.replay:
            return self._replayed(prompt, key, request)
        cost = self._cost(prompt)
        while True:
            if (entry := self._ledger.answered(key)) is not None:
                self._share(entry, address, prompt)
                return self._verdict(entry, prompt, request, cached=True)
            if (call := self._asking.get(key)) is not None:
                entry = await asyncio.shield(call.task)
                self._share(entry, address, prompt)
                return self._verdict(entry, prompt, request, cached=True)
            if (cap := self._account.over(cost)) is None:
                break
            if self._account.idle:
                call = JudgeCall(self.name, self._provider.model, prompt.sha256)
                return Missing(MissingReason.BUDGET, cap, call)
            await self._account.released()
        call = self._begin(prompt, address, request.repeat)
        entry = await asyncio.shield(call.task)
        return self._verdict(entry, prompt, request, cached=False)

    def _replayed(
        self, prompt: Prompt, key: str, request: JudgeRequest
    ) -> Verdict | Missing:
        entry = self._ledger.at(key, request.address)
        if entry is None:
            raise JudgeError(
                f"judge.replay={self._config.replay!r} has no call of what is asked at "
                f"{request.address!r}: the run has gone another way, or further, than "
                "the one it repeats; use the config, the prompts and the steps of that "
                "run"
            )
        return self._verdict(entry, prompt, request, cached=True)

    def _share(self, entry: Entry, address: str, prompt: Prompt) -> None:
        """Files at `address` what it got of another address's call, where a replay
        would not find it there."""
        filed = self._ledger.at(entry.key, address)
        told = [(e.outcome, e.answer, e.detail) for e in (filed, entry) if e]
        if len(set(told)) > 1 or filed is None:
            mine = dataclasses.replace(
                entry,
                address=address,
                usage=Usage(),
                usd=0.0,
                latency_s=0.0,
                attempts=0,
                time=time.time(),
            )
            self._ledger.append(mine, prompt.text)

    def _begin(self, prompt: Prompt, address: str, repeat: int = 0) -> _Call:
        """A call as a task of its own: what is paid for is written down even if whoever
        asked has gone. Its cost is set aside from now on."""
        cost = self._cost(prompt)
        self._account.hold(cost)
        call = _Call(prompt, self._key(prompt, repeat), address)
        call.task = asyncio.create_task(self._entry(call))
        self._asking[call.key] = call

        def end(_: asyncio.Task[Entry]) -> None:
            self._asking.pop(call.key, None)
            self._account.release(cost)

        call.task.add_done_callback(end)
        return call

    def meter(self) -> Meter:
        """See `Judge.meter`."""
        down_since = self._breaker.down_since
        return dataclasses.replace(self._account.meter(), down_since=down_since)

    def sync(self) -> None:
        """See `Judge.sync`."""
        self._ledger.sync()

    async def aclose(self) -> None:
        """Gives up what has not been asked; what has been is given a moment to be
        answered, and written down in any case."""
        self._closing = True
        calls = [*self._asking.values()]
        for call in calls:
            if not call.at_provider:
                call.task.cancel()
        if tasks := [call.task for call in calls]:
            _, late = await asyncio.wait(tasks, timeout=DRAIN_S)
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
            dict(provider.settings(prompt.form)),
            prompt.text,
        ]
        content += [repeat] if repeat else []
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    async def _entry(self, call: _Call) -> Entry:
        """Asks, and writes the call down."""
        try:
            answer = await self._ask_until_deadline(call)
        except asyncio.CancelledError:
            if call.attempts:  # it may have cost something
                stopped = "given up when the run stopped"
                self._write(call, Fault(MissingReason.INFRASTRUCTURE, stopped))
            raise
        return self._write(call, answer)

    def _write(self, call: _Call, answer: Reply | Fault) -> Entry:
        fault = call.fault = answer if isinstance(answer, Fault) else None
        entry = Entry(
            key=call.key,
            address=call.address,
            provider=self._provider.name,
            model=self._provider.model,
            outcome=fault.reason.value if fault else ANSWERED,
            detail=self._redact(fault.detail) if fault else "",
            answer=None if fault else self._redact(answer.text),
            usage=call.usage,
            usd=self._price.of(call.usage) if self._price else 0.0,
            latency_s=call.asked_s,
            attempts=call.attempts,
            time=time.time(),
        )
        self._ledger.append(entry, call.prompt.text)
        return entry

    async def _ask_until_deadline(self, call: _Call) -> Reply | Fault:
        """The answer, or the last fault.

        The deadline counts the attempts and the pauses between them, not the waiting
        for slots, limits and a provider that is down.
        """
        config, pause = self._config, FIRST_PAUSE_S
        last: Fault | None = None
        while True:
            answer = await self._attempt(call)
            if answer is None:  # the provider is down, and was waited for
                reason = last.reason if last else MissingReason.INFRASTRUCTURE
                cause = f": {last.detail}" if last else ""
                return Fault(
                    reason, f"down for judge.outage_s={config.outage_s}{cause}"
                )
            if isinstance(answer, Fault) and answer.reason is MissingReason.TIMEOUT:
                return last or answer
            if isinstance(answer, Reply) or not answer.passing or self._closing:
                return answer
            last = answer
            wait = pause * self._jitter.uniform(0.5, 1.0)
            if answer.retry_after_s is not None:
                wait = max(wait, answer.retry_after_s)
                self._hold_all(answer.retry_after_s)
            if call.used_s + wait >= config.deadline_s:
                return answer
            await asyncio.sleep(wait)
            call.used_s += wait
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _attempt(self, call: _Call) -> Reply | Fault | None:
        """One attempt in a slot of its own; None: the provider is given up."""
        async with self._slots:
            if not await self._breaker.passage():
                return None
            await self._pace(call.prompt)
            call.attempts += 1
            started = time.monotonic()
            try:
                async with asyncio.timeout(self._config.deadline_s - call.used_s):
                    answer = await self._hedged(call)
            except TimeoutError:
                detail = f"no answer within judge.deadline_s={self._config.deadline_s}"
                answer = Fault(MissingReason.TIMEOUT, detail, down=True)
            finally:
                took = time.monotonic() - started
                call.asked_s += took
                call.used_s += took
        if isinstance(answer, Reply):
            self._latencies.append(took)
        if isinstance(answer, Fault) and answer.down:
            self._breaker.failed()
        else:
            self._breaker.succeeded()
        return answer

    async def _hedged(self, call: _Call) -> Reply | Fault:
        """One attempt; with judge.hedge, one of the slowest is asked a second time."""
        asking = [asyncio.create_task(self._ask(call))]
        cost = self._cost(call.prompt)
        try:
            done, _ = await asyncio.wait(asking, timeout=self._slow_after())
            if not done and not self._account.over(cost):
                asking.append(asyncio.create_task(self._ask_again(call, cost)))
            while True:
                done, left = await asyncio.wait(
                    [task for task in asking if not task.done()] or asking,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                answers = [task.result() for task in asking if task.done()]
                good = [answer for answer in answers if isinstance(answer, Reply)]
                if good or not left:
                    return (good or answers)[0]
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask_again(self, call: _Call, cost: Spent) -> Reply | Fault:
        """The second request of a slow call: it takes a slot, a place within the rates
        and a share of the budget like any other."""
        self._account.hold(cost)
        try:
            async with self._slots:
                await self._pace(call.prompt)
                return await self._ask(call)
        finally:
            self._account.release(cost)

    async def _ask(self, call: _Call) -> Reply | Fault:
        """One request. One that is abandoned may have to be paid for all the same, and
        is charged a guess of what was read."""
        taken, used = self._taken(call.prompt), self._guess(call.prompt).prompt
        call.at_provider += 1
        self._account.flight(1)
        try:
            answer = await self._provider.ask(call.prompt)
        except asyncio.CancelledError:
            call.usage += Usage(prompt=used)
            raise
        else:
            call.usage += answer.usage
            used = answer.usage.total or used
            return answer
        finally:
            call.at_provider -= 1
            self._account.flight(-1)
            self._tokens.give_back(taken - used)

    def _slow_after(self) -> float | None:
        """Seconds after which a call belongs to the share `judge.hedge`; None: off."""
        share, known = self._config.hedge, self._latencies
        if not share or len(known) < HEDGE_AFTER:
            return None
        cuts = statistics.quantiles(known, n=100)
        return cuts[min(round(100 * (1 - share)), len(cuts)) - 1]

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

    async def _pace(self, prompt: Prompt) -> None:
        """Returns when the rates and the server allow a request at once."""
        taken = self._taken(prompt)
        while True:
            while (wait := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            await self._requests.take()
            await self._tokens.take(taken)
            if time.monotonic() >= self._not_before:
                return
            self._requests.give_back(1)
            self._tokens.give_back(taken)

    def _hold_all(self, seconds: float) -> None:
        """Nobody asks before the server wants to be asked again."""
        until = time.monotonic() + min(seconds, self._config.outage_s)
        self._not_before = max(self._not_before, until)

    def _guess(self, prompt: Prompt) -> Usage:
        """Tokens that a call may use, before it is made."""
        read = len(prompt.text) // CHARS_PER_TOKEN + 1
        return Usage(prompt=read, answer=self._config.max_output_tokens)

    def _taken(self, prompt: Prompt) -> float:
        """What a request takes of the tokens a minute until its reply says better."""
        return min(self._guess(prompt).total, self._tokens.room)

    def _cost(self, prompt: Prompt) -> Spent:
        """What a call may cost, before it is made."""
        guess = self._guess(prompt)
        usd = self._price.of(guess) if self._price else 0.0
        return Spent(usd=usd, tokens=guess.total, calls=1)

    def _redact(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "[secret]")
        return text
