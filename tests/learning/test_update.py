"""The compiled update against a plain one, and what it must leave alone."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scopes_of import scopes

from mappa_jax.config import (
    ConfigError,
    KLConfig,
    MeshConfig,
    ObjectiveConfig,
    PackingConfig,
)
from mappa_jax.learning import batch as batches
from mappa_jax.learning import credit, update
from mappa_jax.models import policy as policies
from mappa_jax.models.decoder import Decoder, logits
from mappa_jax.parallel.mesh import make_mesh
from mappa_jax.types import JudgeCall, Missing, MissingReason, Verdict

LENGTHS = ((3, 2), (5, 4), (9, 6))  # prompt and new tokens


@dataclasses.dataclass(frozen=True)
class Bench:
    """A compiled learner and a way to get its (donated) state afresh."""

    config: object
    policy: object
    learner: update.Learner
    fresh: object
    frozen: object

    def pack(self, trajectories, size=None, config=None, shape=None):
        config = config or self.config
        return batches.pack(
            trajectories,
            tuple(config.agents),
            shape or self.learner.shape,
            reward=config.reward,
            objective=config.objective,
            actions_per_update=size or config.optimizer.actions_per_update,
            rng=np.random.default_rng(0),
        )

    def step(self, packed, state=None):
        """(group's state before, after, metrics) of one pass; NumPy."""
        state = state or self.fresh()
        before = jax.tree.map(lambda x: np.array(x), state)
        packed = self.learner.assign_credit(state, [self.frozen], packed)
        state, metrics = self.learner.update(state, [self.frozen], packed)
        return before.groups[0], jax.device_get(state).groups[0], metrics


@pytest.fixture(scope="module")
def bench(micro_folder, make_config, make_policy):
    """Benches by their config's changes and the mesh; compiled once each."""

    @functools.cache
    def make(mesh_sizes=(1, 1, 1, 1), mode="full", kl="reward", old="behaviour"):
        count = int(np.prod(mesh_sizes))
        config = make_config(
            mode=mode,
            kl=KLConfig(beta=0.05, place=kl),
            objective=ObjectiveConfig(mask_truncated=False, old_logprobs=old),
            packing=PackingConfig(
                row_tokens=24, row_action_tokens=12, rows=2 if count == 1 else 8
            ),
        )
        mesh = make_mesh(MeshConfig(*mesh_sizes), jax.devices()[:count])
        policy = make_policy(config, mesh=mesh)
        folders = [micro_folder] * 2

        def fresh():
            trainable, _ = policies.init(policy, folders, mesh, 1, jnp.float32)
            if mode == "lora":  # with b = 0 the gradient of a would vanish
                trainable = jax.tree.map(lambda p: p + 0.05, trainable)
            return update.init_state([trainable], (policy,), config, mesh)

        _, frozen = policies.init(policy, folders, mesh, 1, jnp.float32)
        learner = update.Learner((policy,), config, mesh)
        learner.warm_up(fresh(), [frozen])
        return Bench(config, policy, learner, fresh, frozen)

    return make


@pytest.fixture(scope="module")
def trajectories(make_action, make_trajectory):
    """Eleven actions of "a" and ten of "b", at two temperatures."""
    rng = np.random.default_rng(3)
    out = []
    for k in range(6):
        a, b = LENGTHS[k % 3], LENGTHS[(k + 1) % 3]
        heat = 1.0 if k % 2 else 0.7
        actions = [
            make_action("a", 0, *a, seed=k, temperature=heat),
            make_action("b", 0, *b, seed=k),
            make_action("a", 1, *b, seed=10 + k, temperature=heat),
            make_action("b", 1, *a, seed=10 + k),
        ]
        if k == 5:
            actions = actions[:1]
        elif k == 4:
            actions = actions[:3]
        elif k == 3:
            actions.append(make_action("b", 2, 3, 2, seed=99))
        pairs = [(action, float(rng.integers(0, 11))) for action in actions]
        out.append(make_trajectory(pairs, task=f"t{k // 2}", sample=k % 2))
    return out


@pytest.fixture(scope="module")
def related(trajectories):
    """The same, but what "a" is asked starts alike, and where its second turn has
    room it goes on from its first."""

    def one(trajectory):
        actions = list(trajectory.actions)
        first = actions[0]
        asked = np.concatenate([[7, 8], first.prompt_ids[2:]]).astype(np.int32)
        actions[0] = dataclasses.replace(first, prompt_ids=asked)
        if len(actions) > 2:
            asked = np.concatenate([asked, first.token_ids, [9]]).astype(np.int32)
            actions[2] = dataclasses.replace(actions[2], prompt_ids=asked)
        return dataclasses.replace(trajectory, actions=tuple(actions))

    return [one(t) for t in trajectories]


def of_agent(tree, agent):
    return jax.tree.map(lambda x: np.asarray(x)[agent], tree)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(got, want, rtol=1e-5):
    """Relative to the largest entry of the whole tree."""
    scale = max(np.abs(w).max() for w in jax.tree.leaves(want))
    gaps = jax.tree.map(lambda g, w: np.abs(g - w).max(), got, want)
    assert max(jax.tree.leaves(gaps)) <= rtol * scale, (gaps, scale)


# -- the slow, plain update ----------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def naive_logprobs(policy, own, frozen, tokens, total, temperature):
    """All logits of one action alone in a row, under one agent's own weights: the
    log-probability of every token but the first, [T - 1]."""
    params = own
    if policy.mode == "lora":
        stacked = jax.tree.map(lambda p: p[None], own)
        params = policies.agent_params(policy, stacked, frozen, 0)
    index = jnp.arange(ROOM)
    row = (tokens[None], index[None], jnp.where(index < total, total, 0)[None])
    hidden, _ = Decoder(policy.cfg).apply({"params": params}, *row)
    scores = jax.nn.log_softmax(logits(params, policy.cfg, hidden)[0] / temperature)
    return scores[index[:-1], tokens[1:]]


@functools.partial(jax.jit, static_argnums=0)
def naive_gradient(policy, own, frozen, tokens, total, temperature, old, adv, weight):
    def loss(own):
        logp = naive_logprobs(policy, own, frozen, tokens, total, temperature)
        ratio = jnp.exp(jnp.where(weight > 0, logp - old, 0.0))
        bounded = jnp.clip(ratio, 0.8, 1.2)
        return -(weight * jnp.minimum(ratio * adv, bounded * adv)).sum()

    return jax.grad(loss)(own)


ROOM = 24  # one shape, hence one compilation, for actions of all lengths


def alone(action):
    """(tokens padded to ROOM, how many they are, its temperature), and where in
    [ROOM - 1] its own tokens are predicted."""
    tokens = np.zeros(ROOM, np.int32)
    prompt = len(action.prompt_ids)
    total = prompt + len(action.token_ids)
    tokens[:total] = np.concatenate([action.prompt_ids, action.token_ids])
    return (tokens, total, action.temperature), slice(prompt - 1, total - 1)


def spread(values, where):
    out = np.zeros(ROOM - 1, np.float32)
    out[where] = values
    return out


def naive_update(bench, packed, agent, state):
    """One agent's pass, an action at a time. Returns (weights, gradient norms)."""
    config, policy, frozen = bench.config, bench.policy, bench.frozen
    own = of_agent(state.trainable, agent)
    reference = frozen
    if policy.mode == "lora":  # the base: adapters of zero
        reference = jax.tree.map(np.zeros_like, own)
    slots = [[s for s in m.slots if s.agent == agent] for (m,) in packed.minibatches]
    kl = np.zeros_like(packed.actions.mask[agent])
    for s in sum(slots, []):
        row, where = alone(s.action)
        ref = np.asarray(naive_logprobs(policy, reference, frozen, *row))[where]
        kl[s.number, : len(ref)] = s.action.logprobs - ref
    x = jax.tree.map(lambda v: v[agent], packed.actions)
    advantage = credit.advantages(
        x.reward,
        kl,
        x.mask,
        x.group,
        x.kind,
        estimator="reinforce_pp",
        weight="token",
        beta=config.kl.beta,
    )
    o = config.optimizer
    tx = optax.chain(
        optax.clip_by_global_norm(o.max_grad_norm),
        optax.scale_by_adam(o.beta1, o.beta2, o.eps),
    )
    moments, norms = tx.init(own), []
    rate = list(config.agents.values())[agent].learning_rate
    total = update.estimated_updates(config)[agent]
    for taken, part in enumerate(s for s in slots if s):
        count = sum(len(s.action.token_ids) for s in part)
        grads = jax.tree.map(np.zeros_like, own)
        for s in part:
            row, where = alone(s.action)
            n = len(s.action.token_ids)
            values = (s.action.logprobs, advantage[s.number, :n], 1 / count)
            old, adv, weight = (spread(v, where) for v in values)
            one = naive_gradient(policy, own, frozen, *row, old, adv, weight)
            grads = jax.tree.map(np.add, grads, one)
        norms.append(float(optax.global_norm(grads)))
        step, moments = tx.update(grads, moments)
        share = update.schedule_share(taken, total, o.warmup_fraction, 0.1)
        own = jax.tree.map(lambda p, u, r=rate * share: p - r * u, own, step)
    return own, norms, moments


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_the_update_equals_a_plain_one(bench, related, mode):
    """Two mini-batches of packed, micro-batched rows of two agents, against
    jax.grad of one unpadded action at a time."""
    one = bench(mode=mode)
    packed = one.pack(related, size=7)
    assert len(packed.minibatches) == 2
    before, after, metrics = one.step(packed)
    for agent in (0, 1):
        want, norms, moments = naive_update(one, packed, agent, before)
        was = of_agent(before.trainable, agent)
        moved = jax.tree.map(np.subtract, of_agent(after.trainable, agent), was)
        assert_close(moved, jax.tree.map(np.subtract, want, was), rtol=5e-5)
        assert_close(of_agent(after.opt_state[1].mu, agent), moments[1].mu)
        norm = metrics["grad_norm"][agent]
        np.testing.assert_allclose(norm, np.mean(norms), rtol=1e-5)
    np.testing.assert_array_equal(after.updates, [2, 2])
    np.testing.assert_array_equal(after.skipped, 0)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_rows_hold_several_actions_and_micro_batches(bench, related, mode):
    """Which the test above relies on, as on prefixes that are shared."""
    (part,), _ = bench(mode=mode).pack(related, size=7).minibatches
    assert len({s.row for s in part.slots}) < len(part.slots)
    assert min(part.counts) > 1
    apart = sum(len(s.action.prompt_ids) + len(s.action.token_ids) for s in part.slots)
    assert (part.batch.ends > 0).sum() < apart - len(part.slots)


def test_profiles_name_the_parts_of_the_update(bench):
    one = bench()
    programs = one.learner.lowered(one.fresh(), [one.frozen])
    parts = {"gradient", "attention", "head", "optimizer"}
    assert parts <= scopes(programs["update"])
    assert {"reference", "head"} <= scopes(programs["reference/0"])
    assert "credit" in scopes(programs["credit"])


def test_sharing_prefixes_leaves_the_gradient_as_it_was(bench, related):
    """The first moments after one step, with and without, in fewer tokens."""
    one = bench(mode="lora")
    apart = dataclasses.replace(
        one.learner.shape,
        packing=dataclasses.replace(one.config.packing, share_prefixes=False),
    )
    packed = [one.pack(related), one.pack(related, shape=apart)]
    tokens = [sum((m.batch.ends > 0).sum() for (m,) in p.minibatches) for p in packed]
    assert tokens[0] < tokens[1]
    shared, plain = (one.step(p)[1].opt_state[1].mu for p in packed)
    assert_close(shared, plain)


def test_a_missing_verdict_is_as_if_the_action_were_not_there(
    bench, trajectories, make_action, make_trajectory
):
    one = bench()
    extra = make_trajectory([(make_action("a", 0, 5, 4, seed=77), None)], task="t9")
    # In its own order, since the shuffle depends on how many actions there are.
    with_it = one.pack([*trajectories, extra])
    without = one.pack(trajectories)
    assert with_it.counts["a"]["missing"] == 1
    assert_same(dict(with_it.actions.items()), dict(without.actions.items()))
    a, b = one.step(with_it), one.step(without)
    assert_same(a[1].trainable, b[1].trainable)
    assert_same(a[1].opt_state, b[1].opt_state)


@settings(max_examples=6, deadline=None)
@given(gone=st.sets(st.integers(0, 20), max_size=8), seed=st.integers(0, 99))
def test_an_outage_leaves_the_gradient_of_the_rest(bench, trajectories, gone, seed):
    """The loss and the gradient with verdicts missing on some actions are those of the
    batch without those actions, whichever they are."""
    one = bench()
    missing = Missing(MissingReason.SERVER_ERROR, "", JudgeCall("x"))
    rng, number = np.random.default_rng(seed), iter(range(99))
    outage, without = [], []
    for trajectory in trajectories:
        scores = rng.integers(0, 11, len(trajectory.actions)).astype(float)
        given_ = [Verdict(score, "", JudgeCall("x")) for score in scores]
        lost = [next(number) in gone for _ in given_]
        verdicts = [missing if x else v for x, v in zip(lost, given_, strict=True)]
        outage.append(dataclasses.replace(trajectory, verdicts=tuple(verdicts)))
        kept = [i for i, x in enumerate(lost) if not x]
        rest = {
            "actions": tuple(trajectory.actions[i] for i in kept),
            "verdicts": tuple(given_[i] for i in kept),
        }
        without.append(dataclasses.replace(trajectory, **rest))
    packed = [one.pack(outage), one.pack(without)]
    assert sum(c["missing"] for c in packed[0].counts.values()) == len(gone)
    (_, a, loss_a), (_, b, loss_b) = map(one.step, packed)
    assert_close(a.opt_state[1].mu, b.opt_state[1].mu)
    np.testing.assert_allclose(loss_a["loss"], loss_b["loss"], rtol=1e-5, atol=1e-7)


def test_each_agent_has_its_own_learning_rate(bench, trajectories):
    before, after, metrics = bench().step(bench().pack(trajectories))
    np.testing.assert_allclose(metrics["learning_rate"], [0.02, 0.005], rtol=0.2)
    ratio = metrics["learning_rate"][0] / metrics["learning_rate"][1]
    assert ratio == pytest.approx(4.0, rel=1e-5)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_an_agent_without_tokens_keeps_every_bit(bench, trajectories, mode):
    one = bench(mode=mode)
    _, state, _ = one.step(one.pack(trajectories))  # moments are not zero
    fresh = one.fresh()
    warm = jax.tree.map(
        lambda new, x: jax.device_put(new, x.sharding), state, fresh.groups[0]
    )
    warm = fresh.replace(groups=(warm,))
    only_a = [
        dataclasses.replace(
            t,
            actions=tuple(a for a in t.actions if a.agent == "a"),
            verdicts=tuple(
                v for a, v in zip(t.actions, t.verdicts, strict=True) if a.agent == "a"
            ),
        )
        for t in trajectories
    ]
    before, after, metrics = one.step(one.pack(only_a), warm)
    idle = functools.partial(of_agent, agent=1)
    assert_same(idle(after.trainable), idle(before.trainable))
    assert_same(idle(after.opt_state), idle(before.opt_state))
    np.testing.assert_array_equal(after.updates, [2, 1])
    np.testing.assert_array_equal(after.skipped, [0, 0])
    np.testing.assert_array_equal(metrics["updates"], [1, 0])
    assert metrics["trained_tokens"][1] == 0


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_gradient_that_is_not_finite_skips_that_agent_only(bench, trajectories, mode):
    one = bench(mode=mode)
    clean_before, clean, _ = one.step(one.pack(trajectories))
    packed = one.learner.assign_credit(
        one.fresh(), [one.frozen], one.pack(trajectories)
    )
    ((part,),) = packed.minibatches
    slot = next(s for s in part.slots if s.agent == 0)
    part.batch.advantage[slot.row][slot.at] = np.nan
    state, metrics = one.learner.update(one.fresh(), [one.frozen], packed)
    after = jax.device_get(state).groups[0]
    assert_same(of_agent(after.trainable, 0), of_agent(clean_before.trainable, 0))
    assert_same(of_agent(after.opt_state, 0), of_agent(clean_before.opt_state, 0))
    assert_same(of_agent(after.trainable, 1), of_agent(clean.trainable, 1))
    assert np.isfinite(metrics["loss"][1])
    np.testing.assert_array_equal(after.updates, [0, 1])
    np.testing.assert_array_equal(after.skipped, [1, 0])
    np.testing.assert_array_equal(metrics["nonfinite"], [1, 0])


def test_the_numbers_of_one_step(bench, trajectories):
    """Pinned: a change of these is a change of the method."""
    _, after, metrics = bench().step(bench().pack(trajectories))
    norms = [optax.global_norm(of_agent(after.trainable, a)) for a in (0, 1)]
    got = metrics | {"weight_norm": np.asarray(norms)}
    for name, want in PINNED.items():
        np.testing.assert_allclose(got[name], want, rtol=1e-4, err_msg=name)


PINNED = {
    "loss": [0.0372218, 0.1179503],
    "kl": [0.2294243, 0.2351929],
    "clip_fraction": [24 / 46, 15 / 38],
    "mismatch": [0.5518895, 0.4982596],
    "entropy": [3.7139895, 3.7946918],
    "grad_norm": [0.4280681, 0.5965043],
    "learning_rate": [0.0173640, 0.00434099],
    "trained_tokens": [46, 38],
    "weight_norm": [20.5013999, 20.5023468],
}


@pytest.mark.parametrize("kl", ["reward", "loss"])
def test_both_places_of_the_kl_move_the_weights(bench, trajectories, kl):
    one = bench(kl=kl)
    before, after, metrics = one.step(one.pack(trajectories))
    assert np.isfinite(metrics["loss"]).all()
    np.testing.assert_array_equal(after.updates, [1, 1])
    assert np.abs(metrics["kl"]).min() > 0
    moved = np.abs(after.trainable["embed"] - before.trainable["embed"])
    assert (moved.max((1, 2)) > 0).all()


def test_beta_weighs_the_kl_in_the_loss_and_in_the_reward(bench, trajectories):
    """Without it the two places are the same update; with it, no two are."""

    def moved(kl, beta):
        one = bench(kl=kl)
        state = one.fresh()  # away from the reference, where k3 is flat
        (group,) = state.groups
        away = jax.tree.map(lambda p: p * 1.05, group.trainable)
        beta = jax.device_put(jnp.full_like(state.beta, beta), state.beta.sharding)
        state = state.replace(beta=beta, groups=(group.replace(trainable=away),))
        return one.step(one.pack(trajectories), state)[1].opt_state[1].mu["embed"]

    none = moved("reward", 0.0)
    np.testing.assert_allclose(moved("loss", 0.0), none, rtol=1e-4, atol=1e-7)
    for kl in ("reward", "loss"):
        gaps = [np.abs(moved(kl, beta) - none).max((1, 2)) for beta in (0.05, 0.1)]
        assert (gaps[0] > 1e-5).all() and (gaps[1] > 1.5 * gaps[0]).all()


def test_the_controller_of_beta_by_hand():
    """KL twice the target, at it, a tenth below, and an agent without tokens."""
    metrics = {
        "kl": np.asarray([0.2, 0.1, 0.09, 0.0]),
        "beta": np.full(4, 0.01),
        "trained_tokens": np.asarray([5, 5, 5, 0]),
    }
    got = update.next_beta(metrics, KLConfig(target=0.1, rate=0.5))
    np.testing.assert_allclose(got, [0.011, 0.01, 0.0095, 0.01], rtol=1e-6)


def test_beta_follows_the_kl_from_one_iteration_to_the_next(bench, trajectories):
    one = bench()
    kl = KLConfig(beta=0.05, target=1e-3)
    learner = copy.copy(one.learner)
    learner._config = dataclasses.replace(one.config, kl=kl)
    state = one.fresh()
    packed = learner.assign_credit(state, [one.frozen], one.pack(trajectories))
    state, metrics = learner.update(state, [one.frozen], packed)
    np.testing.assert_allclose(metrics["beta"], 0.05)
    np.testing.assert_allclose(state.beta, 0.05 * (1 + 0.1 * 0.2), rtol=1e-6)
    state, metrics = learner.update(state, [one.frozen], packed)  # the same placement
    np.testing.assert_allclose(metrics["beta"], 0.051, rtol=1e-6)


def test_the_kl_is_the_trainers_where_logprobs_are_recomputed(bench, trajectories):
    """Behaviour log-probabilities may be of a cut distribution: at the reference the
    KL is zero all the same."""
    one = bench(old="recompute")
    _, _, metrics = one.step(one.pack(trajectories))
    assert metrics["mismatch"].min() > 0.1  # made-up behaviour log-probabilities
    np.testing.assert_allclose(metrics["kl"], 0, atol=1e-5)


def test_epochs_go_over_the_batch_again(bench, trajectories):
    one = bench()
    learner = copy.copy(one.learner)
    optimizer = dataclasses.replace(one.config.optimizer, epochs=3)
    learner._config = dataclasses.replace(one.config, optimizer=optimizer)
    packed = one.pack(trajectories, size=6)
    state = one.fresh()
    packed = learner.assign_credit(state, [one.frozen], packed)
    state, metrics = learner.update(state, [one.frozen], packed)
    np.testing.assert_array_equal(state.groups[0].updates, [6, 6])
    np.testing.assert_array_equal(metrics["trained_tokens"], [3 * 46, 3 * 38])


def test_the_kl_in_the_loss_leaves_the_advantages_alone(bench, trajectories):
    """k3 penalises in the loss only: advantages are those without a KL."""
    one = bench(kl="loss")
    packed = one.learner.assign_credit(
        one.fresh(), [one.frozen], one.pack(trajectories)
    )
    got = np.zeros_like(packed.actions.mask)
    for (part,) in packed.minibatches:
        part.gather(part.batch.advantage, got)
    mask, reward = packed.actions.mask[0], packed.actions.reward[0]
    values = np.repeat(reward, mask.sum(1).astype(int))
    want = (reward - values.mean()) / values.std()
    np.testing.assert_allclose(got[0], want[:, None] * mask, rtol=1e-4, atol=1e-6)


def test_recomputed_logprobs_are_the_trainers_with_importance(bench, trajectories):
    one = bench(old="recompute")
    state = one.fresh()
    packed = one.learner.assign_credit(state, [one.frozen], one.pack(trajectories))
    ((part,),) = packed.minibatches
    for s in part.slots:
        a, n = s.action, len(s.action.token_ids)
        row, predicted = alone(a)
        own = of_agent(state.trainable[0], s.agent)
        want = np.asarray(naive_logprobs(one.policy, own, None, *row))[predicted]
        where = (*s.row, slice(s.at, s.at + n))
        np.testing.assert_allclose(part.batch.old[where], want, atol=1e-4)
        weight = np.minimum(np.exp(want - a.logprobs), 2.0)
        np.testing.assert_allclose(part.batch.importance[where], weight, rtol=1e-3)
    assert part.batch.importance.max() == 2.0  # the truncation was met
    _, after, metrics = one.step(one.pack(trajectories))
    np.testing.assert_array_equal(metrics["clip_fraction"], 0)  # all ratios are 1
    np.testing.assert_array_equal(after.updates, [1, 1])


# -- meshes ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_nothing_is_moved_that_was_not_asked_to(bench, trajectories, mode):
    """Credit and update put arrays where they belong by themselves; whatever else came
    from the host would be a transfer that nobody wrote down."""
    one = bench(mode=mode)
    state, packed = one.fresh(), one.pack(trajectories)
    with jax.transfer_guard("disallow"):
        packed = one.learner.assign_credit(state, [one.frozen], packed)
        state, _ = one.learner.update(state, [one.frozen], packed)


def test_rows_that_do_not_divide_the_mesh_are_refused_by_name(make_config, make_policy):
    """Before any weights are there."""
    config = make_config(packing=PackingConfig(row_tokens=24, rows=6))
    mesh = make_mesh(MeshConfig(1, 8, 1, 1))
    with pytest.raises(ConfigError, match="config.packing.rows"):
        update.Learner((make_policy(config, mesh=mesh),), config, mesh)


# -- the schedule ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taken", "share"),
    [
        (0, 0.25),  # counts from 1: the first update is not lost
        (3, 1.0),  # the end of the warm-up
        (11, 0.1 + 0.9 * 0.5),  # half of the cosine
        (19, 0.1),
        (500, 0.1),  # clamped
    ],
)
def test_the_schedule_warms_up_and_falls_along_a_cosine(taken, share):
    got = update.schedule_share(taken, 20, 0.2, 0.1)
    assert float(got) == pytest.approx(share, rel=1e-5)


def test_a_schedule_of_one_update_is_not_zero():
    assert float(update.schedule_share(0, 1, 0.03, 0.1)) > 0


def test_the_schedule_is_as_long_as_the_updates_that_can_be_taken(make_config):
    """2 steps x 1 epoch x ceil(8 rollouts x 2 turns / 12)."""
    np.testing.assert_array_equal(update.estimated_updates(make_config()), [4, 4])
