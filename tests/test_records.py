"""A trajectory read back equals the one that was written."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mappa_jax import records, types

_TEXT = st.text(max_size=20)
_WHOLE = st.integers(-(2**31), 2**31 - 1)
_CALLS = st.builds(
    types.JudgeCall,
    judge=_TEXT,
    prompt_hash=_TEXT,
    tokens_in=st.integers(0, 10**6),
    cost=st.floats(0, 1),
    cached=st.booleans(),
)
_OBSERVATIONS = st.builds(
    types.Observation,
    stdout=_TEXT,
    stderr=_TEXT,
    exit_status=st.integers(-15, 255),
    limit=st.none() | st.just("memory"),
    files=st.lists(_TEXT, max_size=2).map(tuple),
    seconds=st.floats(0, 10),
)


def _ints(size):
    ids = st.lists(_WHOLE, min_size=size, max_size=size)
    return ids.map(lambda values: np.array(values, np.int32))


@st.composite
def _actions(draw):
    size = draw(st.integers(0, 5))
    logprobs = draw(st.lists(st.floats(width=32), min_size=size, max_size=size))
    return types.Action(
        agent=draw(_TEXT),
        turn=draw(st.integers(0, 3)),
        messages=tuple(
            draw(st.lists(st.builds(types.Message, _TEXT, _TEXT), max_size=2))
        ),
        prompt_ids=draw(_ints(3)),
        token_ids=draw(_ints(size)),
        logprobs=np.array(logprobs, np.float32),
        finish=draw(st.sampled_from(["stop", "length"])),
        text=draw(_TEXT),
        content=draw(_TEXT),
        temperature=draw(st.floats(0, 2)),
        code=draw(st.none() | _TEXT),
        observation=draw(st.none() | _OBSERVATIONS),
        fault=draw(st.none() | _TEXT),
    )


_VERDICTS = st.builds(
    types.Verdict,
    score=st.floats(0, 10),
    rationale=_TEXT,
    call=_CALLS,
    correct=st.none() | st.booleans(),
) | st.builds(
    types.Missing,
    reason=st.sampled_from(types.MissingReason),
    detail=_TEXT,
    call=_CALLS,
)
_TRAJECTORIES = st.builds(
    types.Trajectory,
    task=st.builds(
        types.Task,
        id=_TEXT,
        prompt=_TEXT,
        answer=st.none() | _TEXT,
        files=st.dictionaries(_TEXT, _TEXT, max_size=2),
        metadata=st.dictionaries(_TEXT, st.lists(_WHOLE, max_size=2), max_size=2),
    ),
    step=st.integers(-1, 10),
    sample=st.integers(0, 3),
    actions=st.lists(_actions(), max_size=2).map(tuple),
    verdicts=st.lists(_VERDICTS, max_size=2).map(tuple),
    outcome=st.none()
    | st.builds(
        types.Outcome,
        st.floats(0, 1),
        st.none() | _TEXT,
        report=_TEXT,
        quality=st.dictionaries(_TEXT, st.floats(-1e9, 1e9), max_size=2),
    ),
    failure=st.none() | _TEXT,
)


def _assert_same(one, two):
    assert type(one) is type(two)
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            _assert_same(getattr(one, field.name), getattr(two, field.name))
    elif isinstance(one, tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            _assert_same(a, b)
    elif isinstance(one, np.ndarray):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    else:
        assert one == two


@settings(max_examples=30, deadline=None)
@given(st.lists(_TRAJECTORIES, max_size=2))
def test_a_round_trip_changes_nothing(tmp_path_factory, trajectories):
    path = records.training_path(tmp_path_factory.mktemp("records"), 3)
    records.write_trajectories(path, trajectories)
    _assert_same(tuple(records.read_trajectories(path)), tuple(trajectories))


def _trajectory(**task):
    return types.Trajectory(types.Task("t", "?", **task), step=0, sample=0, actions=())


def test_every_line_is_standard_json_and_nothing_is_cut(tmp_path):
    action = types.Action(
        agent="solver",
        turn=0,
        messages=(types.Message("user", "x" * 100_000),),
        prompt_ids=np.arange(20_000, dtype=np.int32),
        token_ids=np.array([1, 2], np.int32),
        logprobs=np.array([np.nan, -np.inf], np.float32),
        finish="stop",
        text="line\nline\u2028line",
        content="",
    )
    trajectory = dataclasses.replace(_trajectory(), actions=(action,))
    path = tmp_path / "a.jsonl"
    records.write_trajectories(path, [trajectory, trajectory])
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    row = json.loads(lines[0], parse_constant=pytest.fail)
    assert len(row["actions"][0]["messages"][0]["content"]) == 100_000
    assert row["actions"][0]["prompt_ids"][-1] == 19_999


def test_file_names_sort_by_step_and_are_safe(tmp_path):
    folder = tmp_path / "trajectories"
    assert records.training_path(tmp_path, 3) == folder / "step_000003.jsonl"
    path = records.evaluation_path(tmp_path, 3, "math_dataset/mul")
    assert path == folder / "eval_000003_math_dataset_mul.jsonl"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.jsonl"
    records.write_trajectories(path, [_trajectory()])
    assert list(tmp_path.iterdir()) == [path]  # renamed, not copied
    before = path.read_bytes()
    with pytest.raises(TypeError):
        records.write_trajectories(
            path, [_trajectory(), _trajectory(metadata={"a": object()})]
        )
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ['{"task": ', "{}", "[]", '{"task": {"no": 1}}'])
def test_a_broken_record_is_named_by_line(tmp_path, line):
    path = tmp_path / "a.jsonl"
    records.write_trajectories(path, [_trajectory()])
    with path.open("a") as file:
        file.write(line)
    with pytest.raises(records.RecordError, match=r"a\.jsonl:2"):
        records.read_trajectories(path)


def test_a_torn_last_line_is_left_out_and_another_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert records.read_rows(path, ("step",)) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert records.read_rows(path, ("step",)) == [{"step": 1}, {"step": 2}]
    for line in ("{broken", "[1]", '{"other": 1}'):
        path.write_text(f'{{"step": 1}}\n{line}\n')
        with pytest.raises(records.RecordError, match=r"rows\.jsonl:2: "):
            records.read_rows(path, ("step",))


@pytest.mark.parametrize("torn", ["", '{"st'])
def test_a_row_is_added_as_a_line_of_its_own(tmp_path, torn):
    path = tmp_path / "rows.jsonl"
    records.append_row(path, {"step": 1})
    path.write_text(path.read_text() + torn)
    records.append_row(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_of_an_evaluation_that_was_made_again_the_last_counts(tmp_path):
    def row(label, step, avg):
        return {"label": label, "step": step, "sources": {"x": {"avg": avg}}}

    made = [row("team", 0, 0.1), row("team", 2, 0.2), row("trained", 2, 0.3)]
    again = [row("trained", 2, 0.4), row("team", 2, 0.5)]
    for one in (*made, *again):
        records.append_row(tmp_path / "evaluations.jsonl", one)
    found = records.read_evaluations(tmp_path)
    assert sorted(found, key=str) == sorted([made[0], *again], key=str)
