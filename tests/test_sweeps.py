"""Sweep files, and the statistics of what came of them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scripts

from mappa_jax import sweeps
from mappa_jax.config import ConfigError, resolve
from mappa_jax.records import RecordError
from mappa_jax.sweeps import Curve

ROOT = Path(__file__).resolve().parents[1]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.py"))

SWEEP = """
def get_sweep():
    return {
        "config": "configs/tiny.py",
        "conditions": {"a": {}, "b": {"steps": 2, "reward.shuffle": True}},
        "seeds": (0, 7),
    }
"""


def load(tmp_path, text):
    path = tmp_path / "sweep.py"
    path.write_text(text)
    return sweeps.load_sweep(path)


def test_every_condition_has_every_seed_and_a_seed_comes_whole(tmp_path):
    members = load(tmp_path, SWEEP)
    names = ["a/seed_0", "b/seed_0", "a/seed_7", "b/seed_7"]
    assert [m.name for m in members] == names
    assert members[3].flags() == [
        "--config=configs/tiny.py",
        "--config.steps=2",
        "--config.reward.shuffle=True",
        "--config.seed=7",
    ]
    assert [m.name for m in sweeps.chosen(members, ["b"])] == names[1::2]
    with pytest.raises(ConfigError, match=r"--only=c: the conditions are a, b"):
        sweeps.chosen(members, ["c"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("get_sweep", "sweep"), r"no get_sweep\(\)"),
        (('"seeds": (0, 7)', '"seed": 1'), "keys"),
        (("(0, 7)", "(7, 7)"), "differ"),
        (("(0, 7)", "()"), "seeds"),
        (('"a"', '"a/b"'), "folder"),
        (('"steps"', '"seed"'), "sets the seed"),
    ],
)
def test_a_file_that_is_no_sweep_is_named(tmp_path, change, said):
    with pytest.raises(ConfigError, match=f"sweep.py.*{said}"):
        load(tmp_path, SWEEP.replace(*change))
    with pytest.raises(ConfigError, match="no such file"):
        sweeps.load_sweep(tmp_path / "none.py")


def curve(*success, per_step=10):
    at = np.arange(len(success)) * per_step
    return Curve(at, at * 100.0, np.asarray(success))


def test_rollouts_to_a_success_lie_between_evaluations():
    assert sweeps.rollouts_to(curve(0.2, 0.4, 0.8), 0.6) == 15
    assert sweeps.rollouts_to(curve(0.2, 0.4, 0.8), 0.4) == 10
    assert sweeps.rollouts_to(curve(0.7, 0.1), 0.6) == 0
    assert sweeps.rollouts_to(curve(0.1, 0.2), 0.6) == math.inf


def test_the_mean_success_is_the_area():
    assert sweeps.mean_success(curve(0.0, 1.0, 1.0)) == pytest.approx(0.75)
    assert sweeps.mean_success(curve(0.3)) == 0.3


def test_gains_are_paired_by_seed():
    """Two conditions that differ by 0.1 for every seed, though seeds differ by more:
    the paired interval is a point, each condition's own is wide."""
    base = {seed: curve(0.1, 0.1 * seed) for seed in range(5)}
    better = {seed: curve(0.1, 0.1 * seed + 0.1) for seed in range(5)}
    first, second = sweeps.table({"base": base, "better": better, "none": {}}, 0.4)
    assert (first.condition, first.gain) == ("base", None)
    assert second.gain == pytest.approx(0.1)
    assert second.gain_interval == pytest.approx((0.1, 0.1))
    assert second.final == pytest.approx(0.3)
    low, high = second.final_interval
    assert low < 0.22 and high > 0.38
    text = sweeps.markdown([first, second], 0.4)
    assert "| better | 5 | 0.100 | 0.300 [" in text and "less base" in text


def test_one_seed_has_no_interval():
    (row,) = sweeps.table({"base": {0: curve(0.1, 0.5)}}, 0.4)
    assert math.isnan(row.final_interval[0])
    assert "| 0.500 | 0.300 | - | 8 |" in sweeps.markdown([row], 0.4)


def test_a_curve_is_of_the_teams_evaluations(tmp_path):
    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))

    assert sweeps.read_curve(tmp_path, 8) is None
    rows = [(0, "team", 0.2), (0, "single agent", 0.9), (2, "team", 0.6)]
    write(
        "evaluations.jsonl",
        [
            {"step": s, "label": who, "sources": {"x": {"avg": a}, "y": {"avg": 0.0}}}
            for s, who, a in rows
        ],
    )
    write("metrics.jsonl", [{"step": 1, "tokens/new": 5}, {"step": 2, "tokens/new": 7}])
    found = sweeps.read_curve(tmp_path, 8)
    assert found.rollouts.tolist() == [0, 16]
    assert found.tokens.tolist() == [0, 12]
    assert found.success.tolist() == [0.1, 0.3]
    alone = sweeps.of_source({"a": {0: found}}, "x")["a"][0]
    assert alone.success.tolist() == [0.2, 0.6]
    assert alone.rollouts.tolist() == [0, 16]
    for name in ("evaluations.jsonl", "metrics.jsonl"):
        path = tmp_path / name
        whole = path.read_text()
        path.write_text(whole + '{"step": 3, "la')  # it is being written
        again = sweeps.read_curve(tmp_path, 8)
        assert again.success.tolist() == [0.1, 0.3]
        path.write_text("{broken\n" + whole)
        with pytest.raises(RecordError, match=rf"{name}:1: "):
            sweeps.read_curve(tmp_path, 8)
        path.write_text(whole)


def test_a_source_that_was_not_graded_once_counts_where_it_was(tmp_path):
    rows = [{"x": {"avg": 0.2}}, {"x": {"avg": 0.4}, "y": {"avg": 0.8}}]
    lines = [{"step": i, "label": "team", "sources": s} for i, s in enumerate(rows)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "evaluations.jsonl").write_text(text)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens/new": 5}\n')
    found = sweeps.read_curve(tmp_path, 8)
    assert found.success.tolist() == pytest.approx([0.2, 0.6])
    assert np.isnan(found.by_source["y"][0]) and found.by_source["y"][1] == 0.8


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_packages_sweeps_resolve(path):
    for member in sweeps.load_sweep(path):
        path, _, argument = member.config.partition(":")
        config = scripts.load(ROOT / path).get_config(argument or None)
        config.update_from_flattened_dict(member.overrides)
        resolve(config)
