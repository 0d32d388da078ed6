"""Reading a folder, whole, half-written or damaged."""

import copy
import shutil

import pytest
from made_runs import write_lines, write_run

from mappa_jax import records
from mappa_jax.config import ConfigError
from mappa_jax.records import RecordError
from mappa_jax.report.build import Builder
from mappa_jax.report.workdir import read_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", steps=3, tasks=2, attack=False)


def names(found):
    return [(file.set, file.step) for file in found.files]


def test_files_are_told_apart_by_their_names(run):
    folder = run / "trajectories"
    for label in ("single", "untrained"):
        shutil.copy(
            folder / "eval_000000_sums.jsonl",
            folder / f"eval_000000_{label}_sums.jsonl",
        )
    rows = [*read_run(run).evaluations]
    write_lines(
        run / "evaluations.jsonl",
        [*rows, *({**rows[0], "label": x} for x in ("single", "untrained"))],
    )
    assert names(read_run(run)) == [
        *(("training", step) for step in (1, 2, 3)),
        *(("single", 0), ("team", 0), ("untrained", 0), ("team", 3)),
    ]


def test_a_data_set_may_be_called_like_a_control(run):
    path = run / "trajectories" / "eval_000003_sums.jsonl"
    path.rename(path.with_name("eval_000003_single_digits.jsonl"))
    assert names(read_run(run))[-1] == ("team", 3)


def test_a_line_that_is_being_written_is_left_out(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "agen')
    assert [row["step"] for row in read_run(run).metrics] == [1, 2, 3]


def test_an_evaluation_that_was_made_again_is_shown_once(run, read_json):
    rows = read_run(run).evaluations
    again = copy.deepcopy(rows[-1])
    again["sources"]["sums"]["avg"] = 0.875
    write_lines(run / "evaluations.jsonl", [*rows, again])
    shown = read_json(Builder(run).build().overview)["panels"]
    (series,) = next(p for p in shown if p["id"] == "avg")["series"]
    assert series["x"] == [0, 3] and series["y"][-1] == 0.875


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl"])
@pytest.mark.parametrize("line", ["{broken", "[1]", '{"other": 1}'])
def test_a_damaged_line_is_named(run, name, line):
    path = run / name
    path.write_text(f"{line}\n{path.read_text()}")
    with pytest.raises(RecordError, match=rf"{name}:1: .*"):
        read_run(run)


def test_a_damaged_trajectory_is_named(run):
    path = records.training_path(run, 2)
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(RecordError, match=r"step_000002\.jsonl:5"):
        Builder(run).build()


def test_credit_of_other_trajectories_is_refused(run):
    shutil.copy(records.credit_path(run, 1), records.credit_path(run, 2))
    text = records.credit_path(run, 2).read_text().replace("train-1", "train-9")
    records.credit_path(run, 2).write_text(text)
    with pytest.raises(RecordError, match=r"credit_000002\.jsonl: not the credit of"):
        Builder(run).build()


def test_an_empty_folder_has_nothing_to_show(tmp_path):
    with pytest.raises(ConfigError, match="nothing to draw yet"):
        read_run(tmp_path)


def test_what_a_resumed_run_has_gone_back_on_is_not_shown(run):
    """Resumed after iteration 1, it is about to write over iterations 2 and 3."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0])
    evaluations = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (run / "evaluations.jsonl").write_text(evaluations[0])
    found = read_run(run)
    assert names(found) == [("training", 1), ("training", 2), ("team", 0)]
    assert found.undone == ("step_000003.jsonl", "eval_000003_sums.jsonl")


@pytest.mark.parametrize(
    "gone", ["metrics.jsonl", "evaluations.jsonl", "trajectories", "config.json"]
)
def test_a_report_is_made_of_what_there_is(run, gone, read_json):
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    report = Builder(run).build()
    overview = read_json(report.overview)
    assert overview["verdict"]["headline"]
    if gone == "metrics.jsonl":
        assert any("no learning curves" in note for note in overview["notes"])
    if gone == "trajectories":
        assert any("no episodes" in note for note in overview["notes"])
    if gone == "evaluations.jsonl":
        assert overview["verdict"]["tone"] == "unknown"


def test_a_folder_with_evaluations_only(run, read_json):
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "trajectories")
    assert read_json(Builder(run).build().overview)["verdict"]["tone"] == "better"
