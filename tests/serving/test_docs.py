"""The examples of docs/serving.md: read, and run against a scripted team."""

import ast
import asyncio
import contextlib
import io
import re
import shlex
from pathlib import Path

import aiohttp
import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def blocks():
    found = re.findall(
        r"```(\w+)\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL
    )
    return {kind: [text for k, text in found if k == kind] for kind in ("sh", "python")}


async def test_the_curl_example(blocks, engine, serve):
    (command,) = [text for text in blocks["sh"] if text.startswith("curl")]
    words = shlex.split(command.replace("\\\n", " "))
    kind, _, value = words[words.index("-H") + 1].partition(": ")
    async with serve(engine) as server, aiohttp.ClientSession() as session:
        url = words[1].replace("http://127.0.0.1:8000", server.url)
        body = words[words.index("-d") + 1]
        async with session.post(url, data=body, headers={kind: value}) as reply:
            told = await reply.json()
    assert told["choices"][0]["message"]["content"] and len(told["trace"]) == 3


async def test_the_python_example(blocks, engine, serve):
    (text,) = blocks["python"]
    ast.parse(text)
    async with serve(engine) as server:
        text = text.replace("http://127.0.0.1:8000", server.url)
        said = io.StringIO()

        def run():
            given = {}
            with contextlib.redirect_stdout(said):
                exec(compile(text, "docs/serving.md", "exec"), given)
            given["client"].close()

        await asyncio.to_thread(run)
    assert "solver agent 0" in said.getvalue() and "agent 2: " in said.getvalue()


def test_the_flags_of_the_examples_exist(blocks, launch_path):
    for line in "".join(blocks["sh"]).splitlines():
        if line.startswith("python"):
            words = line.partition("#")[0].split()
            name = Path(words[1]).stem
            commands = launch_path.parent / "mappa_jax" / "commands"
            source = (commands / f"{name}.py").read_text()
            source += (commands / "opening.py").read_text()
            for word in words[2:]:
                assert f'"{word[2:].partition("=")[0]}"' in source, word
