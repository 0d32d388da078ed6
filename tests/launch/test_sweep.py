"""launch/sweep.py: runs, goes on, gathers."""

import csv
import json
import shlex

import pytest

SWEEP = """
def get_sweep():
    return {{
        "config": "configs/tiny.py",
        "conditions": {{
            "process": {small},
            "shuffled": {small} | {{"reward.shuffle": True}},
        }},
        "seeds": (0,),
    }}
"""
SMALL = {
    "steps": 1,
    "data.prompts_per_step": 2,
    "data.eval_size": 2,
    "eval.at_start": True,
    "eval.at_end": True,
    "eval.samples": 1,
    "eval.bootstrap": 20,
}


@pytest.fixture(scope="module")
def sweep(launch, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    path = folder / "small.py"
    path.write_text(SWEEP.format(small=SMALL))

    def run(*more):
        where = (f"--sweep={path}", f"--workdir={folder / 'out'}")
        return launch("sweep.py", *where, f"--cache_dir={cache}", *more)

    run.path, run.out = path, folder / "out"
    return run


@pytest.fixture(scope="module")
def swept(sweep):
    done = sweep("--only=shuffled")
    assert done.returncode == 0, done.stderr
    return sweep, done


def test_it_prints_a_command_for_every_run(sweep):
    done = sweep("--print")
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(lines) == 2
    assert "--config.reward.shuffle=True" in lines[1]
    assert f"--workdir={sweep.out}/shuffled/seed_0" in lines[1]
    assert not sweep.out.exists()


def test_what_is_done_is_not_run_again(swept):
    sweep, first = swept
    assert "1/1 shuffled/seed_0: done" in first.stdout
    log = (sweep.out / "shuffled/seed_0/log.txt").read_bytes()
    again = sweep()
    assert again.returncode == 0, again.stderr
    assert "2 runs, 1 of them done" in again.stdout
    assert "process/seed_0: done" in again.stdout
    assert (sweep.out / "shuffled/seed_0/log.txt").read_bytes() == log

    with (sweep.out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["condition"], r["rollouts"]) for r in rows] == [
        ("process", "0"),
        ("process", "4"),
        ("shuffled", "0"),
        ("shuffled", "4"),
    ]
    # Common random numbers: the same start, the same first batch.
    assert rows[0]["success"] == rows[2]["success"]
    assert rows[1]["tokens"] == rows[3]["tokens"]
    assert "| shuffled | 1 |" in (sweep.out / "sweep.md").read_text()
    assert (sweep.out / "sweep.png").stat().st_size > 10_000
    first, second = (
        [json.loads(x)["task"]["id"] for x in path.read_text().splitlines()]
        for path in sweep.out.glob("*/seed_0/trajectories/step_000001.jsonl")
    )
    assert first == second


def test_a_run_that_fails_is_named_and_the_others_go_on(launch, cache, tmp_path):
    path = tmp_path / "bad.py"
    bad = SMALL | {"data.source": "jsonl:/no/such/file.jsonl"}
    path.write_text(SWEEP.format(small=bad))
    done = launch(
        "sweep.py",
        *(f"--sweep={path}", f"--workdir={tmp_path / 'out'}", f"--cache_dir={cache}"),
    )
    assert done.returncode == 1
    assert "failed: process/seed_0; see" in done.stderr
    assert "failed: shuffled/seed_0" in done.stderr
    assert "file.jsonl" in (tmp_path / "out/process/seed_0/log.txt").read_text()


def test_a_condition_that_cannot_be_is_refused_before_any_run(launch, tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(SWEEP.format(small={"stepz": 1}))
    done = launch("sweep.py", f"--sweep={path}", f"--workdir={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "process/seed_0" in done.stderr and "stepz" in done.stderr
    assert not (tmp_path / "out").exists()


def test_settings_that_have_changed_are_refused(swept, launch, cache):
    sweep, _ = swept
    other = sweep.path.with_name("other.py")
    other.write_text(SWEEP.format(small=SMALL | {"steps": 2}))
    done = launch(
        "sweep.py",
        *(f"--sweep={other}", f"--workdir={sweep.out}", f"--cache_dir={cache}"),
    )
    assert done.returncode == 2
    assert "other settings" in done.stderr
    assert "steps was 1, is 2" in done.stderr
