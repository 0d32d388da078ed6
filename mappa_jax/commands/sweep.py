"""Runs a sweep, conditions times seeds, and gathers what came of it.

  python launch/sweep.py --sweep=configs/sweeps/credit.py --workdir=runs/credit
  python launch/sweep.py --sweep=... --workdir=... --print     # the commands, only
  python launch/sweep.py --sweep=... --workdir=... --gather    # the table, only

Each run is one of launch/train.py, in WORKDIR/CONDITION/seed_N, with its output in
log.txt. The same command goes on after a stop: what is done is not run again, what was
under way goes on. --print is for job arrays: a line is a run, and the order is that in
which they are to be started. mappa_jax/sweeps.py says what a sweep file is.

It leaves WORKDIR/sweep.md (a table with paired bootstrap intervals over seeds),
sweep.csv (every held-out result) and sweep.png.
"""

from __future__ import annotations

import csv
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from absl import flags

from mappa_jax.commands import common

_SWEEP = flags.DEFINE_string("sweep", None, "The sweep file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the sweep.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
_ONLY = flags.DEFINE_list("only", [], "These conditions alone.")
_PRINT = flags.DEFINE_boolean("print", False, "Print the commands; run nothing.")
_GATHER = flags.DEFINE_boolean("gather", False, "Gather; run nothing.")
_SUCCESS = flags.DEFINE_float("success", 0.8, "Rollouts are counted up to this.")
_CACHE = flags.DEFINE_string("cache_dir", common.CACHE, "Weights and programs.")
flags.mark_flags_as_required(["sweep", "workdir"])

TRAIN = "mappa_jax.commands.train"
DONE = "done"  # left in the folder of a run that has ended well


def main(argv: list[str]) -> int:
    common.begin(argv)
    from mappa_jax import sweeps

    workdir = Path(_WORKDIR.value)
    everyone = sweeps.load_sweep(_SWEEP.value)
    members = sweeps.chosen(everyone, _ONLY.value)
    if _PRINT.value:
        for member in members:
            print(shlex.join(command(member, workdir)))
        return 0
    configs = {m.name: resolved(m) for m in everyone}  # each refused before any is run
    ended = {m.name for m in everyone if is_done(m, configs[m.name], workdir)}
    failed = [] if _GATHER.value else run_all(members, ended, workdir)
    gather(everyone, configs, workdir)
    for name in failed:
        print(f"failed: {name}; see {workdir / name / 'log.txt'}", file=sys.stderr)
    return 1 if failed else 0


def command(member: Any, workdir: Path) -> list[str]:
    """The command line of a run."""
    where = f"--workdir={workdir / member.name}"
    cache = f"--cache_dir={_CACHE.value}"
    return [sys.executable, "-m", TRAIN, *member.flags(), where, cache]


def resolved(member: Any) -> Any:
    """The config of a run.

    Raises:
      ConfigError: naming the run.
    """
    from mappa_jax.assemble import seat_agents
    from mappa_jax.config import ConfigError, resolve
    from mappa_jax.plugins import run_file

    file, _, argument = member.config.partition(":")
    try:
        config = run_file(file).get_config(*([argument] if argument else []))
        config.update_from_flattened_dict(dict(member.overrides))
        return seat_agents(resolve(config))
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as e:
        raise ConfigError(f"{_SWEEP.value}: {member.name}: {e}") from e


def run_all(members: list[Any], done: Collection[str], workdir: Path) -> list[str]:
    """Runs those that are not done; the names of those that failed."""
    lock, stop = threading.Lock(), threading.Event()
    under_way: set[subprocess.Popen[bytes]] = set()
    failed: list[str] = []
    waiting = [m for m in members if m.name not in done]
    ended = len(members) - len(waiting)
    print(f"{len(members)} runs, {ended} of them done", flush=True)

    def one(member: Any) -> None:
        nonlocal ended
        folder = workdir / member.name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("ab") as log:
            with lock:
                if stop.is_set():
                    return
                process = subprocess.Popen(
                    command(member, workdir),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is passed on below, once
                )
                under_way.add(process)
            code = process.wait()
        with lock:
            under_way.discard(process)
            if stop.is_set():
                return
            ended += 1
            if code:
                failed.append(member.name)
            else:
                (folder / DONE).touch()
            said = f"exit {code}" if code else "done"
            print(f"{ended}/{len(members)} {member.name}: {said}", flush=True)

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    pool = ThreadPoolExecutor(_JOBS.value)
    runs = [pool.submit(one, member) for member in waiting]
    try:
        for run in runs:
            run.result()
    except KeyboardInterrupt:
        with lock:
            stop.set()
            for process in under_way:
                process.terminate()
        print("stopping; the runs under way are saved", file=sys.stderr, flush=True)
        pool.shutdown(cancel_futures=True)
        sys.exit(common.INTERRUPTED)
    return failed


def is_done(member: Any, config: Any, workdir: Path) -> bool:
    """Whether it has ended, with this config.

    Raises:
      ConfigError: it has ended with others.
    """
    from mappa_jax.config import ConfigError

    folder = workdir / member.name
    if not (folder / DONE).exists():
        return False
    changed = common.differences(common.read_config(folder), config, but=())
    if changed:
        raise ConfigError(
            f"{folder}: was run with other settings than {_SWEEP.value} now gives: "
            + "; ".join(changed[:5])
            + ". Use another --workdir, or remove that folder"
        )
    return True


def gather(members: list[Any], configs: dict[str, Any], workdir: Path) -> None:
    """Writes and prints what the runs that are done have come to."""
    from mappa_jax import sweeps

    curves: dict[str, dict[int, Any]] = {m.condition: {} for m in members}
    for member in members:
        if is_done(member, configs[member.name], workdir):
            data = configs[member.name].data
            per_step = data.prompts_per_step * data.samples_per_prompt
            curve = sweeps.read_curve(workdir / member.name, per_step)
            if curve is not None:
                curves[member.condition][member.seed] = curve
    if not any(curves.values()):
        print(f"{workdir}: no run with an evaluation is done yet")
        return
    text = sweeps.markdown(sweeps.table(curves, _SUCCESS.value), _SUCCESS.value)
    ended = next(curve for runs in curves.values() for curve in runs.values())
    for source in ended.by_source if len(ended.by_source) > 1 else ():
        rows = sweeps.table(sweeps.of_source(curves, source), _SUCCESS.value)
        text += f"\n{source}\n\n{sweeps.markdown(rows, _SUCCESS.value)}"
    (workdir / "sweep.md").write_text(text)
    with (workdir / "sweep.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        sources = [*ended.by_source]
        lines.writerow(["condition", "seed", "rollouts", "tokens", "success", *sources])
        for name, runs in curves.items():
            for seed, curve in runs.items():
                apart = [curve.by_source[source] for source in sources]
                columns = (curve.rollouts, curve.tokens, curve.success, *apart)
                points = zip(*columns, strict=True)
                lines.writerows([name, seed, *point] for point in points)
    draw(curves, workdir / "sweep.png")
    print(text)
    print(f"left in {workdir}: sweep.md, sweep.csv, sweep.png")


def draw(curves: dict[str, dict[int, Any]], out: Path) -> None:
    """Success over rollouts and over sampled tokens: means over seeds, with twice their
    standard error where there are several."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.ticker import EngFormatter

    figure, panels = plt.subplots(1, 2, figsize=(12, 4.8), sharey=True)
    titles = {"rollouts": "trajectories trained on", "tokens": "tokens sampled"}
    done = {name: [*runs.values()] for name, runs in curves.items() if runs}
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for i, (name, runs) in enumerate(done.items()):
            least = min(len(c.success) for c in runs)
            x = np.mean([getattr(c, key)[:least] for c in runs], 0)
            y = np.asarray([c.success[:least] for c in runs])
            error = 2 * y.std(0, ddof=1) / len(y) ** 0.5 if len(y) > 1 else None
            panel.errorbar(
                *(x + (i - len(done) / 2) * 0.003 * x[-1], y.mean(0), error),
                color=f"C{i % 10}",
                linestyle="-" if i < 10 else "--",
                marker="o",
                markersize=3,
                capsize=2,
                linewidth=1.2,
                label=f"{name} ({len(y)})",
            )
        panel.set(xlabel=title, ylim=(0, None))
        panel.xaxis.set_major_formatter(EngFormatter())
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="success on held-out problems")
    panels[1].legend(
        title="condition (seeds)",
        fontsize=8,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    figure.tight_layout()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
