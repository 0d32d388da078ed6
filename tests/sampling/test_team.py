"""Chats in, recorded actions out."""

import contextlib
import types

import numpy as np
import pytest

from mappa_jax.config import AgentConfig
from mappa_jax.sampling.engine import Sample
from mappa_jax.sampling.team import Address, EpisodeTeam, Seat
from mappa_jax.types import Message, Observation, Task

CHAT = (Message("user", "hi"),)


class WordTokenizer:
    """Ids are characters; the template opens a thinking section where asked."""

    stop_ids = (0,)

    def render(self, messages, *, thinking):
        text = "".join(m.content for m in messages) + ("<think>" if thinking else "")
        return np.asarray([ord(c) for c in text], np.int32)

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i)

    def opens_thinking(self, prompt_ids):
        return self.decode(prompt_ids).endswith("<think>")


class ScriptedEngine:
    def __init__(self, reply):
        self.reply = reply
        self.asked = []
        self.open = []

    @contextlib.contextmanager
    def conversation(self):
        self.open.append(object())
        yield self.open[-1]
        self.open.pop()

    async def generate(self, agent, prompt, options, address, talk=None, *, last=False):
        self.asked.append(
            types.SimpleNamespace(
                agent=agent,
                prompt=prompt,
                options=options,
                address=address,
                conversation=talk,
                last=last,
            )
        )
        ids = np.asarray([ord(c) for c in self.reply] + [0], np.int32)
        return Sample(ids, np.zeros(len(ids), np.float32), "stop")


def seat(name="solver", temperature=None, index=1, **config):
    config = AgentConfig(**({"max_new_tokens": 7} | config))
    return Seat(name, index, config, WordTokenizer(), temperature)


def address(**changes):
    fields = dict(step=3, task=Task("t1", "p"), sample=2, evaluation=False)
    return Address(**(fields | changes))


def team_of(engine, on_action=lambda i, a: None, **options):
    return EpisodeTeam({"solver": seat(**options)}, engine, address(), on_action)


async def test_an_action_holds_what_was_given_and_sampled():
    engine = ScriptedEngine("yes")
    action = await team_of(engine, temperature=0.5)["solver"].act(CHAT)
    (asked,) = engine.asked
    assert asked.agent == 1
    np.testing.assert_array_equal(action.prompt_ids, [ord("h"), ord("i")])
    np.testing.assert_array_equal(action.prompt_ids, asked.prompt)
    np.testing.assert_array_equal(action.token_ids, [*map(ord, "yes"), 0])
    assert (action.agent, action.turn, action.text) == ("solver", 0, "yes")
    assert (action.messages, action.temperature) == (CHAT, 0.5)


async def test_turns_count_and_have_their_own_address():
    engine = ScriptedEngine("x")
    agent = team_of(engine)["solver"]
    actions = [await agent.act(CHAT) for _ in range(3)]
    assert [a.turn for a in actions] == [0, 1, 2]
    assert len({a.address for a in engine.asked}) == 3


async def test_turns_of_a_conversation_are_asked_for_as_such():
    """The last that the config allows is asked for as the last."""
    engine = ScriptedEngine("x")
    agent = team_of(engine, max_turns=3)["solver"]
    with agent.conversation() as talking:
        (talk,) = engine.open
        for _ in range(3):
            await talking.act(CHAT)
    assert engine.open == []
    await agent.act(CHAT)
    assert [a.conversation for a in engine.asked] == [talk] * 3 + [None]
    assert [a.last for a in engine.asked] == [False, False, True, True]


async def test_nobody_else_acts_within_a_conversation():
    """The slot is held, and the other might wait for one for ever."""
    seats = {name: seat(name) for name in ("solver", "critic")}
    team = EpisodeTeam(seats, ScriptedEngine("x"), address(), lambda i, a: None)
    with team["solver"].conversation() as solver:
        await solver.act(CHAT)
        with pytest.raises(RuntimeError, match="conversation of solver"):
            await team["critic"].act(CHAT)
        with pytest.raises(RuntimeError, match="conversation of solver"):
            with team["critic"].conversation():
                pass
        await solver.act(CHAT)
    await team["critic"].act(CHAT)


@pytest.mark.parametrize(
    "changes",
    [
        dict(step=4),
        dict(task=Task("t2", "p")),
        dict(sample=1),
        dict(evaluation=True),
    ],
)
def test_addresses_differ_where_episodes_do(changes):
    assert address(**changes).of(0, 0) != address().of(0, 0)
    assert address().of(0, 0) == address().of(0, 0)
    assert address().of(1, 0) != address().of(0, 0) != address().of(0, 1)


def test_addresses_fit_int32():
    for k in range(50):
        parts = address(task=Task(f"task {k}", "p")).of(2, 1)
        assert len(parts) == 6
        assert all(0 <= p < 2**31 for p in parts)


@pytest.mark.parametrize(
    ("thinking", "reply", "content"),
    [
        (False, "<think>no</think>yes", "yes"),
        (True, "no</think>yes", "yes"),
        (True, "cut off", ""),
        (False, "plain", "plain"),
    ],
)
async def test_thinking_is_not_handed_on(thinking, reply, content):
    agent = team_of(ScriptedEngine(reply), thinking=thinking)["solver"]
    action = await agent.act(CHAT)
    assert action.text == reply
    assert action.content == content


async def test_recording_attaches_what_happened_and_reports_it():
    seen = []
    team = team_of(ScriptedEngine("x"), lambda i, a: seen.append((i, a)))
    first = await team["solver"].act(CHAT)
    assert team.actions == []
    world = Observation(stdout="4")
    kept = team.record(first, code="print(4)", observation=world)
    assert (kept.code, kept.observation, kept.fault) == ("print(4)", world, None)
    broken = team.record(await team["solver"].act(CHAT), fault="sandbox died")
    assert team.actions == [kept, broken]
    assert seen == [(0, kept), (1, broken)]


def test_options_are_the_configs_but_for_an_evaluations_temperature():
    config = dict(temperature=0.9, top_k=4, top_p=0.8, min_new_tokens=2)
    options = seat(**{k: v for k, v in config.items() if k != "temperature"}).options()
    assert options.temperature == 1.0
    assert (options.top_k, options.top_p) == (4, 0.8)
    assert (options.min_new, options.max_new, options.stop_ids) == (2, 7, (0,))
    assert options.stopped_at is None
    assert seat(temperature=0.0).options().temperature == 0.0


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("ab END cd", 6),  # up to the first token with which END is there
        ("ab EN", None),
        ("STOP", 4),
        ("x END STOP END", 5),
        ("", None),
    ],
)
def test_a_stop_string_is_found_at_its_first_end(text, kept):
    stopped_at = seat(stop=("END", "STOP")).options().stopped_at
    assert stopped_at([ord(c) for c in text]) == kept
