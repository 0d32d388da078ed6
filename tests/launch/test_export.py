"""launch/export.py as a person runs it; the team that it leaves trains on."""

import json
import shutil

import pytest


@pytest.fixture(scope="module")
def export(launch, cache):
    def run(workdir, out, *more):
        given = (f"--workdir={workdir}", f"--out={out}", f"--cache_dir={cache}")
        return launch("export.py", *given, *more)

    return run


@pytest.fixture(scope="module")
def exported(export, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "team"
    done = export(trained, out)
    assert done.returncode == 0, done.stderr
    assert "after 1 iterations" in done.stdout and str(out / "coder") in done.stdout
    return out


def test_the_exported_team_trains_on(exported, launch, train_arguments, tmp_path):
    """The reference policy is what was exported, so the first KL is nothing."""
    models = [
        f"--config.agents.{name}.model={exported / name}"
        for name in ("solver", "coder", "verifier")
    ]
    done = launch("train.py", *train_arguments(tmp_path / "run"), *models)
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert abs(row["agents/solver/kl"]) < 1e-5 < row["agents/solver/grad_norm"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--adapters=peft"], "the run's mode is 'full'"),
        (["--step=7"], "those are [1]"),
        (["--out=gs://bucket/team"], "local folder"),
    ],
)
def test_what_cannot_be_is_refused(export, trained, tmp_path, flags, said):
    done = export(trained, tmp_path / "out", *flags)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_without_a_checkpoint_is_refused(export, trained, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copyfile(trained / "config.json", workdir / "config.json")
    done = export(workdir, tmp_path / "out")
    assert done.returncode == 2 and "train first" in done.stderr


def test_a_damaged_line_of_the_results_is_named(export, trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    (workdir / "evaluations.jsonl").write_text("{broken\n")
    done = export(workdir, tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "evaluations.jsonl:1: not JSON" in done.stderr
