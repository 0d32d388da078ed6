"""MathChat with a scripted team: who sees what, and who acts when."""

import dataclasses

import pytest

from mappa_jax.config import AgentConfig, Config, WorkflowConfig
from mappa_jax.testing import ScriptedTeam, ScriptedTools
from mappa_jax.text import cut_middle
from mappa_jax.types import Observation, Task, ToolFault
from mappa_jax.workflows import WORKFLOWS
from mappa_jax.workflows.base import brief
from mappa_jax.workflows.mathchat import mathchat, render_observation

TASK = Task("t", "What is 2 + 3?")
CODE = "```python\nprint(2 + 3)\n```"
AGENTS = {
    "solver": AgentConfig(max_new_tokens=111),
    "coder": AgentConfig(max_new_tokens=222, max_turns=2),
    "verifier": AgentConfig(max_new_tokens=233),
}


def make_brief(**workflow):
    config = Config(agents=AGENTS, workflow=WorkflowConfig(**workflow))
    return brief(config, cut_middle)  # a token is a character here


def words(messages):
    return "\n".join(m.content for m in messages)


async def play(coder, *outcomes, solver="solved: 5", tell=None, verifier="so 5"):
    """Runs the team; returns it with the tools."""
    team = ScriptedTeam(solver=[solver], coder=coder, verifier=[verifier])
    tools = ScriptedTools(*outcomes)
    await mathchat(TASK, team, tools, tell or make_brief())
    return team, tools


async def test_everyone_sees_the_problem_and_its_own_limit():
    team, _ = await play([CODE, "it printed 5"], Observation("5\n"))
    for name, limit in (("solver", 111), ("coder", 222), ("verifier", 233)):
        seen = words(team.seen_by(name))
        assert TASK.prompt in seen
        assert f"under {limit} tokens" in seen
        assert "Only the verifier's answer counts" in seen


async def test_the_coder_sees_the_solver_and_the_verifier_sees_the_coder():
    team, _ = await play([CODE, "it printed 5"], Observation("5\n"))
    assert "solved: 5" in words(team.seen_by("coder"))
    seen = words(team.seen_by("verifier"))
    assert "it printed 5" in seen
    assert "Output of its code:\n5" in seen
    assert "solved: 5" not in seen
    assert CODE not in seen  # the last action only


async def test_the_coder_acts_again_after_its_code_has_run():
    team, tools = await play([CODE, "it printed 5"], Observation("5\n"))
    assert [a.agent for a in team.actions] == ["solver", "coder", "coder", "verifier"]
    assert [a.turn for a in team.actions] == [0, 0, 1, 0]
    assert [m.role for m in team.seen_by("coder", 1)[-2:]] == ["assistant", "tool"]
    assert [m.content for m in team.seen_by("coder", 1)[-2:]] == [CODE, "5"]
    assert tools.programs == ["print(2 + 3)"]
    assert team.actions[1].code == "print(2 + 3)"
    assert team.actions[1].observation == Observation("5\n")
    assert team.actions[2].code is None


async def test_without_code_the_coder_acts_once_and_nothing_runs():
    team, tools = await play(["I trust it", "never said"])
    assert [a.agent for a in team.actions] == ["solver", "coder", "verifier"]
    assert tools.programs == []
    assert "Output of its code" not in words(team.seen_by("verifier"))


async def test_the_last_turn_may_run_code_in_the_same_work_folder():
    second = CODE.replace("2 + 3", "x")
    team, tools = await play([CODE, second], Observation("5"), Observation("7"))
    assert [a.agent for a in team.actions] == ["solver", "coder", "coder", "verifier"]
    assert tools.workspaces == 1
    assert tools.programs == ["print(2 + 3)", "print(x)"]
    seen = words(team.seen_by("verifier"))
    assert "Output of its code:\n7" in seen
    assert second in seen


async def test_max_turns_is_respected():
    tell = dataclasses.replace(make_brief(), max_turns={"coder": 1})
    team, _ = await play([CODE, "never said"], Observation("5"), tell=tell)
    assert [a.agent for a in team.actions] == ["solver", "coder", "verifier"]
    assert "Output of its code:\n5" in words(team.seen_by("verifier"))


async def test_observations_can_be_user_turns():
    tell = make_brief(tool_role=False)
    team, _ = await play([CODE, "so"], Observation("5"), tell=tell)
    assert team.seen_by("coder", 1)[-1].role == "user"


async def test_what_is_handed_on_is_cut_in_the_middle_with_a_mark():
    tell = make_brief(handoff_tokens=20, tool_output_tokens=20)
    long = "start" + "x" * 100 + "final"
    team, _ = await play([CODE, long], Observation(long), solver=long, tell=tell)
    after_solver = words(team.seen_by("coder"))
    tool = team.seen_by("coder", 1)[-1].content
    after_coder = words(team.seen_by("verifier"))
    for seen in (after_solver, tool, after_coder):
        assert "90 characters cut" in seen
        assert "start" in seen and "final" in seen
        assert long not in seen


async def test_a_tool_fault_is_recorded_and_raised():
    team = ScriptedTeam(solver=["s"], coder=[CODE], verifier=["never said"])
    with pytest.raises(ToolFault, match="sandbox died"):
        await mathchat(
            TASK, team, ScriptedTools(ToolFault("sandbox died")), make_brief()
        )
    assert [a.agent for a in team.actions] == ["solver", "coder"]
    assert team.actions[0].fault is None
    assert team.actions[1].fault == "sandbox died"
    assert team.actions[1].code == "print(2 + 3)"


async def test_the_example_stands_before_the_problem_where_it_is_asked_for():
    plain, _ = await play(["no code"])
    shown, _ = await play(["no code"], tell=make_brief(example=True))
    for name in AGENTS:
        assert [m.role for m in plain.seen_by(name)] == ["system", "user"]
        chat = shown.seen_by(name)
        assert chat[0] == plain.seen_by(name)[0]
        assert chat[-1] == plain.seen_by(name)[-1]
        assert "Tom has 4 apples" in chat[1].content
        assert {m.role for m in chat[2:-1]} <= {"assistant", "tool"}
    assert [m.role for m in shown.seen_by("coder")][3] == "tool"
    assert "\\boxed{9}" in shown.seen_by("verifier")[2].content


async def test_a_team_that_knows_its_part_is_told_nothing():
    told, _ = await play(["no code"])
    untold, _ = await play(["no code"], tell=make_brief(instructions=False))
    for name in AGENTS:
        assert untold.seen_by(name) == told.seen_by(name)[1:]


async def test_the_verifier_is_told_the_form_of_the_answer():
    team, _ = await play(["no code"])
    assert "\\boxed{answer}" in team.seen_by("verifier")[0].content


@pytest.mark.parametrize(
    ("observation", "shown"),
    [
        (Observation(), "(no output)"),
        (Observation("  5\n"), "5"),
        (
            Observation("5", "Traceback: no", 1),
            "5\nstderr:\nTraceback: no\nexit status 1",
        ),
        (Observation("", "", -9, "wall_time"), "stopped: wall_time limit"),
        (Observation("", "", 3), "exit status 3"),
    ],
)
def test_an_observation_shows_output_errors_and_the_limit_hit(observation, shown):
    assert render_observation(observation, make_brief()) == shown


def test_roles_are_in_the_order_in_which_they_act():
    roles = WORKFLOWS["mathchat"].roles
    assert [(r.name, r.max_turns, r.uses_tool) for r in roles] == [
        ("solver", 1, False),
        ("coder", 2, True),
        ("verifier", 1, False),
    ]
