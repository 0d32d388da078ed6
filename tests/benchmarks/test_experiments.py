"""The scripted teams of benchmarks/experiments, and who is blamed for their faults."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import scripts

from mappa_jax import records
from mappa_jax.answers import Grader
from mappa_jax.config import DataConfig, SandboxConfig
from mappa_jax.data.sources import load_tasks, parse_sources
from mappa_jax.testing import CALL, make_action
from mappa_jax.types import Observation, Outcome, Task, Trajectory, Verdict

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "experiments"
TEAM = ("solver", "coder", "verifier")


@pytest.fixture(scope="module")
def teams():
    return scripts.load(FOLDER / "teams.py")


@pytest.fixture(scope="module")
def credit(launch_path):
    sys.path.insert(0, str(FOLDER))
    yield scripts.load(FOLDER / "credit.py")
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def signal(launch_path):
    return scripts.load(FOLDER / "signal_per_rollout.py")


@pytest.fixture(scope="module")
def habits(launch_path):
    return scripts.load(FOLDER / "habits.py")


@pytest.fixture(scope="module")
def sums():
    params = {"chain_sum": dict(min_terms=2, max_terms=3, min_digits=1, max_digits=2)}
    (source,) = parse_sources("reasoning_gym:chain_sum")
    data = DataConfig(params=params, train_size=6, eval_size=1)
    return load_tasks(source, "train", data)


async def play(teams, tasks, faults):
    grader = Grader(workers=1, seconds=5.0)
    try:
        return await teams.play(
            "mathchat",
            tasks,
            teams.math_scripts(faults),
            grader=grader,
            sandbox=SandboxConfig(),
            max_turns=2,
        )
    finally:
        await grader.aclose()


async def test_a_team_without_faults_is_right(teams, sums):
    for trajectory in await play(teams, sums, teams.MathFaults()):
        solver, code, report, verifier = trajectory.actions
        assert trajectory.outcome.score == 1.0
        assert code.observation.stdout.strip() == trajectory.task.answer
        assert report.content == f"It printed {trajectory.task.answer}."
        assert f"The answer is {trajectory.task.answer}." in solver.content
        assert f"\\boxed{{{trajectory.task.answer}}}" in verifier.content


async def test_products_are_multiplied(teams):
    params = {"products": dict(min_terms=2, max_terms=3, min_digits=1, max_digits=2)}
    (source,) = parse_sources("reasoning_gym:products")
    data = DataConfig(params=params, train_size=4, eval_size=1)
    products = load_tasks(source, "train", data)
    for trajectory in await play(teams, products, teams.MathFaults()):
        solver, code, *_ = trajectory.actions
        assert trajectory.outcome.score == 1.0
        assert " * " in code.code and " * " in solver.content
        assert f"The answer is {trajectory.task.answer}." in solver.content


@pytest.mark.parametrize(
    ("fault", "right"),
    [
        ("wrong_sum", True),  # the executor computes it anew
        ("wrong_number", False),
        ("crash", False),
        ("no_code", False),
        ("miscopy", False),
        ("no_box", False),
    ],
)
async def test_every_fault_is_its_agents_own(teams, sums, fault, right):
    well = await play(teams, sums, teams.MathFaults())
    found = await play(teams, sums, teams.MathFaults(**{fault: 1.0}))
    for good, bad in zip(well, found, strict=True):
        changed = {
            a.agent
            for a, b in zip(bad.actions, good.actions, strict=False)
            if a.agent == b.agent and a.content != b.content
        }
        culprit = teams.MATH_FAULTS[fault]
        first = next(a.agent for a in bad.actions if a.agent in changed)
        assert first == culprit
        assert bad.outcome.score < 1 or right or good.task.answer == "0"


async def test_what_is_believed_goes_on(teams, sums):
    faults = teams.MathFaults(wrong_sum=1.0, trusting=True)
    found = await play(teams, sums, faults)
    assert not any(t.outcome.score == 1.0 for t in found)


def test_every_fault_of_the_data_team_changes_a_program(teams):
    programs = {
        "engineer": teams.ENGINEER,
        "modeller": teams.MODELLER,
        "analyst": teams.ANALYST,
    }
    for agent, there, instead in teams.DATA_FAULTS.values():
        assert programs[agent].count(there) == 1 and instead != there


def trajectory(number, scores, outcome):
    return Trajectory(
        task=Task(str(number), "?"),
        step=1,
        sample=0,
        actions=tuple(make_action(name, "x" * 9) for name in TEAM),
        verdicts=tuple(Verdict(score, "", CALL) for score in scores),
        outcome=Outcome(outcome),
    )


def test_blame_by_hand(credit):
    """The solver fails in the first of two trajectories, and is told so; the verifier's
    score falls by a third as much."""
    case = credit.Case(
        team="MathChat",
        fault="wrong",
        culprit="solver",
        trajectories=(
            trajectory(0, (0.0, 9.0, 6.0), 0.0),
            trajectory(1, (9.0, 9.0, 9.0), 1.0),
        ),
        faulty=(True, False),
    )

    def blame(scheme, estimator):
        return credit.blame(case, TEAM, credit.SCHEMES[scheme], estimator)

    found = blame("process", "agent_baseline")
    assert (
        found["all"]
        == found["faulty"]
        == pytest.approx({"solver": 0.75, "coder": 0.0, "verifier": 0.25})
    )
    # Whitened for each agent, a small difference weighs as much as a large one.
    assert blame("process", "reinforce_pp")["all"] == pytest.approx(
        {"solver": 0.5, "coder": 0.0, "verifier": 0.5}
    )
    third = pytest.approx(dict.fromkeys(TEAM, 1 / 3), abs=1e-4)
    assert blame("outcome to all", "agent_baseline")["all"] == third
    # What has no reward at all is as the batch's mean.
    assert blame("outcome to last", "agent_baseline")["all"] == {
        "solver": 0.0,
        "coder": 0.0,
        "verifier": 1.0,
    }
    same = dataclasses.replace(case, trajectories=(case.trajectories[1],) * 2)
    assert credit.blame(same, TEAM, {}, "reinforce_pp")["all"] is None


def small_pool(signal, rewards, lengths):
    """Actions of one agent whose gradients are the axes."""
    n = len(rewards)
    return signal.Pool(
        problem=np.arange(n),
        rewards={"process": np.asarray(rewards, np.float32)},
        group=np.arange(n) + 7,
        mask=(np.arange(4) < np.asarray(lengths)[:, None]).astype(np.float32),
        kind=np.zeros(n, np.int32),
        sketch=np.eye(n, dtype=np.float32),
    )


def test_the_gradient_of_some_actions_by_hand(signal):
    pool = small_pool(signal, [0.9, 0.1, 0.5, 0.4], [1, 2, 1, 3])
    rows = np.asarray([0, 1, 3])  # padded to four
    assert signal.gradient(pool, rows, "process", "reinforce") == pytest.approx(
        np.asarray([0.9, 0.1, 0.0, 0.4]) / 6
    )
    # Whitened over tokens: 0.9 once, 0.1 twice, 0.4 three times.
    mean = (0.9 + 2 * 0.1 + 3 * 0.4) / 6
    var = (0.81 + 2 * 0.01 + 3 * 0.16) / 6 - mean**2
    expected = np.asarray([0.9 - mean, 0.1 - mean, 0.0, 0.4 - mean]) / var**0.5 / 6
    assert signal.gradient(pool, rows, "process", "reinforce_pp") == pytest.approx(
        expected, abs=1e-6
    )


def test_the_ratio_of_signal_to_noise_by_hand(signal):
    """Estimates that are off by half of the truth, at right angles to it."""
    truth = np.asarray([2.0, 0.0])
    found = np.asarray([[4.0, 2.0], [4.0, -2.0]])  # twice as long: no matter
    row = signal.estimates(found, truth, np.asarray([0.0, 1.0]))
    assert row["snr"] == pytest.approx(4.0)
    assert row["cosine"] == pytest.approx(2 / 5**0.5, abs=1e-4)
    assert row["with_success"] == pytest.approx(0.0, abs=1e-4)
    assert signal.estimates(0 * found, truth, truth)["snr"] is None


def test_sketches_keep_inner_products(signal, cache):
    import jax
    import jax.numpy as jnp

    from mappa_jax import assemble
    from mappa_jax.config import resolve
    from mappa_jax.models.decoder import Decoder, logits
    from mappa_jax.models.policy import agent_params

    tiny = scripts.load(FOLDER.parents[1] / "configs" / "tiny.py")
    config = assemble.seat_agents(resolve(tiny.get_config()))
    models = assemble.load_models(config, cache)
    weights = models.init_weights(config)
    rng = np.random.default_rng(0)
    actions = [
        dataclasses.replace(
            make_action("coder", "x"),
            prompt_ids=tuple(rng.integers(3, 200, 5 + i)),
            token_ids=tuple(rng.integers(3, 200, 4)),
            temperature=1.0,
        )
        for i in range(3)
    ]
    found = signal.sketches(config, models, weights, 1, actions, 1 << 16)

    (group,) = models.team
    params = agent_params(group, weights[0][0], weights[1][0], 1)

    def logprob(params, action):
        ids = jnp.asarray(action.prompt_ids + action.token_ids)[None]
        row = jnp.arange(ids.shape[1])[None]
        live = jnp.full(ids.shape, ids.shape[1])
        hidden, _ = Decoder(group.cfg).apply({"params": params}, ids, row, live)
        logp = jax.nn.log_softmax(logits(params, group.cfg, hidden[0]))
        at = range(len(action.prompt_ids) - 1, ids.shape[1] - 1)
        return sum(logp[i, ids[0, i + 1]] for i in at)

    def flat(action):
        grads = jax.grad(logprob)(params, action)
        return jnp.concatenate([g.reshape(-1) for g in jax.tree.leaves(grads)])

    exact = np.stack([flat(a) for a in actions])
    true, kept = exact @ exact.T, found @ found.T
    lengths = np.sqrt(np.diag(true))
    assert kept / np.outer(lengths, lengths) == pytest.approx(
        true / np.outer(lengths, lengths), abs=4 / 2**8
    )


# -- what a team does differently after training ------------------------------------


def try_at(task, answer, score, sample=0, ran=True):
    """A trajectory of a solver and of a coder, whose program ran or failed."""
    program = make_action("coder", "print(4)", code="print(4)")
    seen = Observation(stdout="4\n" if ran else "", exit_status=0 if ran else 1)
    actions = (
        make_action("solver", answer),
        dataclasses.replace(program, observation=seen),
    )
    return Trajectory(task, -1, sample, actions, outcome=Outcome(score))


def test_habits_of_an_iteration(habits):
    task = Task(id="a", source="s", prompt="2 + 2?", answer="4")
    found = habits.habits(
        [
            try_at(task, "4", 1.0),
            try_at(task, "five", 0.0, ran=False),
            try_at(task, "six", 0.0, ran=False),
            dataclasses.replace(try_at(task, "?", 0.0), outcome=None),
        ]
    )
    assert found["success"] == pytest.approx(1 / 3)  # of those that were graded
    assert found["programs"] == 1 / 2
    assert found["tokens"] == {"solver": 9 / 4, "coder": 8}


def test_what_is_read_is_chosen_by_the_lists_order(habits, tmp_path):
    tasks = [Task(id=n, source="s", prompt=f"{n} ~~~?", answer="4") for n in "cab"]
    for step, score in ((0, 0.0), (4, 1.0)):
        tries = [try_at(t, "~~~", score, sample) for t in tasks for sample in (0, 1)]
        records.write_trajectories(records.evaluation_path(tmp_path, step, "s"), tries)
        row = {"step": step, "label": "team", "sources": {"s": {}}}
        records.append_row(tmp_path / "evaluations.jsonl", row)
    said, pairs = habits.before_and_after(tmp_path, 2)
    assert said == "s, after 0 and after 4 iterations"
    assert [before.task.id for before, _ in pairs] == ["c", "a"]
    assert [(b.outcome.score, a.outcome.score) for b, a in pairs] == [(0, 1)] * 2
    text = habits.reading("process", said, pairs)
    assert text.count("0, then 1") == 2
    assert text.count("\n~~~~\n") == 4  # ends of fences that the text cannot close
    records.write_trajectories(records.evaluation_path(tmp_path, 4, "s"), tries[2:])
    with pytest.raises(ValueError, match="evaluated on different problems"):
        habits.before_and_after(tmp_path, 2)


def test_habits_of_every_iteration_in_order(habits, tmp_path):
    task = Task(id="a", source="s", prompt="2 + 2?", answer="4")
    with pytest.raises(FileNotFoundError, match="no trajectories of training"):
        habits.over_time(tmp_path)
    ungraded = dataclasses.replace(try_at(task, "4", 1.0), outcome=None)
    for step, tried in ((2, try_at(task, "4", 1.0)), (1, ungraded)):
        records.write_trajectories(records.training_path(tmp_path, step), [tried])
    rows = habits.over_time(tmp_path)
    assert [(row["step"], row["success"]) for row in rows] == [(1, None), (2, 1)]
    habits.draw({"run": rows}, tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 10_000


def test_means_leave_out_what_is_no_number(habits):
    assert habits._smooth([1.0, np.nan, 3.0], 3) == [1.0, 2.0, 3.0]
