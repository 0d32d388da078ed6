"""The training loop: tasks, rollout, verdicts, credit, update, and again.

One iteration, in the order of the code below:

1. the data stream gives the step's tasks;
2. the team works on them, each action being judged as soon as it exists;
3. the trajectories with their verdicts are written down, whole;
4. they are packed into arrays, and scores become advantages, which are written down;
5. one compiled update per mini-batch trains every agent on its own actions;
6. numbers are written, the state is saved, held-out problems are tried.

Everything that can be refused is refused before the first iteration.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from mappa_jax import records, timeline
from mappa_jax.checkpoints import Checkpoints
from mappa_jax.config import Config, ConfigError, parse_bias
from mappa_jax.data import Data
from mappa_jax.drift import anchor_drift
from mappa_jax.evaluate import evaluate
from mappa_jax.forecast import forecast, spent_since
from mappa_jax.hosts import Hosts, OneHost, Stopped, finish
from mappa_jax.judges import health
from mappa_jax.judges.base import BudgetReached, Meter, TooManyMissing
from mappa_jax.judges.controls import controlled
from mappa_jax.judges.registry import asks_a_model, is_free
from mappa_jax.learning import batch as batches
from mappa_jax.learning.batch import Packed
from mappa_jax.learning.recorded import credit_rows
from mappa_jax.learning.update import Learner, TeamState
from mappa_jax.loggers import shown
from mappa_jax.metrics import MetricWriter, flatten, truncate_from
from mappa_jax.rollout import Rolled, Rollout, Stage, rollout, success
from mappa_jax.sampling.engine import Load, Stats
from mappa_jax.timeline import span
from mappa_jax.types import Missing, MissingReason, Trajectory, Verdict
from mappa_jax.waiting import to_its_end

TIMELINE = "timeline.json"


class Progress(Protocol):
    """What the loop tells a person while it runs.

    `start` returns what is to be called for each of the `total` parts that is done; a
    rollout that is not done goes on beside the phases that start after it.
    """

    def start(self, step: int, phase: str, total: int) -> Callable[[], None]: ...
    def note(self, text: str) -> None: ...
    def watch(self, meter: Callable[[], Meter], load: Callable[[], Load]) -> None: ...
    def finish(self, step: int, metrics: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The parts of a run, made by the launch script."""

    config: Config
    workdir: Path
    data: Data
    stage: Stage
    eval_stage: Stage
    learner: Learner
    frozen: Any
    checkpoints: Checkpoints
    writer: MetricWriter | None  # of host 0
    progress: Progress
    hosts: Hosts = OneHost()
    publish: Callable[[], None] = lambda: None  # copies a remote workdir's files out
    profile: range = range(0)  # the iterations that are traced into WORKDIR/profile

    @property
    def writes(self) -> bool:
        """Whether this host writes the run's files."""
        return self.hosts.index == 0


async def train(run: Run, state: TeamState, start: int) -> TeamState:
    """Runs iterations start + 1 to config.steps; the last state is saved on return.

    Cancelling the task, or an error, abandons the iteration under way: the state after
    the last whole one is saved before the exception goes on. An evaluation that was
    abandoned is made when the run goes on. On several hosts that is so where all stop
    at the same point; where one is lost the others end with what was saved before.

    Raises:
      Stopped, HostLost: on several hosts, see hosts.py.
      TooManyMissing: too large a share of a batch has no verdict; the state before
        that batch is saved.
      CheckpointError: the state could not be saved; earlier steps are whole.
    """
    config, done, metrics = run.config, start, {}
    agents = list(config.agents)
    # Evaluations of weights that are gone would stand there twice.
    owed = owes_evaluation(config, run.workdir, start)
    await run.hosts.gather(None)  # all have read what host 0 is about to change
    if run.writes:
        truncate_from(run.workdir / "evaluations.jsonl", start + 1 if start else 0)
    run.progress.watch(run.stage.judge.meter, run.stage.engine.load)
    read = run.stage.judge.meter()
    saved = run.checkpoints.latest() or 0
    batch: _Batch | None = None
    ahead: asyncio.Task[_Batch] | None = None  # the next batch
    profiling = contextlib.ExitStack()
    try:
        if owed:
            await _evaluate(run, state, start)
        if start < config.steps:
            await _forecast(run, state, start)
        for step in range(start + 1, config.steps + 1):
            if step in run.profile and step - 1 in (start, run.profile[0] - 1):
                profiling.enter_context(_profiled(run))
            began = time.perf_counter()
            batch = await (ahead or _rolling(run, state, step))
            ahead = None
            if config.staleness and step < config.steps:
                ahead = _rolling(run, state, step + 1)
                if not run.stage.engine.beside:
                    await ahead
            state, metrics, learned_from = await _learn(run, state, batch)
            done = step  # whatever is cancelled from here on, the state is this one
            before, read = read, run.stage.judge.meter()
            metrics["judge"] |= _spending(config, before, read)
            try:
                if ahead is not None:
                    await ahead  # the sampler is free
                metrics["seconds"]["iteration"] = time.perf_counter() - began
                if _evaluates(config, step):
                    metrics["eval"] = await _evaluate(run, state, step)
            finally:
                if run.writer is not None:
                    run.writer.write(step, metrics, shown(learned_from, agents))
            await asyncio.to_thread(run.publish)
            run.progress.finish(step, metrics)
            if _saves(config, step):
                _save(run, state, step, metrics)
                saved = step
            if step + 1 not in run.profile:
                profiling.close()
    except BaseException as e:
        if together(run.hosts, e):
            if done > saved:
                _save(run, state, done, metrics)
            run.checkpoints.wait()
        raise
    finally:
        profiling.close()
        if batch is not None:
            batch.rolling.cancel()
        if ahead is not None:
            await _abandon(ahead)
    run.checkpoints.wait()
    return state


@contextlib.contextmanager
def _profiled(run: Run) -> Iterator[None]:
    """Traces the devices (XProf) and what the host waited for (timeline.json)."""
    folder = run.workdir / "profile"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"timeline.host{run.hosts.index}.json" if run.hosts.index else TIMELINE
    with timeline.record() as spans, jax.profiler.trace(str(folder)):
        try:
            yield
        finally:
            spans.write(folder / name)


def together(hosts: Hosts, error: BaseException) -> bool:
    """Whether all hosts end here with `error`: saving takes them all."""
    if hosts.count == 1 or isinstance(error, (Stopped, TooManyMissing)):
        return True
    if isinstance(error, BaseExceptionGroup):
        return any(together(hosts, one) for one in error.exceptions)
    return False


def _evaluates(config: Config, step: int) -> bool:
    """Whether the team is tried on held-out problems after `step` iterations."""
    if step == 0:
        return config.eval.at_start
    due = bool(config.eval.every) and step % config.eval.every == 0
    return due or (config.eval.at_end and step == config.steps)


def owes_evaluation(config: Config, workdir: Path, step: int) -> bool:
    """Whether an evaluation after `step` iterations is due and was not finished.

    Raises:
      RecordError: evaluations.jsonl is damaged.
    """
    if not _evaluates(config, step):
        return False
    if step == 0:
        return True
    rows = records.read_evaluations(workdir)
    return not any(row["step"] == step and row["label"] == "team" for row in rows)


def _saves(config: Config, step: int) -> bool:
    best = config.checkpoint.best_metric.startswith("eval/")
    return (
        step % config.checkpoint.every == 0
        or step == config.steps
        or (best and _evaluates(config, step))
    )


async def _forecast(run: Run, state: TeamState, start: int) -> None:
    config = run.config
    if (
        not config.judge.forecast
        or is_free(config.judge.provider)
        or config.judge.replay
    ):
        return
    run.progress.start(start, "forecast", 1)
    weights = (state.trainable, run.frozen)
    expected = await forecast(run.stage, config, run.data, weights, start)
    if expected is not None:
        run.progress.note(str(expected))


def check_best(config: Config, data: Data) -> None:
    """Refuses a checkpoint.best_metric that no iteration will have.

    Raises:
      ConfigError: with those that there are.
    """
    best = config.checkpoint.best_metric
    if not best:
        return
    known = [f"agents/{a}/score" for a in config.agents] + ["team/success"]
    if config.eval.every or config.eval.at_end:
        known += [f"eval/{s}/{m}" for s in data.eval for m in ("avg", "pass")]
    if best not in known:
        raise ConfigError(
            f"config.checkpoint.best_metric: no iteration will have {best!r}; choose "
            f"one of {', '.join(known)} (eval/... needs eval.every or eval.at_end)"
        )


def check_bias(config: Config, data: Data) -> None:
    """Refuses a judge.control.bias of what there is not.

    Raises:
      ConfigError: with the agents and kinds of task that there are.
    """
    known = {*config.agents, *(task.kind for task in data.train.tasks)}
    for name in parse_bias(config.judge.control.bias):
        if name not in known:
            raise ConfigError(
                f"config.judge.control.bias: {name!r} is neither an agent nor a kind "
                f"of training task: {', '.join(sorted(known))}"
            )


def _save(run: Run, state: TeamState, step: int, metrics: dict[str, Any]) -> None:
    extra = {"data": run.data.train.state(step), "seed": run.config.seed}
    known = {k: v for k, v in flatten(metrics).items() if math.isfinite(v)}
    with span("train", "save"):
        run.stage.judge.sync()  # what the state rests on is on the disk before it
        run.publish()
        run.checkpoints.save(step, state, extra, known)


@dataclasses.dataclass(frozen=True)
class _Batch:
    """A step's trajectories, their verdicts still coming in."""

    step: int
    rolling: Rolled
    sampled: Stats


def _rolling(run: Run, state: TeamState, step: int) -> asyncio.Task[_Batch]:
    """The team on a step's tasks. If the engine samples beside updates, `state` may be
    donated as soon as this returns."""
    engine = run.stage.engine
    serving = engine.running(state.trainable, run.frozen, donated=engine.beside)
    return asyncio.create_task(_roll(run, serving, step))


async def _abandon(ahead: asyncio.Task[_Batch]) -> None:
    """Ends a rollout; of one that has ended, gives the verdicts up."""
    ahead.cancel()
    await asyncio.wait([ahead])
    if not ahead.cancelled() and ahead.exception() is None:
        ahead.result().rolling.cancel()


async def _roll(
    run: Run, serving: contextlib.AbstractAsyncContextManager[Any], step: int
) -> _Batch:
    config = run.config
    tasks = run.data.train.batch(step - 1)
    total = len(tasks) * config.data.samples_per_prompt
    advance = run.progress.start(step, "rollout", -(-total // run.hosts.count))
    run.stage.engine.take_stats()  # those of an evaluation are not this iteration's
    start = time.perf_counter()
    with span("train", "rollout"):
        async with serving:
            rolling = await rollout(
                run.stage,
                tasks,
                samples=config.data.samples_per_prompt,
                step=step,
                evaluation=False,
                on_done=advance,
            )
    # On several hosts until the last of all has ended.
    rolling = dataclasses.replace(rolling, seconds=time.perf_counter() - start)
    return _Batch(step, rolling, run.stage.engine.take_stats())


async def _learn(
    run: Run, state: TeamState, batch: _Batch
) -> tuple[TeamState, dict[str, Any], tuple[Trajectory, ...]]:
    """The update on a batch; `state` is consumed only once the batch is complete.

    Returns the new state, the metrics and the trajectories as they were learned from.
    """
    config, step, sampled = run.config, batch.step, batch.sampled
    seconds: dict[str, float] = {}
    verdicts = len(batch.rolling.verdicts)
    advance = run.progress.start(step, "judge", max(verdicts, 1))
    with span("train", "verdicts"):
        judged = await batch.rolling.close(advance)
    trajectories = controlled(judged.trajectories, config.judge.control, config.seed)
    rolled = dataclasses.replace(judged, trajectories=trajectories)
    if run.writes:
        with span("train", "write"):
            path = records.training_path(run.workdir, step)
            records.credit_path(run.workdir, step).unlink(missing_ok=True)
            records.write_trajectories(path, trajectories)
    run.stage.judge.sync()
    _check_missing(config, rolled)
    drift = await _drift(run, judged, step)

    def credit() -> Packed:
        with _timed(seconds, "credit"):
            with span("train", "pack"):
                packed = batches.pack(
                    trajectories,
                    list(config.agents),
                    run.learner.shape,
                    reward=config.reward,
                    objective=config.objective,
                    actions_per_update=config.optimizer.actions_per_update,
                    debias=config.judge.debias,
                    rng=np.random.default_rng((config.seed, step)),
                )
            packed = run.learner.assign_credit(state, run.frozen, packed)
        if run.writes:
            with span("train", "write"):
                rows = credit_rows(trajectories, packed, run.learner)
                records.write_rows(records.credit_path(run.workdir, step), rows)
        return packed

    def update(packed: Packed, advance: Callable[[], None]):
        with _timed(seconds, "update"):
            return run.learner.update(state, run.frozen, packed, advance)

    run.progress.start(step, "credit", 1)
    packed = await to_its_end(_in_thread(credit))
    await asyncio.sleep(0)  # the last moment at which a cancelled step is undone
    advance = run.progress.start(step, "update", run.learner.steps(packed))
    updating = _in_thread(update, packed, advance)
    try:
        await to_its_end(updating)
    except asyncio.CancelledError:
        asyncio.current_task().cancel()  # when the step has been told of
    state, learned = updating.result()
    seconds |= {
        "rollout": rolled.seconds,
        "prefill": sampled.prefill_seconds,
        "decode": sampled.decode_seconds,
        "sandbox": rolled.sandbox_seconds,
        "judge_exposed": rolled.judge_exposed_seconds,
    }
    metrics = _metrics(config, rolled, packed.counts, learned, seconds, sampled)
    metrics["judge"] |= drift
    return state, metrics, trajectories


def _in_thread(work: Callable[..., Any], *args: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(asyncio.to_thread(work, *args))


async def _drift(run: Run, rolled: Rollout, step: int) -> dict[str, float]:
    """`anchor_drift`, which host 0 asks for."""

    async def ask() -> dict[str, float] | BudgetReached:
        judge = run.config.judge
        try:
            return await anchor_drift(run.stage, run.workdir, judge, rolled, step)
        except BudgetReached as e:  # all hosts end with it
            return e

    asking = [asyncio.create_task(ask())] if run.writes else []
    await finish(run.hosts, asking)
    found = (await run.hosts.gather([a.result() for a in asking]))[0][0]
    if isinstance(found, BudgetReached):
        raise found
    return found


def _spending(config: Config, before: Meter, now: Meter) -> dict[str, Any]:
    """What the judge's account says: `calls`, `tokens` and `cost` since the iteration
    before, whatever they were for (second opinions, members, anchors)."""
    found = {"in_flight": now.most_in_flight, "spent": now.usd}
    if not asks_a_model(config.judge.provider):  # it keeps no account
        return found
    since = spent_since(before, now)
    return found | {"calls": since.calls, "tokens": since.tokens, "cost": since.usd}


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    with span("train", name):
        yield
    seconds[name] = time.perf_counter() - start


def _check_missing(config: Config, rolled: Rollout) -> None:
    verdicts = [v for t in rolled.trajectories for v in t.verdicts]
    missing = [v for v in verdicts if isinstance(v, Missing)]
    over = next((m for m in missing if m.reason is MissingReason.BUDGET), None)
    if over is not None:
        raise BudgetReached(over.detail)
    share = len(missing) / max(len(verdicts), 1)
    if share > config.judge.max_missing:
        reasons = sorted({f"{m.reason.value}: {m.detail}" for m in missing})
        raise TooManyMissing(
            f"{len(missing)} of {len(verdicts)} actions have no verdict "
            f"({share:.0%}; judge.max_missing={config.judge.max_missing:.0%}): "
            + "; ".join(reasons[:3])
        )


def _metrics(config, rolled, counts, learned, seconds, sampled) -> dict[str, Any]:
    agents = {
        name: counts[name] | {k: float(v[i]) for k, v in learned.items()}
        for i, name in enumerate(config.agents)
    }
    verdicts = [v for t in rolled.trajectories for v in t.verdicts]
    return {
        "agents": agents,
        "team": dict(success(rolled.trajectories)),
        "judge": judging(verdicts) | {"health": _health(rolled)},
        "seconds": seconds,
        "tokens": {
            "prompt": sampled.prompt_tokens,
            "prefilled": sampled.prefilled_tokens,
            "new": sampled.new_tokens,
            "places": sampled.row_steps,
        },
    }


def _health(rolled: Rollout) -> dict[str, Any]:
    scored = health.scored_actions(rolled.trajectories)
    return health.figures(health.health(scored))


def judging(verdicts: Sequence[Verdict | Missing]) -> dict[str, Any]:
    """What a batch's verdicts cost, how long they took (seconds) and why some lack.

    `calls` are those that had to be asked; `cached` were on record.
    """
    asked = [v.call for v in verdicts if not v.call.cached]
    seconds = [call.latency_s for call in asked] or [0.0]
    reasons = collections.Counter(
        v.reason.value for v in verdicts if isinstance(v, Missing)
    )
    apart = [v.disagreement for v in verdicts if isinstance(v, Verdict)]
    apart = [value for value in apart if value is not None]
    return {
        "calls": len(asked),
        "cached": len(verdicts) - len(asked),
        "retries": sum(max(call.attempts - 1, 0) for call in asked),
        "missing": sum(reasons.values()),
        "missing_by": dict(reasons),
        "cost": sum(call.cost for call in asked),
        "tokens": sum(call.tokens_in + call.tokens_out for call in asked),
        "latency_p50": float(np.quantile(seconds, 0.5)),
        "latency_p95": float(np.quantile(seconds, 0.95)),
    } | ({"disagreement": float(np.mean(apart))} if apart else {})


async def _evaluate(run: Run, state: TeamState, step: int) -> dict[str, Any]:
    total = sum(map(len, run.data.eval.values())) * run.config.eval.samples
    advance = run.progress.start(step, "evaluate", -(-total // run.hosts.count))
    with span("train", "evaluate"):
        return await evaluate(
            run.eval_stage,
            (state.trainable, run.frozen),
            run.data.eval,
            run.config.eval,
            seed=run.config.seed,
            step=step,
            workdir=run.workdir if run.writes else None,
            on_done=advance,
        )
