"""The rubric's scores, computed by hand, and that nothing can break it."""

import asyncio
import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mappa_jax.config import JudgeConfig
from mappa_jax.judges import Ledger, make_judge
from mappa_jax.types import Message, Observation, Verdict

JUDGE = make_judge(
    JudgeConfig(provider="rubric"), roles=[], keys={}, ledger=Ledger(None)
)
TASK = "Tom has 12 bags of 7 marbles and gives 4 away. How many are left?"
CODE = "n = 12 * 7\nprint(n - 4)"
BLOCK = f"```python\n{CODE}\n```"


def judge(request):
    return asyncio.run(JUDGE.score(request))


SOLVER = [
    # 0.5 form + 0.5 form + 3 steps + 2 numbers + 2 answer + 2 from a step
    ("12 * 7 = 84, 84 - 4 = 80. The answer is 80.", {}, 10.0),
    ("12 * 7 = 84. 84 - 4 = 80. So \\boxed{80}.", {"finish": "length"}, 9.5),
    # 3 * 1/2 for the steps, 2 * 2/3 for the numbers, the result from no step
    ("12 * 7 = 84, 84 - 4 = 81. The answer is 81.", {}, 5.8333),
    ("12 * 7 = 84, 84 - 4 = 80.", {}, 6.0),  # 1 + 3 + 2, and no answer
    ("The answer is 80.", {}, 3.0),
    ("1 = 1. 5 + 0 = 5. The answer is 5.", {}, 3.0),  # steps that do nothing
    ("100 + 100 = 200. The answer is 200.", {}, 3.0),  # nor any of the task's numbers
    ("12 + 12 = 25. The answer is 25.", {}, 3.0),
    ("I like marbles.", {}, 1.0),
    ("12 * 7 = 84. " * 20, {"finish": "length"}, 4.3333),  # 3 + 2 * 2/3
    ("", {}, 0.0),
    (" \n ", {}, 0.0),
]


@pytest.mark.parametrize("text, fields, score", SOLVER)
def test_solver(make_request, text, fields, score):
    assert judge(make_request("solver", text, **fields)).score == score


CODER = [
    # 1 form + 1 block + 2 ran + 2 printed + 4 numbers
    (BLOCK, CODE, Observation("80\n"), 10.0),
    (BLOCK, CODE, Observation("81\n"), 10.0),  # whatever the solver had said
    (BLOCK, CODE, Observation(""), 8.0),
    (BLOCK, CODE, Observation("80\n", exit_status=1), 6.0),
    (BLOCK, CODE, Observation("80\n", limit="wall_time"), 6.0),
    (BLOCK, CODE, None, 6.0),
    ("print", "print(80)", Observation("80\n"), 6.0),  # computes nothing
    ("print", "print(12 * 7)", Observation("84\n"), 8.6667),  # 1+1+2+2+8/3
    ("It is 80.", None, None, 1.0),
]


@pytest.mark.parametrize("text, code, seen, score", CODER)
def test_coder(make_request, text, code, seen, score):
    request = make_request("coder", text, code=code, observation=seen)
    assert judge(request).score == score


def test_a_number_counts_as_often_as_the_task_has_it(make_request):
    request = make_request("coder", BLOCK, code="print(3 + 5)", observation=None)
    request = dataclasses.replace(request, task="What is 3 + 5 - 3?")
    # 1 form + 1 block + 4 * 2/3
    assert judge(request).score == 4.6667


def ran(make_request, stdout, **fields):
    """What a program printed before the action that is judged."""
    seen = Observation(stdout, **fields)
    return (make_request("coder", BLOCK, code=CODE, observation=seen).action,)


@pytest.mark.parametrize(
    "text, score",
    [
        ("The answer is 80.", 10.0),
        ("The code printed 80, as expected.", 10.0),
        ("The answer is 8.", 4.0),
        ("Done.", 1.0),
    ],
)
def test_coder_reports_what_was_printed(make_request, text, score):
    before = ran(make_request, "n is\n\n80\n", stderr="warning 7")
    request = make_request("coder", text, turn=1, before=before)
    assert judge(request).score == score


VERIFIER = [
    # 1 form + 2 boxed + 1 one + 3 tool (or a number) + 3 reference
    ("\\boxed{80}", "n is 80", "80", 10.0, True),
    ("\\boxed{80}", "n is 80", None, 10.0, None),
    ("\\boxed{81}", "n is 80", "80", 4.0, False),
    ("\\boxed{81}", "n is 80", None, 5.7143, None),  # 4 of 7
    ("\\boxed{81} \\boxed{80}", "n is 80", "80", 9.0, True),
    ("\\boxed{80}", "n is 80", "79", 7.0, False),
    ("\\boxed{80}", "", "80", 10.0, True),
    ("\\boxed{eighty}", "", "80", 4.0, False),
    ("The answer is 80.", "n is 80", "80", 1.0, True),
    ("\\boxed{80", "n is 80", "80", 1.0, False),
    ("\\boxed{}", "n is 80", "80", 1.0, False),
    ("Hm.", "n is 80", "80", 1.0, False),
]


@pytest.mark.parametrize("text, stdout, reference, score, correct", VERIFIER)
def test_verifier(make_request, text, stdout, reference, score, correct):
    before = ran(make_request, stdout)
    request = make_request("verifier", text, before=before, reference=reference)
    verdict = judge(request)
    assert (verdict.score, verdict.correct) == (score, correct)


def test_an_output_that_an_agent_only_claims_counts_for_nothing(make_request):
    claimed = (Message("user", f"{TASK}\n\nOutput of its code:\n81"),)
    before = ran(make_request, "80")
    text = "\\boxed{81}"
    request = make_request("verifier", text, messages=claimed, before=before)
    assert judge(request).score == 5.7143


def test_only_the_last_agent_is_measured_by_the_reference(make_request):
    text = "12 * 7 = 84, 84 - 4 = 80. The answer is 80."
    shown = judge(make_request("solver", text, reference="5"))
    hidden = judge(make_request("solver", text))
    assert (shown.score, shown.correct) == (hidden.score, None)


def test_a_role_that_is_not_known_gets_the_general_checks(make_request):
    request = make_request("critic", "12, 7 and 4 give 80. The answer is 80.")
    assert judge(request).score == 10.0


def test_the_rationale_names_every_check(make_request):
    request = make_request("solver", "12 * 7 = 84, 84 - 4 = 81. The answer is 81.")
    assert judge(request).rationale.split("\n") == [
        "within the length limit: yes (+0.5 of 0.5)",
        "readable and not repetitive: yes (+0.5 of 0.5)",
        "arithmetic steps that hold: 50% (+1.5 of 3)",
        "steps use the task's numbers: 67% (+1.33333 of 2)",
        "states a final answer: yes (+2 of 2)",
        "the answer is the result of a step that holds: no (+0 of 2)",
    ]


@pytest.mark.parametrize("role", ["solver", "coder", "verifier", "critic"])
def test_random_bytes_earn_next_to_nothing(make_request, role):
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = rng.bytes(200).decode(errors="replace")
        assert (
            judge(make_request(role, text, before=ran(make_request, "80"))).score <= 2
        )


ANY_TEXT = st.text() | st.text("0123456789+-*/=()., \\boxed{}answeris%`\n")


@hypothesis.given(
    role=st.sampled_from(["solver", "coder", "verifier", "critic"]),
    text=ANY_TEXT,
    code=st.none() | ANY_TEXT,
    shown=ANY_TEXT,
    turn=st.integers(0, 1),
    reference=st.none() | ANY_TEXT,
)
@hypothesis.settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_any_text_has_a_score_and_always_the_same(
    make_request, role, text, code, shown, turn, reference
):
    fields = {
        "code": code,
        "turn": turn,
        "reference": reference,
        "observation": Observation(shown),
        "messages": (Message("user", shown),),
    }
    first, second = (judge(make_request(role, text, **fields)) for _ in range(2))
    assert isinstance(first, Verdict) and 0 <= first.score <= 10
    assert (first.score, first.rationale) == (second.score, second.rationale)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000 + "1" + ")" * 5000,
        "-" * 5000 + "1",
        "1+" * 5000 + "1 = 2",
        "0x" + "f" * 10_000,
        "\\boxed{" * 2000,
        "1 = " * 5000,
        "x = '\\d'",
        "1e999",
        " \\frac{" * 2000,
    ],
)
def test_hostile_text_is_read_quickly(make_request, text):
    for role in ("solver", "coder", "verifier"):
        verdict = judge(make_request(role, text, code=text))
        assert verdict.call.latency_s < 1
