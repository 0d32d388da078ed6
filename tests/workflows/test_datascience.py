"""The data-science team with scripted agents: who sees what, and when turns end."""

import pytest

from mappa_jax.config import AgentConfig, Config, WorkflowConfig
from mappa_jax.testing import ScriptedTeam, ScriptedTools
from mappa_jax.text import cut_middle
from mappa_jax.types import Observation, Task, ToolFault
from mappa_jax.workflows import datascience as ds
from mappa_jax.workflows.base import brief, seated

TASK = Task("t", "Predict y.", files={"train.csv": "/d/train.csv"}, grader="submission")
CODE = "```python\nwork()\n```"
DONE = CODE + "\nDONE"
ENGINEERED = ("X_test.pkl", "X_train.pkl", "y_train.pkl")
MODELLED = ("X_test.pkl", "X_train.pkl", "model.pkl", "y_train.pkl")
FINISHED = (*MODELLED, "submission.csv")


def make_brief(turns=4, **workflow):
    agent = AgentConfig(max_new_tokens=99, max_turns=turns)
    agents = dict.fromkeys(("engineer", "modeller", "analyst", "single"), agent)
    return brief(Config(agents=agents, workflow=WorkflowConfig(**workflow)), cut_middle)


def saw(*files):
    return Observation("fine\n", files=files)


async def play(*outcomes, tell=None, run=ds.datascience, left=b"id,y\n", **lines):
    said = {"engineer": [DONE], "modeller": [DONE], "analyst": [DONE]} | lines
    team, tools = ScriptedTeam(**said), ScriptedTools(*outcomes)
    tools.files = {"submission.csv": left} if left else {}
    await run(TASK, team, tools, tell or make_brief())
    return team, tools


def words(messages):
    return "\n".join(m.content for m in messages)


def agents(team):
    return [(a.agent, a.turn) for a in team.actions]


ALL_WELL = (saw(*ENGINEERED), saw(*MODELLED), saw(*FINISHED))


async def test_each_does_its_part_in_one_turn():
    team, tools = await play(*ALL_WELL)
    assert agents(team) == [("engineer", 0), ("modeller", 0), ("analyst", 0)]
    assert tools.workspaces == 1 and tools.programs == ["work()"] * 3


async def test_everyone_sees_the_task_and_all_files_that_are_there():
    team, _ = await play(*ALL_WELL)
    assert "Files: train.csv\n" in words(team.seen_by("engineer")) + "\n"
    assert f"Files: {', '.join(sorted((*ENGINEERED, 'train.csv')))}" in words(
        team.seen_by("modeller")
    )
    seen = words(team.seen_by("analyst"))
    assert "Predict y." in seen and "model.pkl" in seen
    assert "4 turns of 99 tokens" in seen


async def test_an_agent_sees_the_last_action_and_output_of_the_one_before():
    team, _ = await play(*ALL_WELL, engineer=["```python\nprepare()\n```\nDONE"])
    assert "prepare()" in words(team.seen_by("modeller"))
    assert "Output of its code:\nfine" in words(team.seen_by("modeller"))
    assert "prepare()" not in words(team.seen_by("analyst"))


async def test_a_turn_goes_on_until_the_files_are_there():
    first = saw("X_train.pkl")
    team, _ = await play(first, *ALL_WELL, engineer=[DONE, DONE])
    assert agents(team)[:2] == [("engineer", 0), ("engineer", 1)]
    assert "Still missing: y_train.pkl, X_test.pkl." in words(
        team.seen_by("engineer", 1)
    )


async def test_and_until_the_agent_says_so():
    team, _ = await play(
        *ALL_WELL, engineer=[CODE, "Now I am done.\nDONE"], modeller=[DONE]
    )
    assert agents(team)[:3] == [("engineer", 0), ("engineer", 1), ("modeller", 0)]
    assert "write DONE" in words(team.seen_by("engineer", 1))


async def test_without_a_program_nothing_runs_and_it_is_told():
    team, tools = await play(*ALL_WELL, engineer=["I shall begin.", DONE])
    assert team.actions[0].observation is None
    assert "nothing was run" in words(team.seen_by("engineer", 1))
    assert len(tools.programs) == 3


async def test_the_number_of_turns_is_a_limit():
    outcomes = [saw()] * 6
    talk = {name: [DONE] * 2 for name in ("engineer", "modeller", "analyst")}
    team, _ = await play(*outcomes, tell=make_brief(turns=2), left=b"", **talk)
    assert [a.turn for a in team.actions] == [0, 1] * 3


async def test_only_the_last_agents_files_are_graded_after_each_of_its_turns():
    team, _ = await play(
        ALL_WELL[0], ALL_WELL[1], saw(*MODELLED), ALL_WELL[2], analyst=[CODE, DONE]
    )
    assert [a.outcome is None for a in team.actions] == [True, True, False, False]
    assert team.actions[-1].outcome.report == "got 'id,y\\n'"


async def test_without_a_submission_the_answer_is_empty():
    team, _ = await play(*ALL_WELL, left=None)
    assert team.actions[-1].outcome.score == 0.0


async def test_a_submission_that_is_too_large_is_no_success(monkeypatch):
    monkeypatch.setattr(ds, "MAX_SUBMISSION_BYTES", 3)
    team, _ = await play(*ALL_WELL)
    assert team.actions[-1].outcome.score == 0.0
    assert "more than 3 bytes" in team.actions[-1].outcome.report


async def test_a_fault_of_the_sandbox_ends_the_episode_and_is_on_record():
    team, tools = ScriptedTeam(engineer=[DONE]), ScriptedTools(ToolFault("gone"))
    with pytest.raises(ToolFault):
        await ds.datascience(TASK, team, tools, make_brief())
    assert [a.fault for a in team.actions] == ["gone"]


async def test_one_agent_alone_does_all_of_it():
    team, _ = await play(
        saw("submission.csv"), run=ds.datascience_single, single=[DONE]
    )
    assert agents(team) == [("single", 0)]
    assert team.actions[0].outcome.score == 1.0
    assert "works alone" in words(team.seen_by("single"))


async def test_a_team_that_knows_its_part_is_told_nothing():
    told, _ = await play(*ALL_WELL)
    untold, _ = await play(*ALL_WELL, tell=make_brief(instructions=False))
    for name in ("engineer", "modeller", "analyst"):
        assert untold.seen_by(name) == told.seen_by(name)[1:]


async def test_a_worked_example_is_shown_if_asked_for():
    team, _ = await play(*ALL_WELL, tell=make_brief(example=True))
    for name, made in (("engineer", "y_train"), ("modeller", "joblib.dump")):
        assert made in team.seen_by(name)[2].content
    assert [m.role for m in team.seen_by("analyst")] == [
        *("system", "user", "assistant", "user")
    ]


@pytest.mark.parametrize(
    "content, done",
    [
        ("DONE", True),
        ("It is there.\n**DONE**\n", True),
        ("```python\nx\n```\nDONE.", True),
        ("```python\nDONE\n```", False),
        ("```python\nDONE", False),
        ("I am not DONE yet", False),
        ("done", False),
    ],
)
def test_what_counts_as_done(content, done):
    assert ds.says_done(content) == done


def test_roles_have_the_turns_that_the_config_gives_them():
    agents = {r.name: AgentConfig(max_turns=2) for r in ds.ROLES}
    roles = seated(ds.DATASCIENCE, Config(agents=agents)).roles
    assert [role.max_turns for role in roles] == [2, 2, 2]
