"""Experiment 1: who is blamed for a fault? A matrix; nothing is trained.

  python benchmarks/experiments/credit.py --out=docs/experiments

Teams in which one scripted agent commits one fault at --rate of its actions and all
else is done right, on sums (MathChat) and on scikit-learn's tables (data science), in
the real sandbox, judged by the offline rubric and graded. Scores and outcomes become
advantages by the product's own code. An agent's blame is the sum of the negative
advantages of its actions; a row is an agent's share of all blame, and of the blame
within the trajectories that have the fault.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mappa_jax.commands import common  # noqa: E402

common.prepare_environment()

from absl import flags  # noqa: E402

_OUT = flags.DEFINE_string("out", None, "Where blame.json, .md and .png go.")
_RATE = flags.DEFINE_float("rate", 0.5, "How often the fault is committed.")
_SUMS = flags.DEFINE_integer("sums", 64, "Problems, four trajectories each.")
_TABLES = flags.DEFINE_integer("tables", 8, "Tables, four trajectories each.")
flags.mark_flags_as_required(["out"])

SAMPLES = 4
SCHEMES = {
    "process": {},
    "outcome to all": {"process_weight": 0.0, "outcome_weight": 1.0},
    "outcome to last": {
        "process_weight": 0.0,
        "outcome_weight": 1.0,
        "outcome_to": "last",
    },
}
ESTIMATORS = ("reinforce_pp", "agent_baseline")
SANDBOX = dict(
    preload=("numpy", "pandas", "joblib", "sklearn.ensemble"),
    wall_seconds=30.0,
    cpu_seconds=20,
    memory_mb=1024,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A team with one fault: whose it is, and what it did."""

    team: str
    fault: str
    culprit: str
    trajectories: tuple[Any, ...]
    faulty: tuple[bool, ...]  # which of them have the fault


def advantages(
    trajectories: Sequence[Any], agents: Sequence[str], scheme: Any, estimator: str
) -> list[list[tuple[int, float]]]:
    """By agent: (trajectory, advantage) of each of its actions, each counted once.

    By `batch.pack` and `update.team_advantages`, with the actions cut to one token:
    advantages are then per action, whatever it is long. Without KL.
    """
    import numpy as np

    from mappa_jax.config import (
        AdvantageConfig,
        AgentConfig,
        Config,
        ObjectiveConfig,
        PackingConfig,
        RewardConfig,
    )
    from mappa_jax.learning import batch as batches
    from mappa_jax.learning.update import team_advantages

    one = np.zeros(1, np.int32)

    def short(index: int, t: Any) -> Any:
        actions = tuple(
            dataclasses.replace(
                a,
                prompt_ids=np.full(1, index, np.int32),  # to know it again
                token_ids=one,
                logprobs=np.zeros(1, np.float32),
            )
            for a in t.actions
        )
        return dataclasses.replace(t, actions=actions)

    short_ones = [short(i, t) for i, t in enumerate(trajectories)]
    most = max(
        sum(a.agent == name for t in short_ones for a in t.actions) for name in agents
    )
    everyone = range(len(agents))
    shape = batches.Shape(
        actions=most,
        action_tokens=1,
        packing=PackingConfig(row_tokens=64, row_action_tokens=64, rows=1),
        groups=(
            batches.GroupShape(tuple(everyone), frozenset(everyone), len(agents), most),
        ),
    )
    packed = batches.pack(
        short_ones,
        list(agents),
        shape,
        reward=RewardConfig(**scheme),
        objective=ObjectiveConfig(),
        actions_per_update=most,
        rng=np.random.default_rng(0),
    )
    config = Config(
        agents=dict.fromkeys(agents, AgentConfig()),
        advantage=AdvantageConfig(estimator=estimator),
    )
    of = packed.actions
    beta = np.zeros(len(agents), np.float32)
    kl = np.zeros_like(of.mask)
    found = np.asarray(
        team_advantages(config, beta, of.reward, kl, of.mask, of.group, of.kind)
    )
    out: list[list[tuple[int, float]]] = [[] for _ in agents]
    (minibatch,) = packed.minibatches
    for slot in minibatch[0].slots:
        where = int(slot.action.prompt_ids[0])
        out[slot.agent].append((where, float(found[slot.agent, slot.number, 0])))
    return out


def blame(case: Case, agents: Sequence[str], scheme: Any, estimator: str) -> dict:
    """Each agent's share of the negative advantage, in all and in faulty trajectories;
    None where there is none."""
    by_agent = advantages(case.trajectories, agents, scheme, estimator)

    def shares(rows: Any) -> dict[str, float] | None:
        sums = {
            name: sum(max(-a, 0.0) for t, a in actions if t in rows)
            for name, actions in zip(agents, by_agent, strict=True)
        }
        total = sum(sums.values())
        return {k: round(v / total, 4) for k, v in sums.items()} if total else None

    faulty = {i for i, has in enumerate(case.faulty) if has}
    return {
        "all": shares(set(range(len(case.trajectories)))),
        "faulty": shares(faulty),
    }


async def math_cases(rate: float, problems: int) -> list[Case]:
    import teams

    from mappa_jax.answers import Grader
    from mappa_jax.config import DataConfig, SandboxConfig
    from mappa_jax.data.sources import load_tasks, parse_sources

    params = {"chain_sum": dict(min_terms=2, max_terms=3, min_digits=1, max_digits=2)}
    data = DataConfig(params=params, train_size=problems, eval_size=1)
    (source,) = parse_sources("reasoning_gym:chain_sum")
    tasks = load_tasks(source, "train", data)
    grader = Grader(workers=1, seconds=5.0)

    async def run(faults: Any) -> tuple[Any, ...]:
        return await teams.play(
            "mathchat",
            tasks,
            teams.math_scripts(faults),
            grader=grader,
            sandbox=SandboxConfig(**SANDBOX),
            samples=SAMPLES,
            max_turns=2,
        )

    cases = []
    try:
        right: dict[bool, Any] = {}
        for trusting in (False, True):
            right[trusting] = await run(teams.MathFaults(trusting=trusting))
        for fault, culprit in teams.MATH_FAULTS.items():
            for trusting in (False, True) if culprit == "solver" else (False,):
                faults = teams.MathFaults(**{fault: rate}, trusting=trusting)
                found = await run(faults)
                name = fault.replace("_", " ") + (", believed" if trusting else "")
                faulty = differ(found, right[trusting], culprit)
                cases.append(Case("MathChat", name, culprit, found, faulty))
                print(f"MathChat, {name}: {sum(faulty)} of {len(found)}", flush=True)
    finally:
        await grader.aclose()
    return cases


async def data_cases(rate: float, tables: int) -> list[Case]:
    import teams

    from mappa_jax.config import DataConfig, SandboxConfig
    from mappa_jax.data.sources import load_tasks, parse_sources
    from mappa_jax.tabular.submission import SubmissionGrader

    (source,) = parse_sources("tabular:sklearn")
    tasks = load_tasks(source, "train", DataConfig())[:tables]

    async def run(fault: str | None) -> tuple[Any, ...]:
        return await teams.play(
            "datascience",
            tasks,
            teams.data_scripts(tasks, fault, rate),
            grader=SubmissionGrader(),
            sandbox=SandboxConfig(**SANDBOX),
            samples=SAMPLES,
        )

    cases, right = [], await run(None)
    for fault, (culprit, _, _) in teams.DATA_FAULTS.items():
        found = await run(fault)
        faulty = differ(found, right, culprit)
        cases.append(Case("data science", fault, culprit, found, faulty))
        print(f"data science, {fault}: {sum(faulty)} of {len(found)}", flush=True)
    return cases


def differ(found: Any, right: Any, culprit: str) -> tuple[bool, ...]:
    """Where an agent's first action is not that of the team without faults."""

    def first(trajectory: Any) -> str:
        return next(a.content for a in trajectory.actions if a.agent == culprit)

    return tuple(first(a) != first(b) for a, b in zip(found, right, strict=True))


def rows_of(cases: Sequence[Case]) -> list[dict[str, Any]]:
    from mappa_jax.workflows import WORKFLOWS

    workflows = {"MathChat": "mathchat", "data science": "datascience"}
    rows = []
    for case in cases:
        agents = [role.name for role in WORKFLOWS[workflows[case.team]].roles]
        outcomes = [t.outcome.score for t in case.trajectories]
        rows.append(
            {
                "team": case.team,
                "fault": case.fault,
                "culprit": case.culprit,
                "agents": agents,
                "trajectories": len(case.trajectories),
                "faulty": sum(case.faulty),
                "success": round(sum(outcomes) / len(outcomes), 4),
                "blame": {
                    f"{scheme}, {estimator}": blame(case, agents, setting, estimator)
                    for scheme, setting in SCHEMES.items()
                    for estimator in ESTIMATORS
                },
            }
        )
    return rows


def markdown(rows: Sequence[Mapping[str, Any]], estimator: str, where: str) -> str:
    """The culprit's share of the blame, by scheme."""
    lines = [
        f"| team | fault (whose) | success | {' | '.join(SCHEMES)} |",
        "|---|---|---|" + "---|" * len(SCHEMES),
    ]
    for row in rows:
        cells = []
        for scheme in SCHEMES:
            shares = row["blame"][f"{scheme}, {estimator}"][where]
            cells.append("-" if shares is None else f"{shares[row['culprit']]:.2f}")
        lines.append(
            f"| {row['team']} | {row['fault']} ({row['culprit']}) | "
            f"{row['success']:.2f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Mapping[str, Any]], estimator: str, out: Path) -> None:
    """Faults by agents, a panel for each scheme; the culprit's cell is framed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, panels = plt.subplots(1, len(SCHEMES), figsize=(12, 6.5), sharey=True)
    for panel, scheme in zip(panels, SCHEMES, strict=True):
        cells = np.full((len(rows), 3), np.nan)
        for i, row in enumerate(rows):
            shares = row["blame"][f"{scheme}, {estimator}"]["all"]
            if shares is not None:
                cells[i] = [shares[name] for name in row["agents"]]
        panel.imshow(cells, cmap="Reds", vmin=0, vmax=1, aspect="auto")
        for i, row in enumerate(rows):
            for j, name in enumerate(row["agents"]):
                empty = np.isnan(cells[i, j])
                said = "-" if empty else f"{cells[i, j]:.2f}"
                dark = not empty and cells[i, j] > 0.6
                panel.text(
                    *(j, i, said),
                    ha="center",
                    va="center",
                    color="white" if dark else "black",
                )
                if name == row["culprit"]:
                    box = plt.Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, fill=False)
                    box.set(edgecolor="tab:blue", linewidth=2.5)
                    panel.add_patch(box)
        panel.set_title(scheme)
        panel.set_xticks(range(3), ["first", "second", "third agent"])
    labels = [f"{row['team']}: {row['fault']}" for row in rows]
    panels[0].set_yticks(range(len(rows)), labels)
    figure.suptitle(
        f"Share of the negative advantage ({estimator}); framed: the agent at fault"
    )
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main(argv: list[str]) -> None:
    common.begin(argv)
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    cases = asyncio.run(math_cases(_RATE.value, _SUMS.value))
    cases += asyncio.run(data_cases(_RATE.value, _TABLES.value))
    rows = rows_of(cases)
    (out / "blame.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = "".join(
        f"{estimator}, {where} trajectories\n\n{markdown(rows, estimator, where)}\n"
        for estimator in ESTIMATORS
        for where in ("all", "faulty")
    )
    (out / "blame.md").write_text(text)
    draw(rows, ESTIMATORS[0], out / "blame.png")
    print(text)


if __name__ == "__main__":
    common.run_app(main)
