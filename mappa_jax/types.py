"""The nouns of the project, and nothing else.

A `Task` goes to a workflow, which runs the team and leaves a `Trajectory` of
`Action`s; a judge gives each action a `Verdict` or says it is `Missing`; credit
and packing turn those into arrays. Everything here is immutable, holds no I/O
and imports nothing of ours, so that every other module may import it.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

FinishReason = Literal["stop", "length"]


class ToolFault(RuntimeError):
    """A tool itself failed: infrastructure, not the agent's doing.

    It masks the action that it touched and never reaches a judge.
    """


class FileTooLarge(ValueError):
    """A file that an agent left is larger than its reader takes."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One problem for the team.

    Attributes:
      id: unique within its data set, stable between runs.
      prompt: the statement shown to the agents.
      answer: the reference answer as text, or None where there is none.
      grader: how an answer is compared: "math" (math-verify), "exact",
        "reasoning_gym:<family>" (the family's own scorer), or "submission" (a file of
        predictions, as the metadata's "submission" says).
      source: the data set it came from (evaluation reports are per source).
      files: input files, name -> path on the host.
      metadata: whatever else the source tells; must be JSON-serialisable.
    """

    id: str
    prompt: str
    answer: str | None = None
    grader: str = "math"
    source: str = ""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The type of task that credit and judge health tell apart: what the metadata
        call "kind" ("regression"), or the source."""
        return str(self.metadata.get("kind", self.source))


@dataclasses.dataclass(frozen=True)
class Message:
    """One chat turn. `role` is "system", "user", "assistant" or "tool"."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Observation:
    """What the world answered to an action: the outcome of running its code.

    Attributes:
      stdout: standard output, possibly shortened by the sandbox's output limit.
      stderr: standard error, likewise.
      exit_status: the process's exit code (negative: killed by that signal).
      limit: the limit that was hit ("wall_time", "cpu_time", "memory",
        "processes", "file_size", "disk", "output"; "supervision": it kept from being
        watched), or None.
      files: names of the files in the work folder afterwards, sorted; what is no
        printable character is escaped.
      files_before: likewise before the run.
      changed: those of both that the run has written to or replaced, sorted.
      empty: those of `files` that hold nothing, sorted.
      seconds: wall time of the run.
    """

    stdout: str = ""
    stderr: str = ""
    exit_status: int = 0
    limit: str | None = None
    files: tuple[str, ...] = ()
    files_before: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.exit_status == 0 and self.limit is None


@dataclasses.dataclass(frozen=True, eq=False)
class Action:
    """One turn of one agent: the tokens it was given and the tokens it sampled.

    Attributes:
      agent: the agent's name.
      turn: 0 for the agent's first action in this trajectory.
      messages: the chat that was rendered into `prompt_ids`.
      prompt_ids: [P] int32, the rendered prompt.
      token_ids: [T] int32, the sampled ids, the stop token included; training
        uses these and never re-tokenises text.
      logprobs: [T] float32, log-probabilities of `token_ids` under the very
        distribution that was sampled from (temperature and filters included).
      finish: "stop" (a stop token or string) or "length" (the limit).
      text: `token_ids` decoded, control tokens removed, thinking included.
      content: what is handed on: `text` without thinking.
      temperature: the sampling temperature (the trainer divides logits by it).
      code: the program that was extracted from `content`, if any.
      observation: what running `code` gave, or None.
      fault: an infrastructure failure that touched this action (sandbox dead):
        it masks the action and is never the agent's doing. None when all is well.
      outcome: what the ground truth says of the answer that the action has left, where
        that is not simply its text (a file); no agent sees it.
    """

    agent: str
    turn: int
    messages: tuple[Message, ...]
    prompt_ids: np.ndarray
    token_ids: np.ndarray
    logprobs: np.ndarray
    finish: FinishReason
    text: str
    content: str
    temperature: float = 1.0
    code: str | None = None
    observation: Observation | None = None
    fault: str | None = None
    outcome: Outcome | None = None


class MissingReason(enum.Enum):
    """Why there is no score."""

    TIMEOUT = "timeout"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    AUTH = "auth"
    BLOCKED = "blocked"
    TRUNCATED = "truncated"
    UNPARSABLE = "unparsable"
    OUT_OF_RANGE = "out_of_range"
    BUDGET = "budget"
    INFRASTRUCTURE = "infrastructure"
    CONTROL = "control"


@dataclasses.dataclass(frozen=True)
class JudgeCall:
    """Where a verdict came from and what it cost.

    `cost` is in US dollars, `latency_s` in seconds, `attempts` how often it was asked;
    `prompt_hash` is the SHA-256 of what the judge was shown ("" for a judge that reads
    no prompt). A `cached` call was paid for before: it cost nothing here.
    """

    judge: str
    model: str = ""
    prompt_hash: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    latency_s: float = 0.0
    attempts: int = 1
    cached: bool = False


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A score in 0..10 with its rationale.

    `correct` is the judge's opinion of the final answer, where it was asked;
    `disagreement` the range of the members' scores, where several judged; `again` the
    score of a second call of the same content, where one was made.
    """

    score: float
    rationale: str
    call: JudgeCall
    correct: bool | None = None
    disagreement: float | None = None
    again: float | None = None

    def __post_init__(self):
        if not 0.0 <= self.score <= 10.0:  # also refuses NaN
            raise ValueError(f"a verdict's score must be in 0..10, got {self.score}")


@dataclasses.dataclass(frozen=True)
class Missing:
    """No verdict, and why. Never a number: the action it belongs to is masked."""

    reason: MissingReason
    detail: str
    call: JudgeCall


@dataclasses.dataclass(frozen=True)
class Role:
    """One seat of a team, as a judge and a reader of a report need to know it.

    Attributes:
      name: the agent's name in the config ("solver").
      title: how prompts call it ("problem solver").
      duty: one sentence: what it owes the team.
      max_turns: how often it may act in one trajectory.
      uses_tool: whether its code is run.
      makes: names of the files that it owes the team.
    """

    name: str
    title: str
    duty: str
    max_turns: int = 1
    uses_tool: bool = False
    makes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class JudgeRequest:
    """All that a judge may see of one action.

    Attributes:
      team: the roles in the order in which they act.
      role: the acting agent's role (one of `team`).
      task: the problem statement.
      action: the action, its observation included.
      token_limit: the agent's limit of new tokens.
      before: the trajectory's earlier actions, in order.
      reference: the reference answer, only where the config shows it.
      address: where in the run the action stands ("step/source/task/sample/index");
        a judge files its call there and shows it to nobody.
      repeat: asks for another opinion of the same content: what was answered to a
        lower number is not reused.
    """

    team: tuple[Role, ...]
    role: Role
    task: str
    action: Action
    token_limit: int
    before: tuple[Action, ...] = ()
    reference: str | None = None
    address: str = ""
    repeat: int = 0

    @property
    def is_last(self) -> bool:
        return self.role.name == self.team[-1].name


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the ground truth says of the final answer.

    `score` is in 0..1 (1: right, or a valid submission), `answer` what was extracted
    from the text. `report` says in plain lines how good it is, and `quality` in finite
    numbers by name, where there is more to say than right or wrong.
    """

    score: float
    answer: str | None = None
    report: str = ""
    quality: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """One run of the team on one task.

    Attributes:
      task: the task.
      step: training iteration (or -1 for evaluation).
      sample: which of the task's samples this is.
      actions: in the order in which they were taken.
      verdicts: one per action, in the same order; empty before judging.
      outcome: None where the task has no ground truth, or where the run has ended
        early for a reason that the team did not cause.
      failure: why the run ended early ("prompt too long: ..."), or None.
    """

    task: Task
    step: int
    sample: int
    actions: tuple[Action, ...]
    verdicts: tuple[Verdict | Missing, ...] = ()
    outcome: Outcome | None = None
    failure: str | None = None
