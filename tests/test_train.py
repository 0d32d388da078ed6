"""The loop end to end, on configs/tiny.py: a run, its records, stopping and resuming.

All tests share one assembled run, and one event loop that outlives them.
"""

import asyncio
import collections
import contextlib
import dataclasses
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import scripts

from mappa_jax import records
from mappa_jax.checkpoints import Checkpoints
from mappa_jax.commands.assembly import open_writer
from mappa_jax.config import CheckpointConfig, ConfigError, EvalConfig, resolve
from mappa_jax.data import load_data
from mappa_jax.hosts import OneHost
from mappa_jax.records import RecordError
from mappa_jax.testing import ScriptedJudge, Silent
from mappa_jax.train import TooManyMissing, check_best, owes_evaluation, train
from mappa_jax.types import Verdict

STEPS = 4
SETTINGS = {
    "steps": STEPS,
    "eval.every": 2,
    "eval.pass_k": 1,
    "checkpoint.every": 3,
    "checkpoint.best_metric": "eval/chain_sum/avg",
}


def varied(request):
    """A score that differs between actions, so that every agent is trained."""
    return float(np.mean(request.action.token_ids % 11))


def judged_by(run, judge, **parts):
    return dataclasses.replace(
        run, stage=dataclasses.replace(run.stage, judge=judge), **parts
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same(left, right):
    """Bit for bit, leaf by leaf."""
    pairs = zip(
        jax.tree.leaves_with_path(left), jax.tree.leaves_with_path(right), strict=True
    )
    for (path, one), (_, other) in pairs:
        name = jax.tree_util.keystr(path)
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=name)


@pytest.fixture(scope="module")
def loop():
    """Runs coroutines, all in one event loop."""
    with asyncio.Runner() as runner:
        yield runner.run


class Live:
    """An assembled run whose compiled parts many short runs may use."""

    def __init__(self, run, state):
        self.run = run
        where = jax.tree.map(lambda x: x.sharding, state)
        start = jax.device_get(state)
        self.fresh = lambda: jax.device_put(start, where)

    async def train(self, workdir, judge, *, progress=None, data=None, **config):
        """Trains from the start into `workdir`; returns the last state, on the host."""
        changed = dataclasses.replace(self.run.config, **config)
        saved = Checkpoints(workdir / "checkpoints", changed.checkpoint)
        with contextlib.closing(open_writer(changed, workdir, 1)) as writer:
            run = judged_by(
                self.run,
                judge,
                config=changed,
                workdir=workdir,
                checkpoints=saved,
                writer=writer,
                progress=progress or Silent(),
                data=data or self.run.data,
            )
            with contextlib.closing(saved):
                state = await train(run, self.fresh(), 0)
        return jax.device_get(state)


class Compilations:
    """Counts what JAX compiles."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, name, seconds, **_):
        self.count += name == "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def live(assemble, tiny, loop, tmp_path_factory):
    config = resolve(tiny(SETTINGS))
    entered = assemble(config, tmp_path_factory.mktemp("live"), Silent())
    run, state, start = loop(entered.__aenter__())
    assert start == 0
    yield Live(run, state)
    loop(entered.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def whole(live, loop, tmp_path_factory):
    """An uninterrupted run: its workdir, last state, and compilations after step 1."""
    from mappa_jax.commands import common

    workdir = tmp_path_factory.mktemp("whole")
    common.claim_workdir(workdir, live.run.config)
    compilations = Compilations()
    counts = []
    progress = Silent(lambda step: counts.append(compilations.count))
    state = loop(live.train(workdir, ScriptedJudge(varied), progress=progress))
    return SimpleNamespace(
        workdir=workdir, state=state, counts=counts, compilations=compilations
    )


@pytest.fixture(scope="module")
def resumed(assemble, tiny, loop, tmp_path_factory, whole):
    """The same run, cancelled after two iterations, and gone on with in a new one."""
    workdir = tmp_path_factory.mktemp("resumed")
    config = resolve(tiny(SETTINGS))

    async def stopped():
        async with assemble(config, workdir, Silent()) as (run, state, start):
            task = asyncio.current_task()
            stop = Silent(lambda step: task.cancel() if step == 2 else None)
            run = judged_by(run, ScriptedJudge(varied), progress=stop)
            await train(run, state, start)

    async def gone_on():
        async with assemble(config, workdir, Silent()) as (run, state, start):
            run = judged_by(run, ScriptedJudge(varied))
            return start, jax.device_get(await train(run, state, start))

    with pytest.raises(asyncio.CancelledError):
        loop(stopped())
    others = workdir / "evaluations.jsonl"  # launch/evaluate.py was run meanwhile
    with others.open("a") as file:
        file.write(json.dumps({"step": 2, "label": "single", "sources": {}}) + "\n")
    saved = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    start, state = loop(gone_on())
    return SimpleNamespace(workdir=workdir, saved=saved, start=start, state=state)


def test_every_agent_was_trained(live, whole):
    before = jax.device_get(live.fresh())
    assert (whole.state.groups[0].updates == STEPS).all()
    moved = jax.tree.map(np.subtract, whole.state.trainable, before.trainable)
    for path, leaf in jax.tree.leaves_with_path(moved):
        most = np.abs(leaf).reshape(3, -1).max(1)
        assert (most > 0).all(), jax.tree_util.keystr(path)


def test_a_run_leaves_what_is_documented(whole):
    left = {path.name for path in whole.workdir.iterdir()}
    assert left == {
        "checkpoints",
        "config.json",
        "evaluations.jsonl",
        "metrics.jsonl",
        "tensorboard",
        "trajectories",
    }
    names = sorted(p.name for p in (whole.workdir / "trajectories").iterdir())
    assert names == [
        *(f"credit_{step:06d}.jsonl" for step in range(1, STEPS + 1)),
        "eval_000002_chain_sum.jsonl",
        "eval_000004_chain_sum.jsonl",
        *(f"step_{step:06d}.jsonl" for step in range(1, STEPS + 1)),
    ]
    assert list((whole.workdir / "tensorboard").iterdir())


def test_metrics_have_every_iteration_once(whole, resumed):
    for workdir in (whole.workdir, resumed.workdir):
        rows = lines(workdir / "metrics.jsonl")
        assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_metrics_tell_what_the_trajectories_hold(whole):
    rows = lines(whole.workdir / "metrics.jsonl")
    for row in rows:
        path = records.training_path(whole.workdir, row["step"])
        trajectories = records.read_trajectories(path)
        assert len(trajectories) == 4
        for name in ("solver", "coder", "verifier"):
            mine = [
                (a, v)
                for t in trajectories
                for a, v in zip(t.actions, t.verdicts, strict=True)
                if a.agent == name
            ]
            scores = [v.score for _, v in mine]
            assert row[f"agents/{name}/actions"] == len(mine)
            assert row[f"agents/{name}/score"] == pytest.approx(np.mean(scores))
            tokens = sum(len(a.token_ids) for a, _ in mine)
            assert row[f"agents/{name}/trained_tokens"] == tokens
        assert row["judge/calls"] == sum(len(t.actions) for t in trajectories)
        assert row["tokens/new"] == sum(
            len(a.token_ids) for t in trajectories for a in t.actions
        )


def test_the_credit_on_disk_is_what_the_update_has_used(whole, resumed):
    for workdir in (whole.workdir, resumed.workdir):
        for row in lines(workdir / "metrics.jsonl"):
            step = row["step"]
            trajectories = records.read_trajectories(
                records.training_path(workdir, step)
            )
            credit = lines(records.credit_path(workdir, step))
            for trajectory, found in zip(trajectories, credit, strict=True):
                assert found["task"] == trajectory.task.id
                for action, told in zip(
                    trajectory.actions, found["actions"], strict=True
                ):
                    assert told["tokens"] == len(action.token_ids)
                    assert told["agent"] == action.agent
            for name in ("solver", "coder", "verifier"):
                told = [a for c in credit for a in c["actions"] if a["agent"] == name]
                ratios = [ratio for a in told for ratio in a["policy_reference"]]
                kl = row[f"agents/{name}/kl"]
                assert np.mean(ratios) == pytest.approx(kl, abs=2e-5)
                assert len(ratios) == row[f"agents/{name}/trained_tokens"]
                weights = [a["tokens"] for a in told]
                advantages = [a["advantage"] for a in told]
                whitened = np.average(advantages, weights=weights)
                assert whitened == pytest.approx(0, abs=1e-4)


def test_every_action_on_disk_has_its_verdict(whole):
    for step in range(1, STEPS + 1):
        path = records.training_path(whole.workdir, step)
        for trajectory in records.read_trajectories(path):
            assert trajectory.actions
            pairs = zip(trajectory.actions, trajectory.verdicts, strict=True)
            for action, verdict in pairs:
                assert isinstance(verdict, Verdict)
                assert verdict.score == np.mean(action.token_ids % 11)


def test_evaluation_is_recorded_and_reported(whole):
    rows = lines(whole.workdir / "evaluations.jsonl")
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        found = row["sources"]["chain_sum"]
        assert (found["problems"], found["samples"], found["failed"]) == (2, 2 * 2, 0)
        assert found["avg_low"] <= found["avg"] <= found["avg_high"]
        assert found["k"] == 1 and found["pass"] == found["avg"]  # no partial credit
    reported = [
        row["step"]
        for row in lines(whole.workdir / "metrics.jsonl")
        if "eval/chain_sum/avg" in row
    ]
    assert reported == [2, 4]
    held_out = records.evaluation_path(whole.workdir, 2, "chain_sum")
    tried = records.read_trajectories(held_out)
    assert len(tried) == 4
    assert all(t.verdicts == () and t.outcome is not None for t in tried)
    assert {a.temperature for t in tried for a in t.actions} == {0.6}


def test_nothing_compiles_after_the_first_iteration(whole):
    assert set(whole.counts) == {whole.counts[0]}
    before = whole.compilations.count
    jax.jit(lambda x: x * 3.25)(np.float32(1))
    assert whole.compilations.count > before  # the counter counts


def test_a_cancelled_run_saves_the_last_whole_iteration(resumed):
    assert resumed.saved == ["2"]
    assert resumed.start == 2


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(whole, resumed):
    assert_same(whole.state, resumed.state)


def test_a_resumed_run_samples_the_same_tokens(whole, resumed):
    assert tokens_of(whole.workdir, 4) == tokens_of(resumed.workdir, 4)


def tokens_of(workdir, step):
    found = records.read_trajectories(records.training_path(workdir, step))
    return [[a.token_ids.tolist() for a in t.actions] for t in found]


def test_a_resumed_run_keeps_the_evaluations_of_what_it_keeps(resumed):
    rows = lines(resumed.workdir / "evaluations.jsonl")
    assert [(row["step"], row["label"]) for row in rows] == [
        (2, "team"),
        (2, "single"),
        (4, "team"),
    ]


def test_a_seed_is_repeatable_and_seeds_differ(
    assemble, tiny, loop, whole, resumed, tmp_path
):
    changed = {"seed": 1, "steps": 1, "eval.every": 0, "checkpoint.best_metric": ""}
    config = resolve(tiny(SETTINGS | changed))

    async def with_another_seed():
        async with assemble(config, tmp_path, Silent()) as (run, state, start):
            await train(judged_by(run, ScriptedJudge(varied)), state, start)

    loop(with_another_seed())
    one, same = tokens_of(whole.workdir, 1), tokens_of(resumed.workdir, 1)
    other = tokens_of(tmp_path, 1)
    assert one == same
    assert len(other) == len(one)
    assert all(o != w for o, w in zip(other, one, strict=True))


def test_samples_of_one_task_differ(whole):
    first, second, *_ = tokens_of(whole.workdir, 1)
    assert first != second


def test_too_many_missing_verdicts_stop_the_run_with_its_state_saved(
    live, loop, tmp_path
):
    class FailsLater(ScriptedJudge):
        async def score(self, request):
            if len(self.requests) >= 12:  # the first iteration's actions, and more
                self._missing_every = 2
            return await super().score(request)

    with pytest.raises(TooManyMissing) as e:
        loop(live.train(tmp_path, FailsLater(varied), steps=STEPS))
    assert "have no verdict" in str(e.value)
    assert "judge.max_missing=10%" in str(e.value)
    assert "server_error: scripted fault" in str(e.value)
    done = [row["step"] for row in lines(tmp_path / "metrics.jsonl")]
    saved = [int(p.name) for p in (tmp_path / "checkpoints").iterdir()]
    assert done and saved == [done[-1]]
    # The batch that was refused can be looked at.
    assert records.training_path(tmp_path, done[-1] + 1).exists()


def test_a_few_missing_verdicts_are_masked_and_counted(live, loop, tmp_path):
    judge = ScriptedJudge(varied, missing_every=12)
    loop(live.train(tmp_path, judge, steps=1))
    (row,) = lines(tmp_path / "metrics.jsonl")
    assert row["judge/missing"] == 1
    (trained, all_tokens) = (
        sum(row[f"agents/{n}/{what}"] for n in ("solver", "coder", "verifier"))
        for what in ("trained_tokens", "tokens")
    )
    assert trained < all_tokens


def test_the_ledger_is_on_the_disk_before_the_state_that_rests_on_it(
    live, loop, tmp_path
):
    class Recording(ScriptedJudge):
        asked = 0  # at the last sync

        def sync(self):
            assert not (tmp_path / "checkpoints" / "1").exists()
            self.asked = len(self.requests)

    judge = Recording(varied)
    loop(live.train(tmp_path, judge, steps=1))
    assert judge.asked == len(judge.requests) > 0
    assert (tmp_path / "checkpoints" / "1").exists()


def test_the_judges_health_is_told_each_iteration(whole):
    for row in lines(whole.workdir / "metrics.jsonl"):
        for name in ("solver", "coder", "verifier"):
            health = f"judge/health/{name}"
            assert row[f"{health}/mean"] == row[f"agents/{name}/score"]
            assert 0 <= row[f"{health}/extremes"] <= 1


def test_with_staleness_the_next_batch_is_sampled_before_the_update(
    assemble, tiny, loop, tmp_path
):
    """While a slow judge works on one batch the team is at the next; the sampler's
    log-probabilities are then those of the weights before the update."""
    changed = {
        "steps": 2,
        "staleness": 1,
        "objective.old_logprobs": "recompute",
        "eval.every": 0,
        "checkpoint.best_metric": "",
        # Large, so that an update shows in the log-probabilities.
        **{f"agents.{n}.learning_rate": 0.05 for n in ("solver", "coder", "verifier")},
    }
    config = resolve(tiny(SETTINGS | changed))

    async def both():
        async with assemble(config, tmp_path, Silent()) as (run, state, start):
            gate = asyncio.Event()
            judge = ScriptedJudge(varied, gate=gate)

            async def open_late():
                while not any(r.address.startswith("2/") for r in judge.requests):
                    await asyncio.sleep(0.01)
                gate.set()  # no verdict of step 1 before an action of step 2

            opening = asyncio.create_task(open_late())
            await asyncio.wait_for(train(judged_by(run, judge), state, start), 120)
            await opening

    loop(both())
    first, second = lines(tmp_path / "metrics.jsonl")
    assert first["agents/solver/mismatch"] < 1e-4
    assert second["agents/solver/mismatch"] > 1e-3


STALE = {
    "steps": 3,
    "staleness": 1,
    "objective.old_logprobs": "recompute",
    "eval.every": 2,
    "checkpoint.best_metric": "",
}


class Watched:
    """A learner that sets an event when the update of an iteration starts."""

    def __init__(self, learner):
        self._learner, self._loop = learner, asyncio.get_running_loop()
        self.started = collections.defaultdict(asyncio.Event)
        self._step = 0

    def __getattr__(self, name):
        return getattr(self._learner, name)

    def update(self, *args):
        self._step += 1
        self._loop.call_soon_threadsafe(self.started[self._step].set)
        return self._learner.update(*args)


class Patient:
    """An engine that begins an iteration's samples when `started` of the one before."""

    def __init__(self, engine, started, beside=True):
        self._engine, self._started, self.beside = engine, started, beside

    def __getattr__(self, name):
        return getattr(self._engine, name)

    async def generate(self, agent, prompt, options, address, *rest, **named):
        step, evaluation = address[0], address[-1]
        if self.beside and step > 1 and not evaluation:
            await asyncio.wait_for(self._started[step - 1].wait(), 60)
        return await self._engine.generate(
            agent, prompt, options, address, *rest, **named
        )


@pytest.fixture(scope="module")
def stale(assemble, tiny, loop, tmp_path_factory):
    """(workdir, beside, progress) -> the last state of a run with staleness whose
    samples come before an update, or only when it has started."""
    config = resolve(tiny(SETTINGS | STALE))
    entered = assemble(config, tmp_path_factory.mktemp("stale"), Silent())
    run, state, _ = loop(entered.__aenter__())
    live = Live(run, state)

    async def train_it(workdir, beside, progress):
        learner = Watched(run.learner)
        engine = Patient(run.stage.engine, learner.started, beside)
        stage = dataclasses.replace(run.stage, engine=engine)
        live.run = dataclasses.replace(run, stage=stage, learner=learner)
        return await live.train(workdir, ScriptedJudge(varied), progress=progress)

    assert run.stage.engine.beside
    yield lambda workdir, beside, progress=None: loop(
        train_it(workdir, beside, progress)
    )
    loop(entered.__aexit__(None, None, None))


def test_sampling_beside_the_update_changes_nothing(stale, tmp_path):
    """The next batch is sampled while an update goes on; all is as if it had been
    sampled first."""
    one = stale(tmp_path / "beside", True)
    other = stale(tmp_path / "after", False)
    assert_same(one, other)
    rows = [lines(tmp_path / w / "metrics.jsonl") for w in ("beside", "after")]
    for left, right in zip(*rows, strict=True):
        # Places depend on which rows happen to be decoded together.
        timed = ("seconds/", "judge/", "tokens/places")
        kept = {k for k in left if not k.startswith(timed)}
        assert {k: left[k] for k in kept} == {k: right[k] for k in kept}


def test_a_run_cancelled_in_an_update_beside_sampling_keeps_the_update(stale, tmp_path):
    class Cancels(Silent):
        def start(self, step, phase, total):
            if (step, phase) == (2, "update"):
                task = asyncio.current_task()
                asyncio.get_running_loop().call_soon(task.cancel)
            return super().start(step, phase, total)

    with pytest.raises(asyncio.CancelledError):
        stale(tmp_path, True, Cancels())
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "checkpoints" / "2").exists()


def test_an_error_beside_an_update_keeps_the_update(stale, tmp_path):
    class Breaks(Silent):
        def start(self, step, phase, total):
            if (step, phase) == (3, "rollout"):
                raise OSError("the next rollout broke")
            return super().start(step, phase, total)

    with pytest.raises(OSError, match="the next rollout broke"):
        stale(tmp_path, True, Breaks())
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "checkpoints" / "2").exists()


def test_a_best_metric_that_nothing_measures_is_refused(live):
    def best(metric, **changes):
        checkpoint = CheckpointConfig(best_metric=metric)
        config = dataclasses.replace(live.run.config, checkpoint=checkpoint, **changes)
        check_best(config, live.run.data)

    best("eval/chain_sum/avg")
    best("team/success", eval=EvalConfig())
    for metric, changes in (
        ("eval/chain_sum/average", {}),
        ("eval/chain_sum/avg", {"eval": EvalConfig()}),  # never evaluated
    ):
        with pytest.raises(ConfigError, match="best_metric.*team/success"):
            best(metric, **changes)


def test_evaluations_of_iterations_made_again_are_dropped(live, loop, tmp_path):
    made = [{"step": n, "label": "team", "sources": {}} for n in (0, 7)]
    kept = tmp_path / "evaluations.jsonl"
    kept.write_text("".join(json.dumps(row) + "\n" for row in made))
    loop(live.train(tmp_path, ScriptedJudge(varied), steps=1))
    assert lines(kept) == []  # the run starts anew


def test_a_prompt_longer_than_the_context_is_skipped_counted_and_logged(
    live, loop, tmp_path
):
    problems = tmp_path / "problems.jsonl"
    rows = [{"id": i, "prompt": p, "answer": "2"} for i, p in enumerate("ab")]
    rows[1]["prompt"] = "1+1=?" * 200
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = dataclasses.replace(
        live.run.config.data, source=f"jsonl:{problems}", params={}
    )
    changed = {"steps": 1, "checkpoint": CheckpointConfig()}
    with logged("mappa_jax.rollout") as said:
        loop(
            live.train(
                tmp_path, ScriptedJudge(varied), data=load_data(config), **changed
            )
        )
    (row,) = lines(tmp_path / "metrics.jsonl")
    assert row["team/failed"] == 2
    assert row["agents/verifier/actions"] == 2
    assert sum("prompt too long" in line for line in said) == 2
    found = records.read_trajectories(records.training_path(tmp_path, 1))
    assert [t.failure is not None for t in found].count(True) == 2


@contextlib.contextmanager
def logged(name):
    """Collects what a logger says."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger(name).addHandler(handler)
    yield said
    logging.getLogger(name).removeHandler(handler)


def test_another_config_is_refused_with_the_key_but_steps_may_be_raised(
    tiny, whole, tmp_path
):
    from mappa_jax.commands import common

    shutil.copy(whole.workdir / "config.json", tmp_path)
    (tmp_path / "trajectories").mkdir()
    (tmp_path / "trajectories" / "step_000001.jsonl").touch()
    common.claim_workdir(tmp_path, resolve(tiny(SETTINGS | {"steps": STEPS + 5})))
    changed = tiny(SETTINGS | {"kl.beta": 0.5, "agents.solver.temperature": 0.5})
    with pytest.raises(ConfigError) as e:
        common.claim_workdir(tmp_path, resolve(changed))
    assert "kl.beta was 0.01, is 0.5" in str(e.value)
    assert "agents.solver.temperature was 1.0, is 0.5" in str(e.value)
    assert "--workdir" in str(e.value)


def test_a_workdir_where_nothing_has_begun_takes_another_config(tiny, tmp_path):
    from mappa_jax.commands import common

    common.claim_workdir(tmp_path, resolve(tiny({"seed": 1})))
    common.claim_workdir(tmp_path, resolve(tiny({"seed": 2})))
    assert common.read_config(tmp_path).seed == 2


def test_a_run_cancelled_in_its_evaluation_saves_the_iteration(live, loop, tmp_path):
    """The update of iteration 2 has happened, so step 2 is what must be saved."""

    class CancelsInEvaluation(Silent):
        def start(self, step, phase, total):
            if phase == "evaluate":
                asyncio.current_task().cancel()
            return super().start(step, phase, total)

    with pytest.raises(asyncio.CancelledError):
        progress = CancelsInEvaluation()
        loop(live.train(tmp_path, ScriptedJudge(varied), progress=progress))
    config = live.run.config
    assert Checkpoints(tmp_path / "checkpoints", config.checkpoint).latest() == 2
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    # It is made when the run goes on, and not again after that.
    assert owes_evaluation(config, tmp_path, 2)
    assert not owes_evaluation(config, tmp_path, 1)
    line = {"step": 2, "label": "trained", "sources": {}}
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    assert owes_evaluation(config, tmp_path, 2)
    line["label"] = "team"
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    assert not owes_evaluation(config, tmp_path, 2)


def test_a_torn_evaluation_is_owed_and_a_damaged_file_named(tiny, tmp_path):
    config = resolve(tiny({"steps": 2, "eval.at_end": True}))
    path = tmp_path / "evaluations.jsonl"
    line = json.dumps({"step": 2, "label": "team", "sources": {}})
    path.write_text(line[:-4])
    assert owes_evaluation(config, tmp_path, 2)
    path.write_text(f"{line}\n{line[:-4]}")
    assert not owes_evaluation(config, tmp_path, 2)
    path.write_text(f"{line[:-4]}\n{line}\n")
    with pytest.raises(RecordError, match=r"evaluations\.jsonl:1: "):
        owes_evaluation(config, tmp_path, 2)


def test_a_damaged_config_json_is_named(tmp_path):
    from mappa_jax.commands import common

    (tmp_path / "config.json").write_text('{\n"steps": \n')
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"config\.json: line 3"):
        common.read_config(tmp_path)


@pytest.fixture
def command(commands_path, monkeypatch, cache):
    """mappa-train as a function of (config, workdir), without parsing flags."""
    module = scripts.load(commands_path / "train.py")
    monkeypatch.setattr(module.common, "begin", lambda argv: None)
    monkeypatch.setattr(module, "join_hosts", OneHost)

    def call(config, workdir: Path):
        for name, value in (
            ("_CONFIG", config),
            ("_WORKDIR", str(workdir)),
            ("_CACHE", str(cache)),
            ("_PROFILE", ""),
        ):
            monkeypatch.setattr(module, name, SimpleNamespace(value=value))
        module.main(["train.py"])

    return call


def test_a_second_call_says_that_the_run_is_complete(
    command, assemble, tiny, whole, capsys
):
    before = (whole.workdir / "metrics.jsonl").read_bytes()
    command(tiny(SETTINGS), whole.workdir)
    said = capsys.readouterr().out
    assert "this run is complete (4 iterations)" in said
    for name in ("solver", "coder", "verifier", "metrics.jsonl", "evaluations.jsonl"):
        assert name in said
    assert (whole.workdir / "metrics.jsonl").read_bytes() == before
