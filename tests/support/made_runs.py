"""Workdirs as a run leaves them: three agents, tools, verdicts, credit.

Everything that an agent, a task or a judge may have written holds an attack on a reader
of the page; `PWNED` is what one that succeeds would set.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from mappa_jax import records, versions
from mappa_jax.testing import make_action
from mappa_jax.types import (
    JudgeCall,
    Message,
    Missing,
    MissingReason,
    Observation,
    Outcome,
    Task,
    Trajectory,
    Verdict,
)

AGENTS = ("solver", "coder", "verifier")
PWNED = "window.pwned"
ATTACK = (
    f"<script>{PWNED} = 1</script><img src=x onerror='{PWNED} = 2'>"
    f"</script><svg onload='{PWNED} = 3'></svg>{{{{SCRIPT}}}}<!--BLOCKS-->"
    f"<a href='javascript:{PWNED} = 4'>click</a><style>body{{display:none}}</style>"
)
FILE_ATTACK = f"\"><img src=x onerror='{PWNED} = 5'>.csv"
CALL = JudgeCall("gemini", "gemini-2.5-flash", "ab12", 900, 80, 0.0004, 1.7)
FILLER = "Adding the tens first and then the units keeps the carry in sight. "


def make_task(number: int, split: str) -> Task:
    a, b = 17 + 3 * number, 25 + 7 * number
    return Task(
        id=f"{split}-{number}",
        prompt=f"State the final answer to this sum: {a} + {b} =",
        answer=str(a + b),
        source="sums",
        metadata={"kind": ("short", "long")[number % 2]},
    )


def make_trajectory(
    task: Task, step: int, sample: int, right: bool, judged: bool, filler: int = 2
) -> Trajectory:
    """Solver, coder, verifier. The coder's program fails in sample 1; where `judged`,
    the coder's verdict is missing for every fifth task."""
    number, answer = int(task.id.rpartition("-")[2]), int(task.answer)
    said = str(answer if right else answer + 1)
    chat = tuple(
        Message(role, text)
        for role, text in (("system", "You are one of a team."), ("user", task.prompt))
    )
    thinking = FILLER * filler
    solver = make_action(
        "solver",
        f"The sum is {said}.",
        messages=chat,
        text=f"<think>{thinking}</think>The sum is {said}.",
    )
    broken = sample == 1
    code = "import pandas\nprint(1 / 0)" if broken else f"print({said})"
    coder = make_action(
        "coder",
        f"```python\n{code}\n```",
        messages=chat,
        code=code,
        observation=Observation(
            stdout="" if broken else said,
            stderr="ZeroDivisionError: division by zero" if broken else "",
            exit_status=1 if broken else 0,
            files=("out.csv", "table.csv"),
            files_before=("table.csv",),
            changed=("table.csv",),
            empty=("out.csv",),
            seconds=0.41,
        ),
    )
    verifier = make_action(
        "verifier", f"I checked it: \\boxed{{{said}}}", messages=chat
    )
    # The judge likes a confident end: of sample 0 it is mistaken where that is wrong.
    last = 9.0 if right or sample == 0 else 2.0
    verdicts = [
        Verdict(7.5 if right else 4.0, "The steps hold.", CALL),
        Verdict(2.0 if broken else 8.0, "It ran." * (not broken) or "It failed.", CALL),
        Verdict(last, "The answer is boxed and agrees with the tool.", CALL, right),
    ]
    if number % 5 == 0:
        verdicts[1] = Missing(MissingReason.TIMEOUT, "no answer in 120 s", CALL)
    if sample == 0:
        verdicts[2] = dataclasses.replace(verdicts[2], correct=None)
    return Trajectory(
        task=task,
        step=step,
        sample=sample,
        actions=(solver, coder, verifier),
        verdicts=tuple(verdicts) if judged else (),
        outcome=Outcome(float(right), said),
    )


def poisoned(trajectory: Trajectory) -> Trajectory:
    """The same with attacks wherever there is text."""
    task = dataclasses.replace(
        trajectory.task,
        id=f"poison{ATTACK}",
        prompt=f"Prompt {ATTACK}",
        answer=ATTACK,
        files={FILE_ATTACK: "/nowhere"},
        metadata={"kind": f"kind{ATTACK}"},
    )
    seen = dataclasses.replace(
        trajectory.actions[1].observation,
        stdout=ATTACK,
        stderr=ATTACK,
        limit=ATTACK,
        files=(FILE_ATTACK,),
    )
    actions = [
        dataclasses.replace(
            action,
            messages=(Message(ATTACK, ATTACK),),
            text=f"<think>{ATTACK}</think>{ATTACK}",
            content=ATTACK,
            code=ATTACK if action.code else None,
            observation=seen if action.observation else None,
        )
        for action in trajectory.actions
    ]
    actions[0] = dataclasses.replace(actions[0], fault=ATTACK)
    call = dataclasses.replace(CALL, judge=ATTACK, model=ATTACK)
    verdicts = (
        Verdict(5.0, ATTACK, call),
        Missing(MissingReason.BLOCKED, ATTACK, call),
        Verdict(5.0, ATTACK, call),
    )
    return dataclasses.replace(
        trajectory,
        task=task,
        actions=tuple(actions),
        verdicts=verdicts,
        outcome=Outcome(0.0, ATTACK, ATTACK, {f"quality{ATTACK}": 0.5}),
        failure=ATTACK,
    )


def credit_of(trajectory: Trajectory) -> dict:
    """A made-up credit: what is scored above 5 is pushed up."""
    rng = np.random.default_rng(trajectory.step * 100 + trajectory.sample)
    actions = []
    for action, verdict in zip(trajectory.actions, trajectory.verdicts, strict=True):
        row = {"agent": action.agent, "turn": action.turn}
        row |= {"tokens": len(action.token_ids)}
        if isinstance(verdict, Missing):
            row["masked"] = "no verdict"
        else:
            ratios = rng.normal(0, 0.2, len(action.token_ids)).round(5)
            row["reward"] = verdict.score / 10
            row["advantage"] = round((verdict.score - 5) / 4, 4)
            row["policy_reference"] = ratios.tolist()
            row["trainer_behaviour"] = None
        actions.append(row)
    task = trajectory.task
    return {
        "source": task.source,
        "task": task.id,
        "sample": trajectory.sample,
        "actions": actions,
    }


def make_metrics(step: int) -> dict:
    row: dict = {"step": step}
    for place, agent in enumerate(AGENTS):
        own = {
            "actions": 12,
            "score": 3 + step * 0.4 + place,
            "kl": 0.01 * step,
            "clip_fraction": 0.02,
            "entropy": 1.2 - 0.05 * step,
            "grad_norm": 0.5,
            "tokens": 240 + 12 * step,
            "programs": 12 * (agent == "coder"),
            "program_errors": 3 * (agent == "coder"),
            "missing": place,
        }
        row |= {f"agents/{agent}/{name}": value for name, value in own.items()}
        row[f"judge/health/{agent}/auc"] = 0.6
    row |= {"team/success": min(0.2 + 0.1 * step, 1.0), "judge/spent": 0.03 * step}
    row |= {f"seconds/{name}": 2.0 + step for name in ("rollout", "update")}
    return row | {"judge/calls": 36, "judge/cost": 0.03, "seconds/iteration": 11.0}


def write_lines(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluation_row(step: int, trajectories, label: str = "team") -> dict:
    scores = [t.outcome.score for t in trajectories]
    avg = float(np.mean(scores))
    found = {"avg": avg, "avg_low": max(avg - 0.2, 0.0), "avg_high": min(avg + 0.2, 1)}
    found |= {"problems": len(scores), "samples": len(scores)}
    return {"step": step, "label": label, "sources": {"sums": found}}


def write_run(
    folder: Path,
    *,
    steps: int = 4,
    tasks: int = 6,
    samples: int = 2,
    problems: int = 12,
    attack: bool = True,
    filler: int = 2,
) -> Path:
    """A run that learns: its evaluation goes from a quarter right to all but one."""
    (folder / "trajectories").mkdir(parents=True)
    for step in range(1, steps + 1):
        made = [
            make_trajectory(
                make_task(number, "train"),
                step,
                sample,
                right=(number + sample + step) % 4 < step,
                judged=True,
                filler=filler,
            )
            for number in range(tasks)
            for sample in range(samples)
        ]
        if attack and step == 1:
            made[-1] = poisoned(made[-1])
        records.write_trajectories(records.training_path(folder, step), made)
        records.write_rows(records.credit_path(folder, step), map(credit_of, made))
    rows = []
    for step in (0, steps):
        made = [
            make_trajectory(
                make_task(n, "test"), step, 0, n % 4 == 0 or 0 < n * step, False
            )
            for n in range(problems)
        ]
        path = records.evaluation_path(folder, step, "sums")
        records.write_trajectories(path, made)
        rows.append(evaluation_row(step, made))
    write_lines(folder / "evaluations.jsonl", rows)
    write_lines(folder / "metrics.jsonl", map(make_metrics, range(1, steps + 1)))
    config = {"steps": steps, "seed": 3, "eval": {"bootstrap": 200, "samples": 1}}
    config |= {"agents": {a: {"model": "random:tiny"} for a in AGENTS}}
    if attack:
        config["note"] = ATTACK
    (folder / "config.json").write_text(json.dumps(config))
    versions.note_start(folder, 0, ATTACK if attack else "cpu", 1, 1)
    return folder
