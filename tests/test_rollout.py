"""One rollout with scripted agents, tools and judge: what is judged, when, as what."""

import asyncio
import dataclasses
import gc
import json

import numpy as np
import pytest

from mappa_jax.config import AgentConfig, JudgeConfig
from mappa_jax.drift import anchor_drift, read_drift
from mappa_jax.judges import BudgetReached, JudgeError
from mappa_jax.rollout import Stage, rollout, success
from mappa_jax.sampling.engine import PromptTooLong
from mappa_jax.sampling.team import Seat
from mappa_jax.testing import (
    CharTokenizer,
    ScriptedEngine,
    ScriptedGrader,
    ScriptedJudge,
    ScriptedTools,
)
from mappa_jax.text import cut_middle
from mappa_jax.types import (
    JudgeCall,
    Missing,
    MissingReason,
    Observation,
    Outcome,
    Role,
    Task,
    ToolFault,
    Verdict,
)
from mappa_jax.workflows.base import Brief, Workflow

ROLES = (Role("first", "first", "begins"), Role("last", "last", "answers"))
BRIEF = Brief(
    token_limits={"first": 16, "last": 32},
    max_turns={"first": 1, "last": 1},
    tool_tokens=99,
    handoff_tokens=99,
    tool_role="tool",
    instructions=True,
    example=False,
    cut=cut_middle,
)


async def relay(task, team, tools, brief):
    """The first agent's text is run as a program; the last agent then acts."""
    action = await team["first"].act([])
    async with tools.workspace() as workspace:
        try:
            seen = await workspace.run(action.content)
        except ToolFault as e:
            team.record(action, code=action.content, fault=str(e))
            raise
    team.record(action, code=action.content, observation=seen)
    team.record(await team["last"].act([]))


WENT_WELL = Observation("ok", seconds=0.5)


def make_stage(
    judge,
    say=lambda agent, address: f"{'first' if agent == 0 else 'last'}",
    outcomes=(WENT_WELL,) * 8,
    show_reference="never",
    workflow=relay,
):
    tokenizer = CharTokenizer()
    seats = {
        role.name: Seat(role.name, i, AgentConfig(), tokenizer)
        for i, role in enumerate(ROLES)
    }
    return Stage(
        workflow=Workflow("relay", ROLES, workflow),
        brief=BRIEF,
        seats=seats,
        engine=ScriptedEngine(say),
        tools=ScriptedTools(*outcomes),
        judge=judge,
        grader=ScriptedGrader(),
        show_reference=show_reference,
    )


TASK = Task("t", "prompt", answer="last")


async def run(stage, tasks=(TASK,), samples=1, evaluation=False):
    done = []
    rolling = await rollout(
        stage,
        tasks,
        samples=samples,
        step=3,
        evaluation=evaluation,
        on_done=lambda: done.append(1),
    )
    assert len(done) == len(rolling.episodes)
    return await rolling.close()


async def test_every_action_has_its_own_verdict():
    judge = ScriptedJudge(lambda r: 2.0 if r.role.name == "first" else 7.0)
    rolled = await run(make_stage(judge), samples=3)
    for trajectory in rolled.trajectories:
        assert [a.agent for a in trajectory.actions] == ["first", "last"]
        assert [v.score for v in trajectory.verdicts] == [2.0, 7.0]
    assert rolled.sandbox_seconds == pytest.approx(1.5)


async def test_an_action_is_filed_under_where_it_stands():
    judge = ScriptedJudge()
    await run(make_stage(judge), tasks=[dataclasses.replace(TASK, source="sums")])
    assert [r.address for r in judge.requests] == ["3/sums/t/0/0", "3/sums/t/0/1"]


async def test_a_share_of_the_actions_is_judged_twice():
    judge = ScriptedJudge(lambda r: 2.0 + r.repeat)
    stage = make_stage(judge, outcomes=(WENT_WELL,) * 80)
    stage = dataclasses.replace(stage, duplicates=0.3)
    rolled = await run(stage, samples=40)
    verdicts = [v for t in rolled.trajectories for v in t.verdicts]
    twice = [v for v in verdicts if v.again is not None]
    assert 0.15 * len(verdicts) < len(twice) < 0.45 * len(verdicts)
    assert {(v.score, v.again) for v in twice} == {(2.0, 3.0)}
    assert len(judge.requests) == len(verdicts) + len(twice)
    same = await run(stage, samples=40)
    again = [v.again for t in same.trajectories for v in t.verdicts]
    assert again == [v.again for v in verdicts]


async def test_agents_may_go_on_while_verdicts_are_awaited():
    gate = asyncio.Event()
    stage = make_stage(ScriptedJudge(gate=gate))
    rolling = await asyncio.wait_for(
        rollout(
            stage, [TASK], samples=1, step=1, evaluation=False, on_done=lambda: None
        ),
        5,
    )
    gate.set()
    rolled = await rolling.close()
    assert len(rolled.trajectories[0].verdicts) == 2


async def test_an_early_action_is_judged_before_later_agents_act():
    judge = ScriptedJudge()
    asked_before_last = []

    def say(agent, address):
        if agent == 1:
            asked_before_last.append([r.role.name for r in judge.requests])
        return "x"

    await run(make_stage(judge, say))
    assert asked_before_last == [["first"]]


async def test_a_slow_judge_does_not_delay_the_agents():
    gate = asyncio.Event()
    judge = ScriptedJudge(gate=gate)

    def say(agent, address):
        if agent == 1:
            gate.set()  # no verdict can exist before the last agent acts
        return "x"

    rolled = await asyncio.wait_for(run(make_stage(judge, say)), 5)
    assert len(rolled.trajectories[0].verdicts) == 2


async def test_the_judge_sees_what_came_before_and_the_observation():
    judge = ScriptedJudge()
    await run(make_stage(judge))
    first, last = judge.requests
    assert first.before == ()
    assert first.action.observation.stdout == "ok"
    assert [a.agent for a in last.before] == ["first"]
    assert (first.token_limit, last.token_limit) == (16, 32)
    assert not first.is_last and last.is_last


async def test_a_fault_is_missing_and_never_judged():
    judge = ScriptedJudge()
    stage = make_stage(judge, outcomes=[ToolFault("sandbox died")])
    rolled = await run(stage)
    (trajectory,) = rolled.trajectories
    (verdict,) = trajectory.verdicts
    assert isinstance(verdict, Missing)
    assert verdict.reason is MissingReason.INFRASTRUCTURE
    assert "sandbox died" in verdict.detail
    assert judge.requests == []
    assert trajectory.failure == "tool fault: sandbox died"
    assert trajectory.outcome is None


async def test_one_fault_leaves_the_other_trajectories_alone():
    judge = ScriptedJudge()
    outcomes = [ToolFault("died"), Observation("ok")]
    rolled = await run(make_stage(judge, outcomes=outcomes), samples=2)
    lengths = sorted(len(t.actions) for t in rolled.trajectories)
    assert lengths == [1, 2]
    assert success(rolled.trajectories) == {"success": 1.0, "graded": 1, "failed": 1}


def too_long_for(agent):
    """What everybody says, but for one agent, whose prompt is too long."""
    return lambda seat, _: PromptTooLong("99 tokens") if seat == agent else "x"


async def test_a_problem_that_is_too_long_fails_the_trajectory_unblamed():
    rolled = await run(make_stage(ScriptedJudge(), say=too_long_for(0)))
    (trajectory,) = rolled.trajectories
    assert trajectory.failure == "prompt too long: 99 tokens"
    assert trajectory.outcome is None
    counted = success(rolled.trajectories)
    assert (counted["graded"], counted["failed"]) == (0, 1)
    assert np.isnan(counted["success"])


async def test_what_the_team_made_too_long_counts_as_no_answer():
    rolled = await run(make_stage(ScriptedJudge(), say=too_long_for(1)))
    (trajectory,) = rolled.trajectories
    assert trajectory.failure == "prompt too long: 99 tokens"
    assert [type(v) for v in trajectory.verdicts] == [Verdict]  # of what was done
    assert success(rolled.trajectories) == {"success": 0.0, "graded": 1, "failed": 1}


async def test_a_task_without_a_reference_may_have_a_scorer_of_its_own():
    class Scorer:
        async def grade(self, task, text):
            assert task.answer is None
            return Outcome(0.75, text)

    stage = dataclasses.replace(make_stage(ScriptedJudge()), grader=Scorer())
    rolled = await run(stage, tasks=[dataclasses.replace(TASK, answer=None)])
    assert rolled.trajectories[0].outcome == Outcome(0.75, "last")


async def test_a_bug_in_a_workflow_is_not_swallowed():
    async def broken(task, team, tools, brief):
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as e:
        await run(make_stage(None, workflow=broken))
    assert e.group_contains(ZeroDivisionError)


async def test_a_task_that_occurs_twice_gets_distinct_samples():
    stage = make_stage(None)
    other = dataclasses.replace(TASK, id="u")
    rolled = await run(stage, tasks=[TASK, other, TASK], samples=2)
    numbers = [(t.task.id, t.sample) for t in rolled.trajectories]
    assert numbers == [("t", 0), ("t", 1), ("u", 0), ("u", 1), ("t", 2), ("t", 3)]
    addresses = stage.engine.addresses
    assert len(set(addresses)) == len(addresses) == 12


async def test_evaluation_draws_other_randomness_and_is_not_judged():
    stage = make_stage(None)
    training = await run(stage)
    evaluation = await run(stage, evaluation=True)
    assert len(set(stage.engine.addresses)) == 4
    assert training.trajectories[0].step == 3
    assert evaluation.trajectories[0].step == -1
    assert evaluation.trajectories[0].verdicts == ()


@pytest.mark.parametrize(
    ("shown", "references"),
    [
        ("never", [None, None]),
        ("last", [None, "last"]),
        ("all", ["last", "last"]),
    ],
)
async def test_who_is_judged_with_the_reference_answer(shown, references):
    judge = ScriptedJudge()
    await run(make_stage(judge, show_reference=shown))
    assert [r.reference for r in judge.requests] == references


async def test_only_the_last_agents_text_is_the_answer():
    right = make_stage(None, say=lambda agent, _: "last" if agent else "no")
    wrong = make_stage(None, say=lambda agent, _: "no" if agent else "last")
    assert (await run(right)).trajectories[0].outcome.score == 1.0
    assert (await run(wrong)).trajectories[0].outcome.score == 0.0


async def test_without_a_reference_there_is_no_outcome():
    rolled = await run(make_stage(None), tasks=[Task("t", "prompt")])
    assert rolled.trajectories[0].outcome is None
    assert rolled.trajectories[0].failure is None


async def test_drift_is_the_change_on_the_anchors(tmp_path):
    """A judge that grows milder by a tenth of a point an iteration."""
    now = {"step": 1}
    stage = make_stage(ScriptedJudge(lambda request: 3.0 + 0.1 * now["step"]))
    rolled = await run(stage, samples=3)
    config = JudgeConfig(anchors=3, anchor_every=5)

    async def at(step):
        now["step"] = step
        return await anchor_drift(stage, tmp_path, config, rolled, step)

    assert await at(1) == {}
    assert (tmp_path / "judge_anchors.jsonl").exists()
    assert await at(4) == {}
    asked = len(stage.judge.requests)
    found = await at(5)
    assert found["drift"] == pytest.approx(0.4)
    assert found["drift_abs"] == pytest.approx(0.4)
    fresh = stage.judge.requests[asked:]
    assert len(fresh) == 3  # not what is on record: a new opinion of the same content
    assert len({r.repeat for r in fresh}) == 1 and fresh[0].repeat > 1
    first, second, _ = rolled.trajectories
    anchors = [*first.actions, second.actions[0]]
    assert [r.action.text for r in fresh] == [a.text for a in anchors]
    assert (await at(10))["drift"] == pytest.approx(0.9)


async def test_anchors_without_a_verdict_are_counted(tmp_path):
    stage = make_stage(judge := ScriptedJudge())
    rolled = await run(stage, samples=2)
    config = JudgeConfig(anchors=4, anchor_every=5)
    await anchor_drift(stage, tmp_path, config, rolled, 1)
    judge._missing_every = 2
    found = await anchor_drift(stage, tmp_path, config, rolled, 5)
    assert found["anchors_missing"] == 2 and found["drift"] == 0
    judge._missing_every = 1
    found = await anchor_drift(stage, tmp_path, config, rolled, 10)
    assert found == {"anchors_missing": 4}


def test_drift_is_read_from_the_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_drift(path) == []
    rows = [{"step": 1}, {"step": 2, "judge/drift": 0.5, "judge/drift_abs": 0.75}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_drift(path) == [{"step": 2, "drift": 0.5, "drift_abs": 0.75}]


async def test_anchors_stop_at_a_budget_like_all_else(tmp_path):
    class Poor(ScriptedJudge):
        async def score(self, request):
            if request.repeat:
                call = JudgeCall("x")
                return Missing(
                    MissingReason.BUDGET, "judge.budget.usd=1 is spent", call
                )
            return await super().score(request)

    stage = make_stage(Poor())
    rolled = await run(stage, samples=2)
    config = JudgeConfig(anchors=4, anchor_every=1)
    with pytest.raises(BudgetReached, match="judge.budget.usd"):
        await anchor_drift(stage, tmp_path, config, rolled, 1)


async def test_a_judge_that_cannot_go_on_ends_the_batch(caplog):
    """A replay that has no answer is no missing verdict."""

    class Lost(ScriptedJudge):
        async def score(self, request):
            raise JudgeError("judge.replay has no call of this")

    with pytest.raises(JudgeError, match="judge.replay"):
        await run(make_stage(Lost()), samples=3)
    gc.collect()
    await asyncio.sleep(0)
    assert "never retrieved" not in caplog.text


async def test_without_anchors_nothing_is_kept(tmp_path):
    stage = make_stage(ScriptedJudge())
    rolled = await run(stage)
    assert await anchor_drift(stage, tmp_path, JudgeConfig(), rolled, 10) == {}
    assert list(tmp_path.iterdir()) == []
