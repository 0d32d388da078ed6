"""The data-science team from its config to its evaluation, with random tiny weights."""

import dataclasses
import json

import pytest
from rich.console import Console

from mappa_jax.config import (
    AgentConfig,
    Config,
    MeshConfig,
    SamplerConfig,
    WorkflowConfig,
)
from mappa_jax.evaluate import single_agent
from mappa_jax.records import evaluation_path, read_trajectories

AGENTS = ("engineer", "modeller", "analyst")
SMALLER = {
    "steps": 1,
    "data.source": "tabular:generated",
    "data.train_size": 6,
    "data.eval_size": 2,
    "data.prompts_per_step": 2,
    "data.samples_per_prompt": 2,
    "workflow.example": False,
    "sampler.slots": 4,
    "sampler.prompt_buckets": (4096,),
    "sampler.context": 4224,
    "packing.row_tokens": 4224,
    "packing.row_action_tokens": 64,
    "eval.bootstrap": 20,
    **{f"agents.{name}.model": "random:tiny" for name in AGENTS},
    **{f"agents.{name}.max_new_tokens": 16 for name in AGENTS},
}


@pytest.mark.slow
def test_the_team_is_trained_and_evaluated_to_the_end(launch, cache, tmp_path):
    settings = SMALLER | {"data.cache_dir": tmp_path / "tables"}
    done = launch(
        "train.py",
        "--config=configs/datascience.py:cpu",
        f"--workdir={tmp_path / 'run'}",
        f"--cache_dir={cache}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "run" / "trajectories").glob("step_*.jsonl")
    trained = read_trajectories(path)
    assert len(trained) == 4
    for trajectory in trained:
        assert [a.agent for a in trajectory.actions if a.turn == 0] == [*AGENTS]
        assert trajectory.outcome.score == 0.0  # random bytes are no submission
        assert {"train.csv", "test.csv"} < set(trajectory.task.files)

    done = launch(
        "evaluate.py", f"--workdir={tmp_path / 'run'}", f"--cache_dir={cache}"
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
    told = {line["label"]: line["sources"] for line in map(json.loads, lines)}
    assert [*told] == ["team", "trained", "untrained", "single", "blind"]
    for sources in told.values():
        (found,) = sources.values()
        assert found["avg"] == 0.0 and found["kinds"]
        for numbers in found["kinds"].values():
            assert numbers["success"]["value"] == 0.0
            # A failed run counts as one of two classes, or half of the range.
            fair = {"fair_accuracy": 0.5, "fair_f1": 0.0, "fair_rmse_percent": 50.0}
            seen = {n: v["value"] for n, v in numbers.items() if n in fair}
            assert seen and all(fair[name] == value for name, value in seen.items())
    for title in ("classification", "regression"):
        assert (title in done.stdout) == any(
            title in s for s in map(str, told.values())
        )
    blind = read_trajectories(evaluation_path(tmp_path / "run", 1, "blind_generated"))
    assert all(not t.task.files for t in blind)
    assert all("Files: none" in t.actions[0].messages[-1].content for t in blind)


def test_success_and_quality_are_printed_by_kind():
    from mappa_jax.commands import tables as printing

    def estimate(value):
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    kinds = {
        "classification": {"problems": 3, "success": estimate(0.5)},
        "regression": {
            "problems": 2,
            "success": estimate(0.75),
            "fair_rmse_percent": estimate(14.6),
        },
    }
    row = {"avg": 0.6, "avg_low": 0.5, "avg_high": 0.7, "problems": 5, "failed": 0}
    console = Console(width=120, record=True, quiet=False)
    with console.capture() as caught:
        printing.print_evaluations(console, {"trained": {"s": row | {"kinds": kinds}}})
    said = caught.get()
    assert "s: classification" in said and "0.5 [0.4, 0.6]" in said
    assert "s: regression" in said and "14.6 [14.5, 14.7]" in said
    assert "fair_rmse_percent" in said


def test_without_kinds_no_table_is_printed():
    from mappa_jax.commands import tables as printing

    row = {"avg": 0.6, "avg_low": 0.5, "avg_high": 0.7, "problems": 5, "failed": 0}
    console = Console(width=120)
    with console.capture() as caught:
        printing.print_evaluations(console, {"trained": {"s": row}})
    assert caught.get().count("95% intervals") == 1


def test_blind_needs_tasks_with_files(launch, cache, trained):
    done = launch(
        "evaluate.py", f"--workdir={trained}", f"--cache_dir={cache}", "--who=blind"
    )
    assert done.returncode == 2 and "--who=blind" in done.stderr


def test_the_single_agent_has_the_turns_of_the_team():
    agent = AgentConfig(max_turns=3)
    config = Config(
        agents=dict.fromkeys(AGENTS, agent), workflow=WorkflowConfig("datascience")
    )
    alone = single_agent(config)
    assert alone.workflow.name == "datascience_single"
    assert {n: a.max_turns for n, a in alone.agents.items()} == {"single": 9}
    assert alone.sampler == config.sampler


def test_a_single_agent_is_not_divided_over_the_mesh():
    config = Config(
        agents=dict.fromkeys(AGENTS, AgentConfig()),
        workflow=WorkflowConfig("datascience"),
    )
    for sizes, want in (((3, 2), (1, 6)), ((3, -1), (1, -1)), ((-1, 2), (1, -1))):
        divided = dataclasses.replace(config, mesh=MeshConfig(*sizes))
        alone = single_agent(divided)
        assert (alone.mesh.agent, alone.mesh.data) == want


def test_a_single_agent_has_the_slots_of_all_slices_of_the_mesh():
    """Else they may not divide over the devices that its rows get."""
    config = Config(
        agents=dict.fromkeys(AGENTS, AgentConfig()),
        workflow=WorkflowConfig("datascience"),
        sampler=SamplerConfig(slots=4, widths=(2,)),
    )
    for agent in (2, -1):  # of eight devices, the other axes have four
        divided = dataclasses.replace(config, mesh=MeshConfig(agent, 2, 2, 1))
        sampler = single_agent(divided).sampler
        assert (sampler.slots, sampler.widths) == (8, (4,))
