"""The terminal, with scripted input."""

import asyncio
import io

import pytest
from rich.console import Console

from mappa_jax.serving.terminal import Terminal, folded, plain
from mappa_jax.testing import ScriptedTools
from mappa_jax.types import Observation

CODE = "```python\nprint(2 + 3)\n```"


@pytest.fixture
def talk(make_served):
    """(engine, lines) -> what was shown; a line may be a function of the terminal."""

    async def run(engine, *lines, tools=None, who="team"):
        said, shown = iter(lines), io.StringIO()

        async def read():
            return next(said, None)

        console = Console(file=shown, width=60, highlight=False)
        terminal = Terminal(make_served(engine, tools), console, read, who)
        run.terminal = terminal
        await terminal.run()
        return shown.getvalue()

    return run


async def test_every_action_is_shown_as_it_happens(make_engine, talk):
    printed = "".join(f"line {i}\n" for i in range(20))
    tools = ScriptedTools(Observation(stdout=printed, seconds=0.2))

    def say(agent, address, prompt):
        return ("2 + 3 = 5", CODE if address[4] == 0 else "ok", "\\boxed{5}")[agent]

    shown = await talk(make_engine(say), "What is 2 + 3?\n", "/trace", tools=tools)
    parts = ["solver (9 tokens)", "2 + 3 = 5", "coder (", "print(2 + 3)", "  | line 0"]
    parts += ["| ... 12 more lines", "verifier (", "answer\n"]
    places = [shown.index(part) for part in parts]
    assert places == sorted(places)
    folded_part, _, whole = shown.partition("was shown")
    assert "line 19" not in folded_part and "line 19" in whole
    assert "[system] You are the problem solver" in whole
    assert "\x1b" not in shown  # no terminal: plain lines


async def test_commands(engine, talk):
    shown = await talk(engine, "/help", "/agents", "/trace", "/wrong x", "/quit", "no")
    for said in (
        "Ctrl-C stops",
        "coder (code executor, runs programs)",
        "no answer yet",
    ):
        assert said in shown
    assert "/wrong: there is no such command" in shown
    assert engine.asked == 0


async def test_an_agent_alone_remembers(make_engine, talk):
    prompts = []
    engine = make_engine(lambda agent, address, prompt: prompts.append(prompt) or "yes")
    await talk(engine, "one", "two", who="solver")
    assert prompts == ["one", "oneyestwo"]


async def test_control_c_stops_the_answer_and_not_the_talk(engine, talk, eventually):
    engine.gate.clear()
    talking = asyncio.create_task(talk(engine, "a task", "/agents"))
    await eventually(lambda: engine.active == 1)
    talk.terminal.interrupt()
    shown = await talking
    assert shown.index("stopped") < shown.index("code executor")
    assert engine.cancelled == 1
    talk.terminal.interrupt()  # at the prompt it leaves nothing
    with pytest.raises(asyncio.CancelledError):
        talking = asyncio.create_task(talk(engine, "a task"))
        await eventually(lambda: engine.active == 1)
        talking.cancel()
        await talking


async def test_an_error_is_a_line(make_engine, talk):
    shown = await talk(make_engine(lambda *_: "x"), "x" * 5000, "/agents")
    assert "tokens" in shown and "code executor" in shown


def test_nothing_commands_the_terminal():
    assert plain("a\x1b[2J\x07b\n\tc\u202e") == "a\ufffd[2J\ufffdb\n\tc\ufffd"


def test_long_lines_are_folded_too():
    assert folded("x" * 1000).endswith(" ...")
    assert folded("a\nb") == "a\nb"
