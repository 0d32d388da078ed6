"""What a run shows elsewhere: TensorBoard, Weights & Biases, MLflow."""

import logging
import resource
import sys
import types

import numpy as np
import pytest

from mappa_jax import loggers
from mappa_jax.config import AgentConfig, Config, ConfigError
from mappa_jax.loggers.base import Shown, as_markdown, shown
from mappa_jax.loggers.tensorboard import TensorBoard
from mappa_jax.types import (
    Action,
    JudgeCall,
    Message,
    Missing,
    MissingReason,
    Observation,
    Task,
    Trajectory,
    Verdict,
)

CALL = JudgeCall(judge="rubric")
SETTINGS = {"seed": 3, "mode": "full", "sampler.slots": 8}


def config(*names):
    return Config(agents={"solver": AgentConfig(model="m")}, loggers=names)


def action(agent, text, tokens, **more):
    return Action(
        agent=agent,
        turn=0,
        messages=(Message("user", "2 + 2"),),
        prompt_ids=np.zeros(1, np.int32),
        token_ids=np.zeros(tokens, np.int32),
        logprobs=np.zeros(tokens, np.float32),
        finish="stop",
        text=text,
        content=text,
        **more,
    )


def batch():
    printed = Observation(stdout="4\n</code>", stderr="", exit_status=0)
    acted = (
        action("solver", "it is 4", 3),
        action("coder", "print(4)", 2, observation=printed),
    )
    verdicts = (
        Verdict(score=7.5, rationale="right", call=CALL),
        Missing(MissingReason.TIMEOUT, "judge was slow", CALL),
    )
    return [
        Trajectory(
            task=Task(id="1", prompt="2 + 2", answer="4", grader="x", source="s"),
            step=1,
            sample=0,
            actions=acted,
            verdicts=verdicts,
            outcome=None,
            failure=None,
        )
    ]


def test_a_batch_is_shown_by_agent():
    found = shown(batch(), ["solver", "coder", "verifier"])
    assert found.scores == {"solver": [7.5], "coder": [], "verifier": []}
    assert found.tokens == {"solver": [3], "coder": [2], "verifier": []}
    assert set(found.texts) == {"solver", "coder"}  # who has not acted says nothing
    assert "7.5 of 10. right" in found.texts["solver"]
    assert "judge was slow" in found.texts["coder"]


def test_what_an_agent_says_is_no_markup():
    (trajectory,) = batch()
    text = as_markdown(trajectory, trajectory.actions[1], trajectory.verdicts[1])
    assert "\n    </code>" in text  # indented: Markdown's block of code


def read(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator

    everything = dict.fromkeys(("scalars", "histograms", "tensors"), 0)
    events = event_accumulator.EventAccumulator(
        str(tmp_path / "tensorboard"), size_guidance=everything
    )
    return events.Reload()


def test_tensorboard_reads_the_scalars_of_a_resumed_run(tmp_path):
    for first, last in ((0, 4), (2, 5)):
        board = TensorBoard(tmp_path, SETTINGS, first)
        for step in range(first, last):
            board.write(step, {"loss": step / 2}, Shown())
        board.close()
    scalars = read(tmp_path).Scalars("loss")
    assert [(s.step, s.value) for s in scalars] == [(s, s / 2) for s in range(5)]


def test_tensorboard_has_histograms_an_action_of_each_agent_and_hparams(tmp_path):
    board = TensorBoard(tmp_path, SETTINGS, 0)
    board.write(1, {}, shown(batch(), ["solver", "coder"]))
    board.close()
    events = read(tmp_path)
    assert events.Tags()["histograms"] == [
        "scores/solver",
        "lengths/solver",
        "lengths/coder",
    ]
    (scores,) = events.Histograms("scores/solver")
    assert scores.histogram_value.num == 1 and scores.histogram_value.sum == 7.5
    (said,) = events.Tensors("actions/coder/text_summary")
    assert b"print(4)" in said.tensor_proto.string_val[0]
    hparams = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"sampler.slots" in hparams


@pytest.mark.timeout(60)
def test_a_disk_that_is_full_for_tensorboard_raises(tmp_path):
    """It must not leave the caller waiting."""
    many = {f"metric_{i}": 0.5 for i in range(1000)}
    board = TensorBoard(tmp_path, SETTINGS, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            board.write(0, many, Shown())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    board.close()


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'wandb' needs .*\[wandb"):
        loggers.open_loggers(config("wandb"), tmp_path, 0)


def test_settings_are_flat_and_plain():
    found = loggers.settings(config("tensorboard"))
    assert found["sampler.slots"] == Config(agents={}).sampler.slots
    assert found["loggers"] == '["tensorboard"]'
    assert found["agents.solver.model"] == "m"


def test_a_server_that_fails_does_not_end_the_run(caplog):
    class Failing:
        calls = 0

        def write(self, *args):
            self.calls += 1
            raise ConnectionError("nobody there")

        close = write

    inner = Failing()
    remote = loggers.Remote("mlflow", inner)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            remote.write(step, {}, Shown())
        remote.close()
    assert inner.calls == 1 and remote.failed
    assert "mlflow failed (ConnectionError: nobody there)" in caplog.text


class FakeRun:
    def __init__(self, **given):
        self.given, self.logged, self.finished = given, [], False

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, row):
        self.logged.append(row)

    def finish(self):
        self.finished = True


def test_wandb_finds_its_run_again(tmp_path, monkeypatch):
    runs = []

    def init(**given):
        runs.append(FakeRun(**given))
        return runs[-1]

    fake = types.ModuleType("wandb")
    fake.init, fake.Histogram = init, lambda values: ("histogram", *values)
    fake.Table = lambda columns, data: ("table", data)
    fake.Settings = lambda: types.SimpleNamespace(project=None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    from mappa_jax.loggers.wandb import WandB

    for step in (1, 2):
        one = WandB(tmp_path, SETTINGS, step)
        one.write(step, {"loss": 0.5}, shown(batch(), ["solver"]))
        one.close()
    first, second = runs
    assert first.given["id"] == second.given["id"]
    assert first.given["resume"] == "allow" and first.given["config"] == SETTINGS
    (row,) = second.logged
    assert row["step"] == 2 and row["loss"] == 0.5
    assert row["scores/solver"] == ("histogram", 7.5)
    assert second.finished


def test_wandb_itself_takes_what_it_is_told(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra [wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (one,) = loggers.open_loggers(config("wandb"), tmp_path, 1)
    one.write(1, {"loss": 0.5}, shown(batch(), ["solver"]))
    one.close()
    assert not one.failed
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_mlflow_keeps_numbers_and_texts(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the extra [mlflow] is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mappa_jax.loggers.mlflow import MLflow

    workdir = tmp_path / "run"
    workdir.mkdir()
    for step in (1, 2):  # resumed with another value of what may be changed
        one = MLflow(workdir, SETTINGS | {"steps": step}, step)
        one.write(step, {"loss": step / 2}, shown(batch(), ["solver"]))
        one.close()
    client = mlflow.MlflowClient()
    place = client.get_experiment_by_name("mappa_jax").experiment_id
    (run,) = client.search_runs([place])
    assert run.data.params["sampler.slots"] == "8"
    assert run.data.params["steps"] == "1" and run.data.tags["resumed.steps"] == "2"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 1.0)]
