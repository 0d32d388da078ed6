"""The bars that a person sees while a run goes on."""

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from mappa_jax.commands import common, console
from mappa_jax.hosts import OneHost
from mappa_jax.judges.base import Meter
from mappa_jax.sampling.engine import Load


@pytest.fixture
def progress():
    with console.ConsoleProgress(3) as shown:
        yield shown


def bars(progress):
    return {
        task.description: (task.completed, task.total) for task in progress._bar.tasks
    }


def test_a_phase_takes_the_place_of_the_one_before(progress):
    advance = progress.start(1, "rollout", 2)
    advance()
    assert bars(progress) == {"iteration 1/3 rollout": (1, 2)}
    advance()
    progress.start(1, "judge", 1)
    assert bars(progress) == {"iteration 1/3 judge": (0, 1)}
    progress.start(1, "credit", 1)
    progress.start(1, "update", 1)
    assert bars(progress) == {"iteration 1/3 update": (0, 1)}


def test_a_rollout_that_goes_on_is_shown_beside(progress):
    progress.start(1, "judge", 1)
    advance = progress.start(2, "rollout", 2)
    advance()
    progress.start(1, "update", 1)
    assert bars(progress) == {
        "iteration 2/3 rollout": (1, 2),
        "iteration 1/3 update": (0, 1),
    }
    advance()
    assert bars(progress)["iteration 2/3 rollout"] == (2, 2)
    progress.start(1, "evaluate", 5)
    assert bars(progress) == {"iteration 1/3 evaluate": (0, 5)}


def finished(seconds):
    return {
        "agents": {"solver": {"score": 5.0}},
        "team": {"success": None},
        "seconds": {"iteration": seconds},
    }


def test_queues_and_pace_are_told_by_agent():
    load = Load(waiting=(3, 0, 0), sampling=(4, 1, 0), tokens=0)
    names = ["solver", "coder", "verifier"]
    assert console.load_text(load, names, 12.6) == "solver 3+4  coder 0+1  13 tokens/s"
    assert console.load_text(Load((0,), (0,), 0), ["solver"], 0.0) == ""


def test_the_pace_is_that_since_the_last_look(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    pace = console._Pace()
    now[0] = 2.0
    assert pace(100) == 50.0
    now[0] = 2.5  # too early to tell
    assert pace(900) == 50.0
    now[0] = 4.0
    assert pace(100) == 0.0


@pytest.mark.parametrize(
    "seconds, said", [(12.4, "12 s"), (150, "2 min"), (3725, "1 h 02 min")]
)
def test_durations_are_for_reading(seconds, said):
    assert console.duration(seconds) == said


def test_what_is_left_follows_from_the_median_iteration():
    shown = console.ConsoleProgress(12, plain=True)
    with shown.console.capture() as caught:
        for step, seconds in enumerate((900.0, 60.0, 60.0), start=1):
            shown.finish(step, finished(seconds))
    first, _, third = caught.get().splitlines()
    assert "(900 s; 2 h 45 min to go)" in first
    assert "(60 s; 9 min to go)" in third


def test_plain_lines_come_when_nothing_was_said_for_long(monkeypatch):
    """Also of a phase that does not advance."""
    monkeypatch.setattr(console, "EVERY", 0.2)
    file = io.StringIO()
    shown = console.ConsoleProgress(3, ["solver"], plain=True)
    shown.console.file = file
    shown.watch(
        lambda: Meter(calls=7, in_flight=2, usd=0.5), lambda: Load((1,), (2,), 60)
    )
    with shown:
        shown.start(1, "rollout", 4)()
        deadline = time.monotonic() + 20
        while not file.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    line = file.getvalue().splitlines()[0]
    assert line.startswith("iteration 1/3 rollout: 1 of 4; ")
    assert "s; solver 1+2" in line
    assert line.endswith("judge: 2 in flight, 7 calls, $0.500")


def test_an_evaluation_by_itself_has_queues_too():
    with console.ConsoleProgress(3, ["solver"]) as shown:
        shown.watch(Meter, lambda: Load((1,), (2,), 0))
        shown.start(0, "evaluate (trained)", 4)
        (task,) = shown._bar.tasks
        assert shown._sampler_text(task) == "solver 1+2"
        shown.start(0, "judge", 4)
        assert shown._sampler_text(shown._bar.tasks[-1]) == ""


def test_in_ci_lines_are_plain(monkeypatch):
    config = SimpleNamespace(steps=3, agents={"solver": None})
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    for ci, plain in (("true", True), ("", False)):
        monkeypatch.setenv("CI", ci)
        assert common.progress(config, OneHost())._plain is plain
