"""Teams that follow scripts, with faults at known rates, in the real loop.

`play` runs them through the real workflow, sandbox, judge and grader; only the models
are replaced. An agent's script gets the chat's text, its turn and random numbers of its
own (of the seed, the task, the sample, the agent and the turn), so that teams that
differ in one fault do the rest alike.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from mappa_jax.config import AgentConfig, Config, SandboxConfig
from mappa_jax.judges.rubric import RubricJudge
from mappa_jax.rollout import Grader, Stage, rollout
from mappa_jax.sampling.team import Seat
from mappa_jax.tabular.submission import SubmissionSpec
from mappa_jax.testing import CharTokenizer
from mappa_jax.text import cut_middle
from mappa_jax.tools import make_sandbox
from mappa_jax.types import Task, Trajectory
from mappa_jax.workflows import WORKFLOWS
from mappa_jax.workflows.base import brief, seated

Script = Callable[[str, int, np.random.Generator], str]


class ChatEngine:
    """Says what the scripts say, in place of a model (`sampling.engine.Engine`)."""

    def __init__(self, scripts: Sequence[Script], seed: int):
        self._scripts = scripts
        self._seed = seed

    async def generate(
        self, agent, prompt, options, address, conversation=None, *, last=False
    ):
        chat = "".join(map(chr, prompt))
        said = self._scripts[agent](chat, address[4], rng_at(self._seed, *address))
        tokens = np.asarray([ord(c) for c in said], np.int32)
        return SimpleNamespace(
            token_ids=tokens, logprobs=np.zeros(len(tokens)), finish="stop"
        )

    def conversation(self):
        return _Conversation()


class _Conversation:
    def __enter__(self) -> _Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def rng_at(*address: int) -> np.random.Generator:
    return np.random.default_rng([part & 0xFFFFFFFF for part in address])


async def play(
    workflow: str,
    tasks: Sequence[Task],
    scripts: Mapping[str, Script],
    *,
    grader: Grader,
    sandbox: SandboxConfig,
    samples: int = 1,
    seed: int = 0,
    max_turns: int = 1,
    config: Config | None = None,
) -> tuple[Trajectory, ...]:
    """Trajectories of a scripted team, judged by the offline rubric and graded.

    Args:
      workflow: its name in `WORKFLOWS`.
      tasks: the problems.
      scripts: by agent.
      grader: of the tasks' answers.
      sandbox: its walls.
      samples: trajectories of each task.
      seed: of the scripts' random numbers.
      max_turns: of agents that use the tool, at most.
      config: whose prompts the agents are shown; by default with long limits.
    """
    roles = WORKFLOWS[workflow].roles
    if config is None:
        agents = {
            role.name: AgentConfig(
                max_new_tokens=4000, max_turns=min(role.max_turns, max_turns)
            )
            for role in roles
        }
        config = Config(agents=agents)
    tools = make_sandbox(sandbox)
    seats = {
        name: Seat(name, i, agent, CharTokenizer())
        for i, (name, agent) in enumerate(config.agents.items())
    }
    stage = Stage(
        workflow=seated(WORKFLOWS[workflow], config),
        brief=brief(config, lambda text, limit: cut_middle(text, limit)),
        seats=seats,
        engine=ChatEngine([scripts[name] for name in seats], seed),
        tools=tools,
        judge=RubricJudge(),
        grader=grader,
        show_reference="last",
    )
    try:
        rolling = await rollout(
            stage,
            tasks,
            samples=samples,
            step=1,
            evaluation=False,
            on_done=lambda: None,
        )
        return (await rolling.close()).trajectories
    finally:
        await tools.aclose()


# -- MathChat over reasoning-gym's sums and products ----------------------------------

PROBLEM = re.compile(
    r"arithmetic problem: ([-+ \d]+?) =|multiplication: ([ *\d]+?)\. Give"
)
NUMBER = re.compile(r"-?\d+")


@dataclasses.dataclass(frozen=True)
class Sum:
    """A problem: signed numbers that are added up, or (`times`) multiplied."""

    numbers: tuple[int, ...]
    times: bool = False

    def and_then(self, total: int, number: int) -> int:
        return total * number if self.times else total + number

    @property
    def value(self) -> int:
        first, *others = self.numbers
        return functools.reduce(self.and_then, others, first)

    def step(self, total: int, number: int) -> str:
        """What is computed next, as it is written."""
        sign = "*" if self.times else "-" if number < 0 else "+"
        return f"{total} {sign} {number if self.times else abs(number)}"

    def expression(self) -> str:
        first, *others = self.numbers
        parts = (self.step(0, number).removeprefix("0") for number in others)
        return f"{first}{''.join(parts)}"

    def with_error(self, at: int, off: int) -> Sum:
        numbers = list(self.numbers)
        numbers[at] += off
        return dataclasses.replace(self, numbers=tuple(numbers))


@dataclasses.dataclass(frozen=True)
class MathFaults:
    """How often an agent does what it should not, each in 0..1.

    Attributes:
      wrong_sum: the solver: a step's result is off, and what follows from it.
      wrong_number: the executor: its program has one of the numbers wrong.
      crash: its program fails.
      no_code: it writes none, and hands on a guess.
      miscopy: the verifier: it copies the answer wrong.
      no_box: it forgets the box.
      trusting: the executor computes nothing and prints what the solver said.
    """

    wrong_sum: float = 0.0
    wrong_number: float = 0.0
    crash: float = 0.0
    no_code: float = 0.0
    miscopy: float = 0.0
    no_box: float = 0.0
    trusting: bool = False


MATH_FAULTS = {
    "wrong_sum": "solver",
    "wrong_number": "coder",
    "crash": "coder",
    "no_code": "coder",
    "miscopy": "verifier",
    "no_box": "verifier",
}


def math_scripts(faults: MathFaults) -> dict[str, Script]:
    """The team that makes these faults and no others."""

    def solver(chat: str, turn: int, rng: np.random.Generator) -> str:
        problem = _problem(chat)
        total, *others = problem.numbers
        wrong = rng.random() < faults.wrong_sum
        at, off = int(rng.integers(len(others))), _off(rng)
        lines = []
        for i, number in enumerate(others):
            new = problem.and_then(total, number) + (off if wrong and i == at else 0)
            lines.append(f"{problem.step(total, number)} = {new}")
            total = new
        return "\n".join([*lines, f"The answer is {total}."])

    def coder(chat: str, turn: int, rng: np.random.Generator) -> str:
        if turn:
            printed = _shown(chat)
            return "The code failed." if printed is None else f"It printed {printed}."
        problem = _problem(chat)
        guess = problem.value + _off(rng)
        if rng.random() < faults.no_code:
            return f"I think it is {guess}."
        if rng.random() < faults.wrong_number:
            at = int(rng.integers(len(problem.numbers)))
            problem = problem.with_error(at, _off(rng))
        program = f"print({problem.expression()})"
        if faults.trusting:
            program = f"print({NUMBER.findall(chat)[-1]})"
        if rng.random() < faults.crash:
            program = program.replace("print(", "print(total, ")
        return f"```python\n{program}\n```"

    def verifier(chat: str, turn: int, rng: np.random.Generator) -> str:
        printed = _shown(chat)
        if printed is None:
            handed = chat.rpartition("Code executor:")[2]
            found = NUMBER.findall(handed.partition("Output of its code:")[0])
            printed = found[0] if found else "0"
        if rng.random() < faults.miscopy:
            printed = str(int(printed) + _off(rng))
        said = f"The code printed {printed}."
        if rng.random() < faults.no_box:
            return said
        return f"{said}\n\\boxed{{{printed}}}"

    return {"solver": solver, "coder": coder, "verifier": verifier}


def _problem(chat: str) -> Sum:
    """The last problem in a chat."""
    added, multiplied = PROBLEM.findall(chat)[-1]
    if multiplied:
        return Sum(tuple(map(int, multiplied.split("*"))), times=True)
    parts = added.replace(" ", "").replace("-", "+-").split("+")
    return Sum(tuple(int(part) for part in parts if part))


def _off(rng: np.random.Generator) -> int:
    """How far a wrong number is from the right one, 1 to 9 either way."""
    return int(rng.integers(1, 10)) * (1 if rng.random() < 0.5 else -1)


def _shown(chat: str) -> str | None:
    """The number that a chat ends with, the output of a program that ran."""
    found = re.search(r"(?:^|[^\d.])(-?\d+)\s*$", chat)
    return found[1] if found and "exit status" not in chat[-24:] else None


# -- the data-science team over scikit-learn's tables -------------------------------

ENGINEER = """
import pandas as pd
train, test = pd.read_csv("train.csv"), pd.read_csv("test.csv")
both = pd.get_dummies(pd.concat([train.drop(columns={targets}), test]))
both = both.drop(columns="id").fillna(both.median(numeric_only=True))
both[: len(train)].to_pickle("X_train.pkl")
train[{targets}].to_pickle("y_train.pkl")
both[len(train) :].to_pickle("X_test.pkl")
print(both.shape)
"""
MODELLER = """
import joblib, pandas as pd
from sklearn.ensemble import {forest}
X, y = pd.read_pickle("X_train.pkl"), pd.read_pickle("y_train.pkl")
joblib.dump({forest}(n_estimators=20, random_state=0).fit(X, y.squeeze()), "model.pkl")
print(X.shape)
"""
ANALYST = """
import joblib, pandas as pd
model, X = joblib.load("model.pkl"), pd.read_pickle("X_test.pkl")
out = pd.DataFrame(model.predict(X), columns={targets})
out.insert(0, "id", pd.read_csv("test.csv")["id"])
out.to_csv("submission.csv", index=False)
print(out.head(2))
"""
FORESTS = {
    "classification": "RandomForestClassifier",
    "regression": "RandomForestRegressor",
}
# fault -> (agent, what of its program is replaced, by what)
DATA_FAULTS = {
    "forgets X_test": (
        "engineer",
        'both[len(train) :].to_pickle("X_test.pkl")',
        "pass",
    ),
    "engineer crashes": ("engineer", "pd.concat(", "pd.concatenate("),
    "forgets model": ("modeller", "joblib.dump(", "print("),
    "modeller crashes": ("modeller", "y.squeeze()", "y['label']"),
    "forgets submission": ("analyst", 'out.to_csv("submission.csv", index=False)', ""),
    "analyst crashes": ("analyst", '"id", pd.read_csv', '"id", read_csv'),
}


def data_scripts(
    tasks: Sequence[Task], fault: str | None, rate: float
) -> dict[str, Script]:
    """The team that commits `fault` at `rate` and does the rest right.

    A script knows its task by the statement in the chat.
    """

    def script(agent: str, program: str) -> Script:
        def say(chat: str, turn: int, rng: np.random.Generator) -> str:
            task = next(t for t in tasks if t.prompt in chat)
            targets = list(
                SubmissionSpec.from_dict(task.metadata["submission"]).targets
            )
            code = program.format(targets=targets, forest=FORESTS[task.kind])
            if fault is not None and DATA_FAULTS[fault][0] == agent:
                _, there, instead = DATA_FAULTS[fault]
                if rng.random() < rate:
                    code = code.replace(there, instead)
            return f"```python\n{textwrap.dedent(code).strip()}\n```\nDONE"

        return say

    programs = {"engineer": ENGINEER, "modeller": MODELLER, "analyst": ANALYST}
    return {agent: script(agent, program) for agent, program in programs.items()}


def as_numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """Rounded, for a JSON file that a person may read."""
    return {key: round(float(value), 4) for key, value in found.items()}
