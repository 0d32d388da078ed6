"""The picture of a run's curves."""

import matplotlib.image
import pytest
from made_runs import write_lines, write_run

from mappa_jax.records import RecordError, read_evaluations, read_rows
from mappa_jax.report.picture import draw


def test_evaluations_on_different_data_sets_are_all_drawn(tmp_path):
    run = write_run(tmp_path / "run", steps=3, tasks=2, attack=False)
    first, last = read_evaluations(run)
    other = {"digits": last["sources"]["sums"]}
    write_lines(run / "evaluations.jsonl", [first, last | {"sources": other}])
    metrics = read_rows(run / "metrics.jsonl", ("step",))
    draw(metrics, read_evaluations(run), tmp_path / "x.png")
    assert matplotlib.image.imread(tmp_path / "x.png").shape == (480, 1320, 4)


def test_an_evaluation_without_its_step_is_named(tmp_path):
    write_lines(tmp_path / "evaluations.jsonl", [{"label": "team", "sources": {}}])
    with pytest.raises(RecordError, match="evaluations.jsonl:1: no step"):
        read_evaluations(tmp_path)
