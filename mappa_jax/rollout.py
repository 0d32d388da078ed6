"""One rollout: the team on every task, each action judged as soon as it exists.

A trajectory's later agents do not wait for the judge of an earlier action; the
verdicts are awaited when all trajectories are done.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from mappa_jax.hosts import Hosts, OneHost, finish, share
from mappa_jax.judges.base import Judge
from mappa_jax.judges.ledger import Ledger
from mappa_jax.sampling.engine import Engine, PromptTooLong
from mappa_jax.sampling.team import Address, EpisodeTeam, Seat
from mappa_jax.timeline import span
from mappa_jax.tools.base import Sandbox
from mappa_jax.types import (
    Action,
    JudgeCall,
    JudgeRequest,
    Missing,
    MissingReason,
    Outcome,
    Role,
    Task,
    ToolFault,
    Trajectory,
    Verdict,
)
from mappa_jax.workflows.base import Brief, Workflow

log = logging.getLogger(__name__)


class Grader(Protocol):
    """Says what the ground truth says of a final text."""

    async def grade(self, task: Task, text: str) -> Outcome | None: ...


@dataclasses.dataclass(frozen=True)
class Stage:
    """Everything that a rollout needs and that outlives it.

    `judge` is None where actions are not scored (evaluation); `duplicates` is the share
    of actions that it scores twice; `ledger` is the judge's; `hosts` share the
    trajectories, and each judges its own.
    """

    workflow: Workflow
    brief: Brief
    seats: dict[str, Seat]
    engine: Engine
    tools: Sandbox
    judge: Judge | None
    grader: Grader
    show_reference: str
    duplicates: float = 0.0
    ledger: Ledger | None = None
    hosts: Hosts = OneHost()


Pending = list[asyncio.Task[Verdict | Missing]]


@dataclasses.dataclass(frozen=True)
class Rolled:
    """A rollout whose verdicts may still be on their way.

    `episodes` are this host's, in the order of the tasks; `numbers` are their places
    among all.
    """

    stage: Stage
    numbers: tuple[int, ...]
    episodes: tuple[tuple[Trajectory, Pending], ...]
    seconds: float

    @property
    def verdicts(self) -> Pending:
        """This host's, one for each action."""
        return [verdict for _, judging in self.episodes for verdict in judging]

    async def close(self, on_verdict: Callable[[], None] = lambda: None) -> Rollout:
        """Waits for the verdicts, and brings all hosts' trajectories to each.

        `on_verdict` is called for each of this host's, also for those already there.

        Collective. What the other hosts' judges were asked enters this host's ledger.

        Raises:
          Stopped, HostLost: as `hosts.Hosts.gather`.
        """
        start = time.perf_counter()
        verdicts = self.verdicts
        for verdict in verdicts:
            verdict.add_done_callback(lambda _: on_verdict())
        await finish(self.stage.hosts, verdicts)
        mine = [await _closed(*episode) for episode in self.episodes]
        numbered = dict(zip(self.numbers, mine, strict=True))
        calls = self.stage.ledger.take_new() if self.stage.ledger else []
        told = await self.stage.hosts.gather((numbered, calls))
        for host, (_, theirs) in enumerate(told):
            if self.stage.ledger and host != self.stage.hosts.index:
                self.stage.ledger.learn(theirs)
        everyone = {n: t for numbered, _ in told for n, t in numbered.items()}
        trajectories = [everyone[n] for n in sorted(everyone)]
        exposed = time.perf_counter() - start
        return Rollout(
            tuple(trajectories),
            self.seconds,
            exposed,
            sum(
                a.observation.seconds
                for t in trajectories
                for a in t.actions
                if a.observation is not None
            ),
        )

    def cancel(self) -> None:
        """Gives the verdicts up."""
        for verdict in self.verdicts:
            verdict.cancel()


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Trajectories in the order of (task, sample), and what the phases took.

    `seconds` is until the last trajectory had ended, `judge_exposed_seconds` how long
    the batch was waited for from when it was closed, `sandbox_seconds` the sum over
    programs.
    """

    trajectories: tuple[Trajectory, ...]
    seconds: float
    judge_exposed_seconds: float
    sandbox_seconds: float


async def rollout(
    stage: Stage,
    tasks: Sequence[Task],
    *,
    samples: int,
    step: int,
    evaluation: bool,
    on_done: Callable[[], None],
) -> Rolled:
    """Runs every task `samples` times, all in flight together; this host its share.

    Args:
      stage: the team and its world; its engine is running.
      tasks: the problems.
      samples: trajectories per task.
      step: the iteration, part of every random address.
      evaluation: draws other randomness than training at the same step.
      on_done: called after each trajectory.
    """
    start = time.perf_counter()
    addresses = _addresses(tasks, samples, step, evaluation)
    # Samples of a task may say the same, and one judge is then asked but once.
    mine = share(addresses, stage.hosts, together=samples)
    judging: list[Pending] = [[] for _ in mine]
    try:
        async with asyncio.TaskGroup() as group:
            runs = [
                group.create_task(_episode(stage, address, on_done, verdicts))
                for (_, address), verdicts in zip(mine, judging, strict=True)
            ]
    except BaseException:
        for verdict in itertools.chain(*judging):
            verdict.cancel()  # nobody will read it, and it may cost
        raise
    episodes = tuple(zip((run.result() for run in runs), judging, strict=True))
    numbers = tuple(number for number, _ in mine)
    return Rolled(stage, numbers, episodes, time.perf_counter() - start)


def _addresses(
    tasks: Sequence[Task], samples: int, step: int, evaluation: bool
) -> list[Address]:
    """One per trajectory; a task that occurs twice goes on counting its samples."""
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    addresses = []
    for task in tasks:
        first = seen[task.source, task.id]
        seen[task.source, task.id] += samples
        numbers = range(first, first + samples)
        addresses += [Address(step, task, n, evaluation) for n in numbers]
    return addresses


async def _episode(
    stage: Stage, address: Address, on_done: Callable[[], None], judging: Pending
) -> Trajectory:
    """One trajectory; its verdicts are added to `judging`."""
    taken: list[Action] = []

    def on_action(index: int, action: Action) -> None:
        before = tuple(taken)
        taken.append(action)
        if stage.judge is not None:
            asked = _judge(stage, address, index, action, before)
            judging.append(asyncio.create_task(asked))

    trajectory = await play(stage, address, on_action)
    on_done()
    return trajectory


async def play(
    stage: Stage, address: Address, on_action: Callable[[int, Action], None]
) -> Trajectory:
    """The team on one task, without verdicts.

    Args:
      stage: the team and its world; its engine is running.
      address: the task, and where its randomness comes from.
      on_action: called with the index and the action when one is recorded.
    """
    task = address.task
    team = EpisodeTeam(stage.seats, stage.engine, address, on_action)
    failure, faulted = None, False
    try:
        await stage.workflow.run(task, team, _Bench(stage), stage.brief)
    except PromptTooLong as e:
        failure = f"prompt too long: {e}"
    except ToolFault as e:
        failure, faulted = f"tool fault: {e}", True
    if failure is not None:
        log.warning("task %s, sample %d: %s", task.id, address.sample, failure)
    # A problem too long to start with is nobody's fault; what the team made too long is
    # an answer that it did not give.
    unblamed = failure is not None and (faulted or not team.actions)
    outcome = None if unblamed else await _outcome(stage, task, team.actions)
    return Trajectory(
        task=task,
        step=-1 if address.evaluation else address.step,
        sample=address.sample,
        actions=tuple(team.actions),
        outcome=outcome,
        failure=failure,
    )


@dataclasses.dataclass(frozen=True)
class _Bench:
    """`workflows.base.Tools`: the sandbox and the grader of a stage."""

    stage: Stage

    def workspace(self, files: Mapping[str, str] = {}, first: Sequence[str] = ()):
        return self.stage.tools.workspace(files, first)

    async def grade(self, task: Task, answer: str | None) -> Outcome | None:
        return await self.stage.grader.grade(task, answer)


async def _outcome(stage, task, actions) -> Outcome | None:
    """None where the grader has no ground truth."""
    if actions and actions[-1].outcome is not None:
        return actions[-1].outcome
    last = stage.workflow.roles[-1].name
    final = actions[-1].content if actions and actions[-1].agent == last else ""
    return await stage.grader.grade(task, final)


async def _judge(
    stage: Stage,
    address: Address,
    index: int,
    action: Action,
    before: tuple[Action, ...],
) -> Verdict | Missing:
    if action.fault is not None:
        call = JudgeCall(judge="none")
        return Missing(MissingReason.INFRASTRUCTURE, action.fault, call)
    request = judge_request(
        address.task,
        action,
        before,
        team=stage.workflow.roles,
        token_limits=stage.brief.token_limits,
        show_reference=stage.show_reference,
    )
    task = address.task
    where = f"{address.step}/{task.source}/{task.id}/{address.sample}/{index}"
    request = dataclasses.replace(request, address=where)
    with span("judge", action.agent, where):
        if not _chosen(where, stage.duplicates):
            return await stage.judge.score(request)
        again = dataclasses.replace(request, repeat=1)
        verdict, second = await asyncio.gather(
            stage.judge.score(request), stage.judge.score(again)
        )
    if isinstance(verdict, Verdict) and isinstance(second, Verdict):
        return dataclasses.replace(verdict, again=second.score)
    return verdict


def _chosen(address: str, share: float) -> bool:
    """Whether an action belongs to the random `share`; the same in every run."""
    digest = hashlib.sha256(address.encode()).digest()
    return int.from_bytes(digest[:4]) < share * 2**32


def judge_request(
    task: Task,
    action: Action,
    before: tuple[Action, ...],
    *,
    team: tuple[Role, ...],
    token_limits: Mapping[str, int],
    show_reference: str,
) -> JudgeRequest:
    """What a judge may see of `action`.

    Args:
      task, action: and `before`, the trajectory's earlier actions.
      team: its roles in the order in which they act.
      token_limits: agent -> new tokens per action.
      show_reference: "never", "last" (the last agent's actions only) or "all".
    """
    role = next(r for r in team if r.name == action.agent)
    shown = show_reference == "all" or (show_reference == "last" and role is team[-1])
    return JudgeRequest(
        team=team,
        role=role,
        task=task.prompt,
        action=action,
        token_limit=token_limits[role.name],
        before=before,
        reference=_reference(task, action) if shown else None,
    )


def _reference(task: Task, action: Action) -> str | None:
    """The reference answer, or the report on what the action has left."""
    return task.answer if action.outcome is None else action.outcome.report


async def _closed(trajectory: Trajectory, judging: Pending) -> Trajectory:
    verdicts = tuple([await pending for pending in judging])
    return dataclasses.replace(trajectory, verdicts=verdicts)


def success(trajectories: Sequence[Trajectory]) -> Mapping[str, float]:
    """Mean outcome, and how many trajectories had none."""
    scores = [t.outcome.score for t in trajectories if t.outcome is not None]
    return {
        "success": sum(scores) / len(scores) if scores else float("nan"),
        "graded": len(scores),
        "failed": sum(t.failure is not None for t in trajectories),
    }
