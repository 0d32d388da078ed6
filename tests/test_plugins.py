"""A user's own workflow and judge, named by where they are."""

import sys

import pytest

from mappa_jax.assemble import seat_agents
from mappa_jax.config import ConfigError, JudgeConfig, resolve
from mappa_jax.judges import Ledger, make_judge
from mappa_jax.plugins import load_object
from mappa_jax.workflows import find_workflow

OWN = """
import dataclasses

from mappa_jax.judges.rubric import RubricJudge
from mappa_jax.types import Message, Role
from mappa_jax.workflows.base import Workflow

with open("runs", "a") as file:
    file.write("ran;")


async def pair(task, team, tools, brief):
    first = team.record(await team["writer"].act([Message("user", task.prompt)]))
    asked = [Message("user", first.content)]
    team.record(await team["editor"].act(asked))


ROLES = (Role("writer", "writer", ""), Role("editor", "editor", ""))
PAIR = Workflow("pair", ROLES, pair)


class Strict(RubricJudge):
    def __init__(self, config):
        super().__init__(config.rubric, name="strict")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's file in the current folder; it notes in the file "runs" that it ran."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return path


def test_a_workflow_of_ones_own_seats_its_agents(own):
    agents = {name: {"model": "m"} for name in ("editor", "writer")}
    config = resolve({"agents": agents, "workflow": {"name": "own.py:PAIR"}})
    seated = seat_agents(config)
    assert list(seated.agents) == ["writer", "editor"]  # in the order in which they act


def test_a_file_runs_once(own):
    first, second = (load_object(f"{own}:PAIR", "workflow.name") for _ in range(2))
    assert first is second and own.with_name("runs").read_text() == "ran;"


def test_a_module_is_found_where_python_looks(own, monkeypatch):
    monkeypatch.syspath_prepend(str(own.parent))
    assert find_workflow("own:PAIR").name == "pair"
    sys.modules.pop("own")


@pytest.mark.parametrize(
    "place, said",
    [
        (
            "nothing.py:PAIR",
            r"config\.workflow\.name='nothing\.py:PAIR'.*folder/file\.py",
        ),
        ("no_such_module:PAIR", "cannot be imported"),
        ("own.py:TRIO", "has no 'TRIO'"),
        (":PAIR", "cannot be imported"),
        (".relative:PAIR", "cannot be imported"),
        ("own.py:Strict", "not a Workflow"),
        ("trio", r"is not one of \['mathchat'"),
    ],
)
def test_what_is_not_there_is_named(own, place, said):
    with pytest.raises(ConfigError, match=said):
        find_workflow(place)


def test_a_file_that_fails_to_run_is_not_kept(own):
    own.write_text("print(no_such_thing)")
    for _ in range(2):
        with pytest.raises(ConfigError, match="NameError.*no_such_thing"):
            load_object(f"{own}:PAIR", "workflow.name")


def test_a_judge_of_ones_own_is_made_of_the_config(own):
    config = JudgeConfig(provider="own.py:Strict", rubric="paper")
    judge = make_judge(config, roles=["writer"], keys={}, ledger=Ledger(None))
    assert (judge.name, judge.style) == ("strict", "paper")


def test_a_provider_that_is_neither_is_refused():
    config = {"agents": {"solver": {"model": "m"}}, "judge": {"provider": "oracle"}}
    with pytest.raises(ConfigError, match=r"config\.judge\.provider.*folder/file\.py"):
        resolve(config)
