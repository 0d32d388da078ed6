"""Probabilities of short answers, against each answer in a forward of its own."""

import jax
import numpy as np
import pytest

from mappa_jax.models import policy as policies
from mappa_jax.sampling.choice import ChoiceScorer

ANSWERS = [[3, 1], [4, 1], [4, 5, 1], [6, 7, 8, 1]]  # 1 ends them


@pytest.fixture(scope="module")
def parts(micro, make_team):
    team = make_team("full")
    params = policies.agent_params(team.policy, team.trainable, team.frozen, 0)
    return team, ChoiceScorer(micro, params, ANSWERS, [24, 32])


@pytest.mark.parametrize("length", [1, 5, 23])
def test_it_is_the_softmax_of_the_answers_log_probabilities(parts, length):
    team, scorer = parts
    prompt = np.random.default_rng(length).integers(9, 30, length).astype(np.int32)
    found = scorer(prompt)
    logp = []
    for answer in ANSWERS:
        tokens = np.concatenate([prompt, answer])
        scores = np.asarray(jax.nn.log_softmax(team.scores(0, tokens)))
        steps = np.arange(len(prompt) - 1, len(tokens) - 1)
        logp.append(scores[steps, tokens[steps + 1]].sum())
    want = np.exp(logp - np.max(logp))
    np.testing.assert_allclose(found, want / want.sum(), rtol=1e-4)


def test_the_room_is_what_fits(parts):
    _, scorer = parts
    assert scorer.room == 32 - 7  # all answers but their last tokens
    assert scorer(np.full(scorer.room, 9, np.int32)).sum() == pytest.approx(1)
