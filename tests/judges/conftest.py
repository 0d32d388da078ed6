"""Requests as the MathChat team makes them."""

import numpy as np
import pytest

from mappa_jax.types import Action, JudgeRequest, Message, Observation, Role

TASK = "Tom has 12 bags of 7 marbles and gives 4 away. How many are left?"
TEAM = (
    Role("solver", "problem solver", "Solve it."),
    Role("coder", "code executor", "Compute it.", max_turns=2, uses_tool=True),
    Role("verifier", "verifier", "State the final answer."),
)


def _request(
    role, text, *, messages=None, tokens=5, reference=None, before=(), **action
):
    team = {seat.name: seat for seat in TEAM}
    if messages is None:
        messages = (Message("system", "You do sums."), Message("user", TASK))
    fields = {"content": text, "finish": "stop", "turn": 0} | action
    return JudgeRequest(
        team=TEAM,
        role=team.get(role) or Role(role, role, "Help."),
        task=TASK,
        action=Action(
            agent=role,
            messages=tuple(messages),
            prompt_ids=np.arange(3, dtype=np.int32),
            token_ids=np.arange(tokens, dtype=np.int32),
            logprobs=np.zeros(tokens, np.float32),
            text=text,
            **fields,
        ),
        token_limit=64,
        before=tuple(before),
        reference=reference,
    )


@pytest.fixture(name="make_request")
def make_request_fixture():
    """(role, text, **fields) -> JudgeRequest."""
    return _request


@pytest.fixture
def task():
    return TASK


@pytest.fixture
def observe():
    """(stdout, **fields) -> Observation."""
    return lambda stdout="", **fields: Observation(stdout=stdout, **fields)
