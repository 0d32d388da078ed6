"""metrics.jsonl stays valid, complete and in step with the run."""

import json

import numpy as np
import pytest

from mappa_jax.loggers.base import Shown
from mappa_jax.metrics import MetricsError, MetricWriter, flatten


def _rows(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    assert not text or text.endswith("\n")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def _write(workdir, resume_step, steps):
    writer = MetricWriter(workdir, resume_step=resume_step)
    for step in steps:
        writer.write(step, {"loss": step / 2})
    writer.close()


def test_nested_metrics_are_flattened():
    metrics = {
        "a": {"b": {"c": 1}, "d": np.float32(0.5)},
        "e": np.ones((1,)),
        "f": True,
    }
    assert flatten(metrics) == {"a/b/c": 1, "a/d": 0.5, "e": 1.0, "f": 1}


def test_bfloat16_is_a_number():
    import ml_dtypes

    assert flatten({"a": np.asarray(1.5, ml_dtypes.bfloat16)}) == {"a": 1.5}


@pytest.mark.parametrize("value", ["text", np.zeros(2), None, [1, 2]])
def test_what_is_no_number_is_refused_by_name(value):
    with pytest.raises(TypeError, match="'loss/kl'"):
        flatten({"loss": {"kl": value}})


def test_numbers_that_are_not_finite_keep_the_json_valid(tmp_path):
    writer = MetricWriter(tmp_path, resume_step=0)
    writer.write(0, {"x": float("nan"), "y": np.float32("-inf"), "z": 1.0})
    writer.close()
    assert _rows(tmp_path) == [
        {
            "step": 0,
            "x": None,
            "y": None,
            "z": 1.0,
            "non_finite": {"x": "nan", "y": "-inf"},
        }
    ]


def test_our_own_fields_cannot_be_overwritten(tmp_path):
    writer = MetricWriter(tmp_path, resume_step=0)
    with pytest.raises(ValueError, match="'step' is taken"):
        writer.write(0, {"step": 3})
    writer.close()


def test_a_line_is_on_the_disk_before_the_writer_closes(tmp_path):
    writer = MetricWriter(tmp_path, resume_step=0)
    writer.write(0, {"loss": 1.0})
    assert _rows(tmp_path) == [{"step": 0, "loss": 1.0}]
    writer.close()


def test_resuming_drops_what_will_be_written_again(tmp_path):
    _write(tmp_path, 0, range(5))
    _write(tmp_path, 3, range(3, 6))
    assert [row["step"] for row in _rows(tmp_path)] == [0, 1, 2, 3, 4, 5]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', "{", "\x00\x00"])
def test_a_torn_last_line_is_repaired(tmp_path, torn):
    _write(tmp_path, 0, range(2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    _write(tmp_path, 2, [2])
    assert [row["step"] for row in _rows(tmp_path)] == [0, 1, 2]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}')
    _write(tmp_path, 2, [2])
    assert [row["step"] for row in _rows(tmp_path)] == [0, 1, 2]


def test_damage_in_the_middle_is_refused_with_its_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nnoise\n{"step": 2}\n')
    with pytest.raises(MetricsError, match=r"metrics\.jsonl:2"):
        MetricWriter(tmp_path, resume_step=1)
    assert "noise" in (tmp_path / "metrics.jsonl").read_text()


def test_loggers_are_told_what_is_on_the_disk(tmp_path):
    told = []

    class Listening:
        def write(self, step, numbers, shown):
            told.append((step, dict(numbers), shown, len(_rows(tmp_path))))

        def close(self):
            told.append("closed")

    writer = MetricWriter(tmp_path, 0, [Listening()])
    seen = Shown(texts={"solver": "x"})
    writer.write(3, {"a": {"b": 1.0}, "c": float("nan")}, seen)
    writer.close()
    assert told == [(3, {"a/b": 1.0}, seen, 1), "closed"]
