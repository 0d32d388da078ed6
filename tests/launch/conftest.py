"""The launch scripts as a person runs them, a run of one iteration, a paid judge."""

import asyncio
import os
import subprocess
import sys
import threading
import zlib

import pytest
from judge_server import OpenAI, Plain, Server

LETTERS = tuple("abcdefgh")
TINIER = {
    "steps": 1,
    "data.prompts_per_step": 2,
    "data.eval_size": 2,
    "eval.temperature": 0.0,
    "eval.bootstrap": 20,
}
# The judge gives points for having ended, and a random model ends at a stop string
# only: so that scores differ and the weights move, far enough to be seen.
LEARNS = {"stop": LETTERS, "learning_rate": 0.03}


@pytest.fixture(scope="session")
def command(launch_path):
    """(script, arguments) -> what subprocess needs to run it."""

    def make(script, *arguments):
        return {
            "args": [sys.executable, str(launch_path / script), *map(str, arguments)],
            "text": True,
            "cwd": launch_path.parent,
            "env": os.environ | {"XLA_FLAGS": "", "COLUMNS": "120"},
        }

    return make


@pytest.fixture(scope="session")
def launch(command):
    """(script, arguments) -> what became of it."""

    def run(script, *arguments, env={}):  # noqa: B006
        made = command(script, *arguments)
        made["env"] |= env
        return subprocess.run(capture_output=True, timeout=300, **made)

    return run


@pytest.fixture(scope="session")
def plan_python(launch_path):
    """The interpreter of the environment with libtpu; `make plan-env` makes it."""
    return launch_path.parent / ".venv-plan" / "bin" / "python"


@pytest.fixture(scope="session")
def train_arguments(cache):
    """(workdir, changes) -> the arguments of launch/train.py on configs/tiny.py,
    smaller still."""

    def make(workdir, **changes):
        agents = {
            f"agents.{name}.{key}": value
            for name in ("solver", "coder", "verifier")
            for key, value in LEARNS.items()
        }
        settings = TINIER | agents | changes
        return [
            "--config=configs/tiny.py",
            f"--workdir={workdir}",
            f"--cache_dir={cache}",
            *(f"--config.{key}={value}" for key, value in settings.items()),
        ]

    return make


@pytest.fixture(scope="session")
def train(launch, train_arguments):
    """(workdir, changes) -> what became of a run."""
    return lambda workdir, **changes: launch(
        "train.py", *train_arguments(workdir, **changes)
    )


@pytest.fixture(scope="session")
def trained(train, tmp_path_factory):
    """The workdir of a run of one iteration; tests work on copies."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    done = train(workdir)
    assert done.returncode == 0, done.stderr
    return workdir


class Paid(Plain):
    """Without schemas; scores by what it is shown, and says who asked for what, in
    order."""

    async def handle(self, request):
        body = await request.text()
        if "response_format" not in body:  # what is refused is not paid for
            self.prompts.append(OpenAI.prompt(body))
        await asyncio.sleep(0.05)
        return await super().handle(request)

    def __init__(self):
        super().__init__(score=lambda body: zlib.crc32(body.encode()) % 100 / 10)
        self.prompts = []


@pytest.fixture(scope="module")
def server():
    """A paid judge in a thread of its own; its address is `url`."""
    server, ready, stop = Paid(), threading.Event(), None

    async def serve():
        nonlocal stop
        stop = asyncio.Event()
        async with Server.url(server) as server.address:
            ready.set()
            await stop.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    yield server
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()
