"""The client of SandboxFusion, against a server that speaks its protocol."""

import asyncio
import base64
import dataclasses
import io
import json
import zipfile

import pytest
from aiohttp import web
from fusion_server import FusionServer

from mappa_jax.config import SandboxConfig
from mappa_jax.tools import SandboxError, fusion, make_sandbox
from mappa_jax.types import FileTooLarge

CONFIG = SandboxConfig(
    backend="sandbox_fusion", wall_seconds=5.0, disk_mb=1, output_bytes=4096, workers=2
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(fusion, "FIRST_PAUSE_S", 0.01)


def drive(work, server=None, **changes):
    """What `work(sandbox)` gives, against a running server."""

    async def main():
        async with (server or FusionServer()).running() as url:
            config = dataclasses.replace(CONFIG, base_url=url, **changes)
            sandbox = make_sandbox(config)
            try:
                return await work(sandbox)
            finally:
                await sandbox.aclose()

    return asyncio.run(main())


def run(*programs, files=None, server=None, **changes):
    async def episode(sandbox):
        async with sandbox.workspace(files or {}) as workspace:
            return [await workspace.run(program) for program in programs]

    return drive(episode, server, **changes)


def test_check_passes():
    drive(lambda sandbox: sandbox.check())


def test_files_stay_between_runs_although_the_server_keeps_nothing(tmp_path):
    (tmp_path / "train.csv").write_text("a\n1\n")
    first, second = run(
        "import os\nos.mkdir('d')\nopen('d/b', 'wb').write(bytes(range(256)))\n"
        "open('c', 'w').write('1')\nprint(open('train.csv').read())\n"
        "os.symlink('/etc/passwd', 'link')",
        "print(len(open('d/b', 'rb').read()))\nopen('c', 'w').write('2')",
        files={"train.csv": str(tmp_path / "train.csv")},
    )
    assert first.stdout == "a\n1\n\n" and first.files == ("c", "d/b")
    assert second.files_before == ("c", "d/b") and second.changed == ("c",)
    assert second.stdout == "256\n"


def test_an_exception_and_an_exit_status_are_observations():
    crash, leave = run("1 / 0", "import os\nos._exit(3)")
    assert crash.exit_status == 1 and "ZeroDivisionError" in crash.stderr
    assert leave.exit_status == 3 and crash.limit is leave.limit is None


def test_a_crash_keeps_what_was_written_before():
    (seen,) = run("open('a', 'w').write('x')\nimport os\nos.kill(os.getpid(), 9)")
    assert seen.exit_status == -9 and seen.files == ("a",)


@pytest.mark.parametrize(
    "limit, program",
    [
        ("wall_time", "print('so far', flush=True)\nimport time\ntime.sleep(60)"),
        ("output", "print('x' * 10000)"),
        ("disk", "open('big', 'wb').write(bytes(2 * 10**6))"),
    ],
)
def test_limits_are_named(limit, program):
    (seen,) = run(program, wall_seconds=1.0)
    assert seen.limit == limit and len(seen.stdout) <= CONFIG.output_bytes
    assert seen.stdout.startswith("so far") == (limit == "wall_time")


def test_a_file_is_read_out_if_small():
    async def episode(sandbox):
        async with sandbox.workspace() as workspace:
            await workspace.run("open('a', 'w').write('xy')")
            with pytest.raises(FileTooLarge):
                await workspace.read("a", 1)
            return await workspace.read("a", 2), await workspace.read("b", 2)

    assert drive(episode) == (b"xy", None)


def test_no_more_runs_than_workers():
    server = FusionServer()

    async def crowd(sandbox):
        async def one():
            async with sandbox.workspace() as workspace:
                await workspace.run("import time\ntime.sleep(0.2)")

        await asyncio.gather(*(one() for _ in range(6)))

    drive(crowd, server)
    assert len(server.calls) == 6 and server.most_busy == 2


FAULTS = {
    "a server error": lambda: web.Response(status=500, text="overloaded"),
    "a page": lambda: web.Response(text="<html>hello</html>"),
    "the sandbox's own error": lambda: web.json_response(
        {"status": "SandboxError", "message": "no pod"}
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_passing_fault_of_the_server_is_tried_again(fault):
    server = FusionServer(lambda number: fault() if number < 3 else None)
    (seen,) = run("print(1)", server=server)
    assert seen.stdout == "1\n" and len(server.calls) == 3


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_lasting_fault_is_the_sandboxs_and_no_observation(fault):
    server = FusionServer(lambda number: fault())
    with pytest.raises(SandboxError, match="sandbox.base_url"):
        run("print(1)", server=server)
    assert len(server.calls) == fusion.TRIES


def test_nobody_there_is_named():
    async def main():
        config = dataclasses.replace(CONFIG, base_url="http://127.0.0.1:9")
        sandbox = make_sandbox(config)
        try:
            await sandbox.check()
        finally:
            await sandbox.aclose()

    with pytest.raises(SandboxError, match="sandbox.base_url='http://127.0.0.1:9'"):
        asyncio.run(main())


def packed(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return base64.b64encode(out.getvalue()).decode()


def answer(files_zip):
    result = {"status": "Finished", "return_code": 0, "stdout": "", "stderr": ""}
    files = {f"{fusion.MAPPA}/files.zip": files_zip}
    return web.json_response(
        {"status": "Success", "message": "", "run_result": result, "files": files}
    )


END = json.dumps({"status": 0, "limit": None})
BAD = {
    "no archive": "AAAA",
    "no base64": "%%%",
    "a bomb": packed({f"{fusion.MAPPA}/end.json": END, "a": bytes(10**8)}),
    "no end": packed({"a": "x"}),
    "an end that is no number": packed({f"{fusion.MAPPA}/end.json": '{"status": []}'}),
}


@pytest.mark.parametrize("files_zip", BAD.values(), ids=BAD)
def test_what_comes_back_is_checked(files_zip):
    with pytest.raises(SandboxError):
        run("1", server=FusionServer(lambda number: answer(files_zip)))


def test_names_that_lead_out_are_dropped():
    members = {f"{fusion.MAPPA}/end.json": END, "../x": "1", "/y": "2", "z": "3"}
    server = FusionServer(lambda number: answer(packed(members)))
    (seen,) = run("1", server=server)
    assert seen.files == ("z",)


def test_odd_times_and_names_lose_no_file():
    (seen,) = run(
        "import os\nopen('old', 'w').write('x')\nos.utime('old', (0, 0))\n"
        "open(b'\\xff', 'w').write('y')"
    )
    assert seen.files == ("\\xff", "old")


HARMFUL = {
    "the runner killed": "import os\nos.kill(os.getppid(), 15)",
    "the runner's folder removed": f"import shutil\nshutil.rmtree('{fusion.MAPPA}')",
}


@pytest.mark.parametrize("program", HARMFUL.values(), ids=HARMFUL)
def test_what_a_program_does_to_its_runner_is_its_own_end(program):
    first, second, third = run("open('kept', 'w').write('x')", program, "print(1)")
    assert second.limit == "supervision" and not second.ok
    assert first.files == second.files == third.files == ("kept",)


def test_a_file_that_is_called_like_a_module_hurts_no_later_run():
    _, second = run("open('json.py', 'w').write('raise SystemExit(5)')", "print(1)")
    assert second.stdout == "1\n"
