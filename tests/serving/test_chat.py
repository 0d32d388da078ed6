"""What OpenAI's own client gets of the team and of its agents."""

import asyncio
import functools
import tempfile
from pathlib import Path

import openai
import pytest

from mappa_jax.config import SandboxConfig
from mappa_jax.testing import ScriptedTools
from mappa_jax.tools import make_sandbox
from mappa_jax.types import Observation

TASK = [{"role": "user", "content": "What is 2 + 3?"}]
CODE = "```python\nprint(2 + 3)\n```"


def as_a_team(agent, address, prompt):
    """Each as its part is; the coder writes a program first."""
    lines = {
        0: "2 + 3 = 5",
        1: CODE if address[4] == 0 else "It printed 5.",
        2: "\\boxed{5}",
    }
    return lines[agent]


@pytest.fixture
def team(make_engine):
    tools = ScriptedTools(*[Observation(stdout="5\n", seconds=0.1)] * 8)
    return make_engine(as_a_team), tools


async def test_the_team_and_every_agent_are_models(team, serve):
    async with serve(*team) as server:
        names = [m.id for m in (await server.client.models.list()).data]
        assert names == ["team", "solver", "coder", "verifier"]
        assert (await server.client.models.retrieve("coder")).id == "coder"
        with pytest.raises(openai.NotFoundError):
            await server.client.models.retrieve("judge")


async def test_the_team_answers_with_its_last_agent(team, serve):
    async with serve(*team) as server:
        done = await server.create(model="team", messages=TASK)
    (choice,) = done.choices
    assert (choice.message.content, choice.finish_reason) == ("\\boxed{5}", "stop")
    assert done.system_fingerprint == "abc-7"
    new = len("2 + 3 = 5") + len(CODE) + len("It printed 5.") + len("\\boxed{5}")
    assert done.usage.completion_tokens == new
    assert done.usage.total_tokens == done.usage.prompt_tokens + new
    assert "trace" not in done.model_extra


async def test_a_trace_tells_who_did_what(team, serve):
    async with serve(*team) as server:
        done = await server.create(
            model="team", messages=TASK, extra_body={"trace": True}
        )
    trace = done.model_extra["trace"]
    assert [(a["agent"], a["turn"]) for a in trace] == [
        *(("solver", 0), ("coder", 0), ("coder", 1), ("verifier", 0))
    ]
    assert trace[1]["code"] == "print(2 + 3)"
    assert trace[1]["observation"]["stdout"] == "5\n"
    assert trace[0]["observation"] is None
    assert "What is 2 + 3?" in trace[0]["messages"][-1]["content"]


async def test_the_stream_adds_up_to_the_answer(team, serve):
    async with serve(*team) as server:
        stream = await server.create(
            model="team",
            messages=TASK,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"trace": True},
        )
        chunks = [chunk async for chunk in stream]
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == "\\boxed{5}"
    assert len([p for p in pieces if p]) > 2  # as it came
    assert chunks[0].choices[0].delta.role == "assistant"
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert finishes[-1] == "stop" and not any(finishes[:-1])
    assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices
    traced = [c.model_extra["trace"][0] for c in chunks if "trace" in c.model_extra]
    assert [a["agent"] for a in traced] == ["solver", "coder", "coder", "verifier"]
    first_text = next(
        i for i, c in enumerate(chunks) if c.choices and c.choices[0].delta.content
    )
    shown = [i for i, c in enumerate(chunks) if "trace" in c.model_extra]
    assert shown[2] < first_text < shown[3]  # each as it acted


async def test_an_agent_alone_gets_the_chat_as_it_is(make_engine, serve):
    engine = make_engine(lambda agent, address, prompt: f"{agent}<{prompt}>")
    async with serve(engine) as server:
        done = await server.create(
            model="coder",
            messages=[
                {"role": "developer", "content": "Be brief. "},
                {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            ],
        )
    assert done.choices[0].message.content == "1<Be brief. Hi>"
    assert engine.asked == 1


async def test_earlier_turns_stand_above_the_teams_task(make_engine, serve):
    engine = make_engine(lambda agent, address, prompt: prompt if agent == 0 else "x")
    chat = [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": "And twice that?"},
    ]
    async with serve(engine) as server:
        done = await server.create(
            model="team", messages=chat, extra_body={"trace": True}
        )
    shown = done.model_extra["trace"][0]["messages"][-1]["content"]
    assert "User: What is 2 + 3?\n\nAssistant: 5" in shown
    assert shown.endswith("Now:\nAnd twice that?")


async def test_a_seed_gives_the_same_again_and_another_another(engine, serve):
    async with serve(engine) as server:

        async def ask(model, **more):
            done = await server.create(model=model, messages=TASK, **more)
            return [choice.message.content for choice in done.choices]

        for model in ("team", "solver"):
            one = await ask(model, seed=1)
            assert one == await ask(model, seed=1)
            assert one != await ask(model, seed=2)
            assert one != await ask(model)
            several = await ask(model, seed=1, n=3)
            assert several[:1] == one and len(set(several)) == 3


async def test_settings_reach_the_sampler(engine, serve):
    async with serve(engine) as server:
        await server.create(
            model="team", messages=TASK, temperature=0.25, top_p=0.5, max_tokens=5
        )
        given = [(o.temperature, o.top_p, o.max_new) for o in engine.options]
        assert given == [(0.25, 0.5, 200), (0.25, 0.5, 200), (0.25, 0.5, 5)]
        done = await server.create(model="solver", messages=TASK, max_tokens=5)
        assert done.choices[0].message.content == "agent"
        assert done.choices[0].finish_reason == "length"
        assert engine.options[-1].temperature == 1.0


async def test_numbers_too_small_for_the_device_are_its_smallest(engine, serve):
    """A temperature that it would divide by, a mass that no token has."""
    async with serve(engine) as server:
        await server.create(
            model="solver", messages=TASK, temperature=1e-300, top_p=1e-300
        )
    assert (engine.options[0].temperature, engine.options[0].top_p) == (0.0, 1e-4)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_is_not_in_the_answer(make_engine, serve, stream):
    engine = make_engine(lambda *_: "one, two; three")
    async with serve(engine) as server:
        done = await server.create(
            model="team", messages=TASK, stop=[";", "zzz"], stream=stream
        )
        if stream:
            pieces = [c.choices[0].delta.content or "" async for c in done if c.choices]
            assert "".join(pieces) == "one, two"
        else:
            assert done.choices[0].message.content == "one, two"
            assert done.choices[0].finish_reason == "stop"


async def test_fields_that_ask_for_nothing_may_be_there(engine, serve):
    async with serve(engine) as server:
        await server.create(
            model="team",
            messages=TASK,
            frequency_penalty=0,
            logprobs=False,
            response_format={"type": "text"},
            user="u",
        )


async def test_sixty_four_users_get_what_each_would_alone(engine, serve):
    async with serve(engine, running=16, waiting=200) as server:

        async def ask(seed):
            done = await server.create(
                model=("team", "solver")[seed % 2], messages=TASK, seed=seed
            )
            return done.choices[0].message.content

        together = await asyncio.gather(*map(ask, range(64)))
        assert 8 < engine.peak <= 16
        alone = [await ask(seed) for seed in range(64)]
        assert together == alone and len(set(alone)) == 64
        assert server.service.admission.idle


async def test_data_files_come_with_the_task_and_the_submission_with_the_answer(
    make_engine, serve
):
    tools = ScriptedTools(*[Observation(files=("submission.csv",))] * 20)
    tools.files["submission.csv"] = b"id,y\n1,2\n"
    given = {}
    workspace = tools.workspace

    def kept(files={}, first=()):  # noqa: B006
        given.update({n: Path(path).read_text() for n, path in files.items()})
        return workspace(files, first)

    tools.workspace = kept
    engine = make_engine(lambda *_: CODE)
    async with serve(engine, tools, "datascience") as server:
        ask = server.create
        with pytest.raises(openai.BadRequestError, match="works on data files"):
            await ask(model="team", messages=TASK)
        with pytest.raises(openai.BadRequestError, match="files"):
            bad = {"files": {"../x": "1"}}
            await ask(model="team", messages=TASK, extra_body=bad)
        table = {"files": {"train.csv": "x,y\n1,2\n"}}
        done = await ask(model="team", messages=TASK, extra_body=table)
    assert given == {"train.csv": "x,y\n1,2\n"}
    assert done.model_extra["files"] == [{"submission.csv": "id,y\n1,2\n"}]


async def test_nothing_of_the_files_stays_behind_an_answer(
    make_engine, serve, eventually, tmp_path, monkeypatch
):
    """Nor behind one that is given up, in the sandbox of training."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sandbox = make_sandbox(SandboxConfig(preload=(), wall_seconds=20.0))
    said = "print(open('train.csv').read())"
    engine = make_engine(lambda *_: f"```python\n{said}\n```")
    more = {"files": {"train.csv": "private"}, "trace": True}
    try:
        async with serve(engine, sandbox, "datascience") as server:
            ask = functools.partial(server.create, model="team", messages=TASK)
            done = await ask(extra_body=more)
            assert "private" in str(done.model_extra["trace"])
            await asyncio.gather(*(ask(extra_body=more, n=2) for _ in range(2)))
            engine.gate.clear()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await ask(extra_body=more)
            await eventually(lambda: server.service.admission.idle)
        (folder,) = tmp_path.iterdir()  # of the sandbox, which goes on
        assert [*folder.iterdir()] == []
    finally:
        await sandbox.aclose()
    assert [*tmp_path.iterdir()] == []
