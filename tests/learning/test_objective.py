"""The clipped surrogate by hand, and log-probabilities against all the logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mappa_jax.config import ObjectiveConfig, PackingConfig
from mappa_jax.learning import batch as batches
from mappa_jax.learning import objective
from mappa_jax.learning.packing import pack_rows
from mappa_jax.models import hf
from mappa_jax.models.decoder import Decoder, logits


def blank(packing):
    """One micro-batch of one lane."""
    group = batches.GroupShape((0,), frozenset({0}), lanes=1, microbatches=1)
    return jax.tree.map(lambda x: x[0, 0], batches.blank(packing, group))


def surrogate(ratio, advantage, *, importance=1.0, config=None):
    """(losses, clipped) of tokens with these ratios; old log-probability -2."""
    one = blank(PackingConfig(4, len(ratio), 1))
    logp = np.log(np.asarray([ratio], np.float32)) - 2
    one = one.replace(
        old=np.full_like(logp, -2.0),
        advantage=np.asarray([advantage], np.float32),
        importance=np.full_like(logp, importance),
    )
    config = config or ObjectiveConfig(eps_low=0.2, eps_high=0.3)
    loss, clipped = objective.surrogate(logp, one, config)
    return np.asarray(loss)[0], np.asarray(clipped)[0]


def test_the_clip_binds_only_where_it_makes_the_loss_larger():
    ratio = [0.5, 1.0, 1.25, 2.0]
    loss, clipped = surrogate(ratio, [2.0] * 4)
    np.testing.assert_allclose(loss, [-1.0, -2.0, -2.5, -2.6], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [False, False, False, True])
    loss, clipped = surrogate(ratio, [-2.0] * 4)
    np.testing.assert_allclose(loss, [1.6, 2.0, 2.5, 4.0], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [True, False, False, False])


def test_a_clipped_token_has_no_gradient():
    def total(logp):
        one = blank(PackingConfig(4, 2, 1))
        one = one.replace(advantage=np.ones((1, 2), np.float32))
        return objective.surrogate(logp, one, ObjectiveConfig())[0].sum()

    grad = jax.grad(total)(jnp.log(jnp.asarray([[1.1, 1.3]])))
    np.testing.assert_allclose(grad, [[-1.1, 0.0]], rtol=1e-6)


def test_the_importance_weight_scales_the_surrogate():
    loss, _ = surrogate([1.0, 1.1], [1.0, -1.0], importance=0.5)
    np.testing.assert_allclose(loss, [-0.5, 0.55], rtol=1e-6)


def test_k3_by_hand():
    """d = ref - new = 1, 0, -2: exp(d) - d - 1 = e - 2, 0, exp(-2) + 1."""
    got = objective.k3(np.full(3, -2.0), np.asarray([-1.0, -2.0, -4.0]))
    np.testing.assert_allclose(got, [np.e - 2, 0.0, np.exp(-2) + 1], rtol=1e-5)


@pytest.mark.parametrize("chunk", [4, 256])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_logprobs_equal_those_of_all_logits(
    micro, make_policy, make_config, make_action, monkeypatch, chunk, softcap
):
    """Of packed rows, at three temperatures, against each action in a row alone."""
    monkeypatch.setattr(objective, "HEAD_BLOCK", chunk)
    cfg = dataclasses.replace(micro, final_softcap=softcap)
    policy = make_policy(make_config(), cfg=cfg)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32),
        hf.param_shapes(cfg),
    )
    first = make_action(prompt=6, new=5, seed=1, temperature=0.7)
    turn = np.concatenate([first.prompt_ids, first.token_ids, [3, 1]])
    actions = {
        0: first,
        1: make_action(prompt=5, new=4, seed=2, temperature=1.0),
        2: make_action(prompt=3, new=6, seed=3, temperature=1.6),
        3: dataclasses.replace(  # another sample of the first's prompt
            make_action(new=3, seed=4, temperature=1.6), prompt_ids=first.prompt_ids
        ),
        4: dataclasses.replace(  # the turn after the first
            make_action(new=2, seed=5, temperature=0.7), prompt_ids=turn
        ),
    }
    packing = PackingConfig(row_tokens=20, row_action_tokens=12, rows=2)
    rows = pack_rows([batches._item(*na) for na in actions.items()], packing)
    assert len(rows) == 2  # they would not fit in two without what they share
    one = blank(packing)
    placed = [
        slot
        for r, row in enumerate(rows)
        for slot in batches._write_row(one, (r,), 0, row, actions)
    ]
    assert {slot.number for slot in placed} == set(actions)
    blocks = objective.head_blocks(policy, one.mask[None, None])[0, 0]
    got = jax.jit(
        lambda p, rows: objective.action_logprobs(policy, p, None, rows, blocks)
    )(params, one)
    assert np.isfinite(got).all()

    @jax.jit
    def alone(tokens, ends):
        positions = jnp.arange(20)[None]
        hidden, _ = Decoder(cfg).apply({"params": params}, tokens, positions, ends)
        return logits(params, cfg, hidden)[0]

    for slot in placed:
        action = slot.action
        ids = np.concatenate([action.prompt_ids, action.token_ids])
        prompt, total = len(action.prompt_ids), len(ids)
        tokens = np.zeros((1, 20), np.int32)
        tokens[0, :total] = ids
        scores = alone(tokens, np.where(np.arange(20) < total, total, 0)[None])
        logp = np.asarray(jax.nn.log_softmax(scores / action.temperature))
        want = logp[np.arange(prompt - 1, total - 1), ids[prompt:]]
        np.testing.assert_allclose(
            got[slot.row][slot.at : slot.at + total - prompt],
            want,
            rtol=1e-4,
            atol=1e-5,
        )


def test_a_sequence_ratio_is_the_geometric_mean_of_its_action():
    """GSPO by hand: actions of the log ratios (0.1, 0.3) and (-0.4), then padding. The
    ratios are exp(0.2), twice, and exp(-0.4); the first is clipped at 1.1."""
    config = ObjectiveConfig(ratio="sequence", eps_low=0.5, eps_high=0.1)
    one = blank(PackingConfig(8, 4, 1)).replace(
        action=np.array([[0, 0, 1, 0]], np.int32),
        mask=np.array([[1, 1, 1, 0]], np.float32),
        advantage=np.array([[1.0, -2.0, 3.0, 0.0]], np.float32),
        old=np.full((1, 4), -2.0, np.float32),
    )
    logp = jnp.asarray([[-1.9, -1.7, -2.4, 0.0]])
    loss, clipped = objective.surrogate(logp, one, config)
    up, down = np.exp(0.2), np.exp(-0.4)
    np.testing.assert_allclose(loss, [[-1.1, 2 * up, -3 * down, 0]], rtol=1e-6)
    np.testing.assert_array_equal(clipped, [[True, False, False, False]])

    # A token's log-probability moves the ratio of all tokens of its action: here only
    # the second is not clipped, by half of ratio times 2.
    grad = jax.grad(lambda x: objective.surrogate(x, one, config)[0].sum())(logp)
    np.testing.assert_allclose(grad, [[up, up, -3 * down, 0]], rtol=1e-6)


def test_the_likelihood_asks_for_no_advantage():
    one = blank(PackingConfig(4, 3, 1))
    logp = jnp.asarray([[-0.5, -2.0, 0.0]])
    config = ObjectiveConfig(loss="likelihood")
    loss, clipped = objective.token_losses(logp, one, config)
    np.testing.assert_array_equal(loss, [[0.5, 2.0, 0.0]])
    assert not np.asarray(clipped).any()
