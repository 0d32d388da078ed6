"""What the commands share: environment, errors, and the parts of a run."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

CACHE = "~/.cache/mappa_jax"
# What may differ when a run goes on: how far, and how its judge is called, but nothing
# that an answer depends on.
CHANGEABLE = (
    "steps",
    *("judge.budget", "judge.concurrency", "judge.rpm", "judge.tpm", "judge.hedge"),
    *("judge.deadline_s", "judge.outage_s", "judge.max_missing", "judge.prices"),
    # How the arrays lie, which no number depends on but by rounding.
    *("mesh", "packing.rows", "sampler.slots", "sampler.prefill_rows", "remat"),
    "loggers",
)
INTERRUPTED = 130
REFUSED = 2
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, a limit


def prepare_environment() -> None:
    """Quiet libraries, and memory that is kept; must run before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Tells glibc to reuse large buffers instead of giving them back.

    XLA allocates its temporaries anew at every call on the CPU, and the first touch
    of fresh pages costs more than filling them: gigabytes per update.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4  # malloc.h
        libc.mallopt(trim_threshold, -1)  # never
        libc.mallopt(mmap_max, 0)


def api_keys() -> dict[str, str | None]:
    """The judges' keys by provider, from the environment and nowhere else."""
    from mappa_jax.judges.registry import PROVIDERS

    return {name: os.environ.get(one.key) for name, one in PROVIDERS.items()}


def run_app(main: Callable[[list[str]], int | None]) -> None:
    """absl's app.run, with our errors as one clear line and their exit codes.

    Exit codes: 0 done, 1 an unexpected error (with its traceback), 2 refused or
    stopped with a reason, 130 interrupted.
    """
    prepare_environment()
    from absl import app

    _present(sys.modules[main.__module__])
    try:
        app.run(main, flags_parser=_parse_flags)
    except KeyboardInterrupt:
        print("interrupted; nothing was under way that needed saving", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as e:
        if several_hosts():
            leave(e)
        said = _explained(e)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(REFUSED)


def _present(module: ModuleType) -> None:
    """Makes --help show the command's own text and flags, whatever script runs it."""
    from absl import flags

    sys.modules["__main__"].__doc__ = module.__doc__
    for flag in flags.FLAGS.get_key_flags_for_module(module):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _explained(error: BaseException) -> str | None:
    """An error of ours, or of another host's loss, as one line."""
    error = _innermost(error)
    if isinstance(error, OSError) and error.errno in FULL:
        return _full_disk(error)
    if isinstance(error, _expected()):
        return str(error)
    if several_hosts():
        import jax

        from mappa_jax.parallel.hosts import is_lost, lost

        if isinstance(error, jax.errors.JaxRuntimeError) and is_lost(error):
            return str(lost(error))
    return None


def several_hosts() -> bool:
    """Whether this process has joined others."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def push_or_say(workdir: Any) -> None:
    """Sends a workdir's files to where it is kept, while another error ends the run."""
    from mappa_jax.remote import RemoteError

    try:
        workdir.push()
    except RemoteError as e:
        print(f"error: {e}\nthe files are in {workdir.local}", file=sys.stderr)


def leave(error: BaseException) -> NoReturn:
    """Ends one of several processes at once, so that the others notice.

    An ordinary exit would wait for them, who may be waiting for this one.
    """
    said = _explained(error)
    if said is None:
        traceback.print_exception(error)
    else:
        print(f"error: {said}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(REFUSED if said is not None else 1)


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser; an override of a key that does not exist is a ConfigError."""
    from absl import app

    from mappa_jax.config import ConfigError

    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as e:  # of ml_collections, which name the key
        said: object = e
        while isinstance(said, Exception) and said.args:
            said = said.args[0]
        raise ConfigError(f"config: no such key: {said}".replace("\n", "; ")) from e
    except TypeError as e:  # of ml_collections too, which does not name the key
        given = [arg.partition("=")[0] for arg in argv if arg.count(".") > 1]
        raise ConfigError(
            f"config: no such key: one of {given} goes on below a key that has none"
        ) from e


def resolve_flag(value: Any) -> Any:
    """The `Config` of a config-file flag.

    Raises:
      ConfigError: the file cannot be loaded, or does not resolve.
    """
    from mappa_jax.config import ConfigError, resolve

    try:
        value.lock()  # of a file that did not load, any use raises why
    except OSError as e:
        raise ConfigError(f"--config: {str(e).splitlines()[-1].strip()}") from e
    return resolve(value)


def _full_disk(error: OSError) -> str:
    """The error, the path and the remedy."""
    from absl import flags

    # A failed write, unlike a failed open, does not know its file.
    given = flags.FLAGS.flag_values_dict()
    path = error.filename or given.get("workdir") or given.get("cache_dir")
    return (
        f"{path}: {error.strerror}. What was saved before is whole; free some space "
        "and run the same command again"
    )


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _expected() -> tuple[type[Exception], ...]:
    from mappa_jax.answers import GradingError
    from mappa_jax.checkpoints import CheckpointError
    from mappa_jax.config import ConfigError
    from mappa_jax.data import DataError
    from mappa_jax.hosts import HostLost
    from mappa_jax.judges import JudgeError
    from mappa_jax.metrics import MetricsError
    from mappa_jax.models.config import ModelError
    from mappa_jax.records import RecordError
    from mappa_jax.remote import RemoteError
    from mappa_jax.tools import SandboxError
    from mappa_jax.traces import TraceError
    from mappa_jax.train import TooManyMissing

    return (
        CheckpointError,
        ConfigError,
        DataError,
        GradingError,
        HostLost,
        JudgeError,
        MetricsError,
        ModelError,
        RecordError,
        RemoteError,
        SandboxError,
        TooManyMissing,
        TraceError,
    )


def run_until_interrupted(
    work: Coroutine[Any, Any, Any],
    stopped: str = "saved; the same command goes on from there",
    hosts: Any = None,
) -> Any:
    """Runs `work`; the first SIGINT or SIGTERM cancels it, so that it can save.

    Exits with 130 (143 for SIGTERM) once it has, saying `stopped`. On several `hosts`
    nothing is cancelled: the hosts are told, and stop together at the next point where
    they meet; so a host exits with 143 also where another was told.
    """
    received: list[int] = []

    async def main() -> Any:
        task = asyncio.create_task(work)
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            received.append(number)
            print("\nstopping ...", file=sys.stderr, flush=True)
            if hosts is None or hosts.count == 1:
                task.cancel()
            else:
                hosts.stopping = True

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        return await task

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if not received:
            raise
        print(stopped, file=sys.stderr)
        sys.exit(128 + received[0])
    except Exception as e:
        from mappa_jax.hosts import Stopped

        if not isinstance(_innermost(e), Stopped):
            raise
        print(f"{_innermost(e)}; {stopped}", file=sys.stderr)
        sys.exit(128 + (received or [signal.SIGTERM])[0])


def open_workdir(where: str, cache: Path | str = CACHE) -> Any:
    """The run's folder (`mappa_jax.remote.Workdir`), its files brought here if remote.

    Raises:
      ConfigError: the storage cannot be read.
    """
    from mappa_jax.config import ConfigError
    from mappa_jax.remote import Workdir

    try:
        workdir = Workdir(where, Path(cache))
        workdir.pull()
    except (ImportError, OSError, ValueError) as e:
        raise ConfigError(
            f"--workdir={where}: cannot be read ({e}); gs:// needs the package gcsfs "
            "(pip install -e '.[gcs]') and credentials"
        ) from e
    return workdir


def with_mesh(config: Any, sizes: Sequence[str] | None) -> Any:
    """The config with --mesh in place of its mesh.

    Raises:
      ConfigError: that is not four whole numbers.
    """
    from mappa_jax.config import ConfigError, changed
    from mappa_jax.parallel.mesh import AXES

    if sizes is None:
        return config
    try:
        numbers = [int(size) for size in sizes]
    except ValueError:
        numbers = []
    if len(numbers) != len(AXES):
        raise ConfigError(
            f"--mesh={','.join(sizes)}: expected sizes of {', '.join(AXES)}: 1,1,8,1"
        )
    keys = (f"mesh.{axis}" for axis in AXES)
    return changed(config, dict(zip(keys, numbers, strict=True)))


async def agree(hosts: Any, what: str, value: Any, seen: Path | None = None) -> None:
    """Refuses to go on where hosts differ.

    Args:
      hosts: of the run.
      what: a name for `value`.
      value: what must be the same on all.
      seen: a file that host 0 has written.

    Raises:
      ConfigError: they differ, or one does not see the file.
    """
    from mappa_jax.config import ConfigError

    await hosts.gather(None)  # host 0 has written before it comes here
    told = await hosts.gather((value, seen is None or seen.exists()))
    for host, (other, sees) in enumerate(told):
        if not sees and not is_remote_mirror(seen):
            raise ConfigError(
                f"--workdir: host {host} does not see {seen}, which host 0 has "
                "written; all hosts must share the folder (or use gs://...)"
            )
        if other != told[0][0]:
            raise ConfigError(
                f"hosts 0 and {host} differ in their {what}: start the same command, "
                "on the same workdir, on all of them"
            )


def is_remote_mirror(path: Path | None) -> bool:
    """Whether a file lies in the local mirror of a remote workdir, each host's own."""
    from mappa_jax.remote import MIRRORS

    return path is not None and MIRRORS in path.parts


def claim_workdir(workdir: Path, config: Any, write: bool = True) -> None:
    """Writes config.json, or checks that the run which has begun there is the same.

    Of several hosts one may `write`.

    Raises:
      ConfigError: the workdir holds another config's run; the keys are named.
    """
    from mappa_jax import config as configs

    path = workdir / "config.json"
    mine = configs.to_dict(config)
    started = any((workdir / "checkpoints").glob("*")) or any(
        (workdir / "trajectories").glob("*")
    )
    if path.exists() and started:
        different = differences(read_config(workdir), config)
        if different:
            raise configs.ConfigError(
                f"{workdir} holds a run of another config: "
                + "; ".join(different[:5])
                + ". Use another --workdir, or the config of that run (only "
                + ", ".join(CHANGEABLE)
                + " may be changed)"
            )
    if not write:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as e:
        raise configs.ConfigError(f"--workdir={workdir}: not a folder") from e
    part = path.with_suffix(".part")
    part.write_text(json.dumps(mine, indent=1) + "\n")
    part.replace(path)


def read_config(workdir: Path) -> Any:
    """The config of the run in `workdir`.

    Raises:
      ConfigError: there is none, or it is damaged.
    """
    from mappa_jax import config as configs

    path = workdir / "config.json"
    try:
        return configs.resolve(json.loads(path.read_text()))
    except FileNotFoundError as e:
        raise configs.ConfigError(f"{workdir}: no config.json: not a workdir") from e
    except json.JSONDecodeError as e:
        raise configs.ConfigError(f"{path}: line {e.lineno}: {e.msg}") from e


def parse_steps(flag: str, text: str) -> range:
    """The iterations of "first:last", both included, or of one number.

    Raises:
      ConfigError: `text`, of --`flag`, is not of that form.
    """
    from mappa_jax.config import ConfigError

    first, _, last = text.partition(":")
    if not (first.isdecimal() and (last.isdecimal() or not last)):
        raise ConfigError(f"--{flag}={text}: expected first:last, for example 1:20")
    if int(last or first) < int(first):
        raise ConfigError(f"--{flag}={text}: the last comes before the first")
    return range(int(first), int(last or first) + 1)


def read_training(workdir: Path, steps: str) -> list[Any]:
    """The recorded trajectories of a run's iterations.

    Args:
      workdir: of the run.
      steps: "first:last", both included, or "" for all.

    Raises:
      ConfigError: there are none, or `steps` is not of that form.
    """
    from mappa_jax import records
    from mappa_jax.config import ConfigError

    chosen = parse_steps("steps", steps) if steps else range(10**9)
    out = []
    for step, path in records.training_files(workdir):
        if step in chosen:
            out += records.read_trajectories(path)
    if not out:
        raise ConfigError(
            f"{workdir}: no trajectories of iterations {steps or 'at all'}"
        )
    return out


def differences(theirs: Any, mine: Any, but: Sequence[str] = CHANGEABLE) -> list[str]:
    """What is not the same in two configs, in words; of the keys `but`, nothing."""
    from mappa_jax.config import to_dict

    return _differences(to_dict(theirs), to_dict(mine), but, "")


def _differences(theirs: Any, mine: Any, but: Sequence[str], path: str) -> list[str]:
    if isinstance(theirs, dict) and isinstance(mine, dict):
        rows = []
        for key in sorted({*theirs, *mine}):
            below = f"{path}.{key}" if path else key
            if below not in but:
                rows += _differences(theirs.get(key), mine.get(key), but, below)
        return rows
    return [] if theirs == mine else [f"{path} was {theirs!r}, is {mine!r}"]


def progress(config: Any, hosts: Any) -> Any:
    """What a person sees of a run (`console.ConsoleProgress`): plain lines in CI."""
    from mappa_jax.commands.console import ConsoleProgress

    return ConsoleProgress(
        config.steps,
        list(config.agents),
        quiet=hosts.index > 0,
        plain=bool(os.environ.get("CI")),
    )


def begin(argv: list[str]) -> None:
    """Refuses positional arguments, and quiets chatty libraries (--verbosity=0)."""
    from absl import flags, logging

    from mappa_jax.config import ConfigError

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)

    if len(argv) > 1:
        raise ConfigError(f"unexpected arguments {argv[1:]}; options start with --")
