"""Faults put into verdicts: exact shares, addressed draws, nothing else moved."""

import dataclasses

import numpy as np
import pytest

from mappa_jax.config import ConfigError, ControlConfig, parse_bias
from mappa_jax.judges.controls import controlled
from mappa_jax.testing import CALL, make_action
from mappa_jax.types import Missing, MissingReason, Task, Trajectory, Verdict


def batch(count=20, score=5.0):
    """Trajectories of two kinds, a solver's and a verifier's action each; the solver's
    are 1, 2, ... tokens long."""
    return [
        Trajectory(
            task=Task(str(n), "?", metadata={"kind": ("even", "odd")[n % 2]}),
            step=3,
            sample=0,
            actions=(
                make_action("solver", "x" * (n + 1)),
                make_action("verifier", "y"),
            ),
            verdicts=(Verdict(score, "fine", CALL), Verdict(score, "fine", CALL)),
        )
        for n in range(count)
    ]


def scores(trajectories, agent=0):
    return [getattr(t.verdicts[agent], "score", None) for t in trajectories]


def test_without_a_fault_nothing_is_touched():
    made = batch()
    assert list(controlled(made, ControlConfig(), 0)) == made


def test_a_constant_and_what_was_judged():
    (first, *_) = found = controlled(batch(), ControlConfig(constant=7.0), 0)
    assert set(scores(found)) == {7.0}
    assert first.verdicts[0].rationale == "[judged 5] fine"


def test_a_bias_is_of_an_agent_and_of_a_kind():
    config = ControlConfig(bias="verifier:-2,odd:0.5")
    found = controlled(batch(4), config, 0)
    assert scores(found) == [5.0, 5.5, 5.0, 5.5]
    assert scores(found, 1) == [3.0, 3.5, 3.0, 3.5]
    assert set(scores(controlled(batch(4), ControlConfig(bias="solver:9"), 0))) == {
        10.0
    }


def test_noise_has_its_width_and_its_address():
    """1,000 draws of standard deviation 0.5; in another order each is the same, with
    another seed or at another step another."""
    made, config = batch(1000), ControlConfig(noise=0.5)
    found = scores(controlled(made, config, 0))
    assert abs(np.mean(found) - 5) < 0.06 and abs(np.std(found) - 0.5) < 0.04
    assert scores(controlled(made[::-1], config, 0))[::-1] == found
    later = [dataclasses.replace(t, step=4) for t in made[:5]]
    for other in (controlled(made[:5], config, 1), controlled(later, config, 0)):
        assert not set(scores(other)) & set(found[:5])
    verifier = scores(controlled(made, config, 0), 1)
    assert abs(np.corrcoef(found, verifier)[0, 1]) < 0.1


def test_verdicts_go_missing_in_the_share_that_was_asked_for():
    config = ControlConfig(missing=0.3)
    found = controlled(batch(20), config, 0)
    for agent in (0, 1):
        gone = [
            t.verdicts[agent] for t in found if isinstance(t.verdicts[agent], Missing)
        ]
        assert len(gone) == 6
        assert {m.reason for m in gone} == {MissingReason.CONTROL}
    assert [s is None for s in scores(found)] != [s is None for s in scores(found, 1)]


def test_or_where_the_action_is_long():
    found = controlled(batch(20), ControlConfig(missing=0.3, missing_where="long"), 0)
    assert [s is None for s in scores(found)] == [False] * 14 + [True] * 6
    assert sum(s is None for s in scores(found, 1)) == 6  # all are as long


@pytest.mark.parametrize("text", ["solver", "solver:x", ":1", "a:1,a:2", "a:nan"])
def test_a_bias_that_cannot_be_read_is_named(text):
    with pytest.raises(ConfigError, match=r"judge\.control\.bias"):
        parse_bias(text)


def test_a_bias_by_kinds_with_colons():
    assert parse_bias("reasoning_gym:chain_sum:0.5, solver:-1") == {
        "reasoning_gym:chain_sum": 0.5,
        "solver": -1.0,
    }
