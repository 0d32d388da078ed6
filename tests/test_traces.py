"""Traces in and out, and as actions."""

import json

import pytest

from mappa_jax import traces
from mappa_jax.testing import CharTokenizer
from mappa_jax.traces import Trace, TraceError
from mappa_jax.types import Message

AGENTS = ("solver", "verifier")
GOOD = {
    "agent": "solver",
    "messages": [{"role": "user", "content": "1 + 1?"}],
    "answer": "2",
}


def read(tmp_path, *lines):
    path = tmp_path / "traces.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return traces.read_traces(path, AGENTS)


def test_what_was_written_is_read(tmp_path):
    chat = (Message("system", "Add."), Message("user", "1 +\n1 é?"))
    rows = [Trace("solver", chat, "2\n"), Trace("verifier", chat[1:], "\\boxed{2}")]
    path = tmp_path / "a" / "traces.jsonl"
    traces.write_traces(path, rows)
    found = traces.read_traces(path, AGENTS)
    assert [(t.agent, t.messages, t.answer) for t in found] == [
        (t.agent, t.messages, t.answer) for t in rows
    ]
    assert [t.where for t in found] == [f"{path}:1", f"{path}:2"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[]", "keys"),
        (json.dumps(GOOD | {"score": 3}), "keys"),
        (json.dumps(GOOD | {"agent": "poet"}), "'poet'"),
        (json.dumps(GOOD | {"answer": ""}), "'answer'"),
        (json.dumps(GOOD | {"answer": 2}), "'answer'"),
        (json.dumps(GOOD | {"messages": []}), "'messages'"),
        (json.dumps(GOOD | {"messages": [{"role": "user"}]}), r"messages\[0\]"),
        (json.dumps(GOOD | {"messages": [{"role": "me", "content": ""}]}), "role"),
    ],
)
def test_a_line_that_is_no_trace_is_named(tmp_path, line, said):
    with pytest.raises(TraceError, match=rf"traces.jsonl:2.*{said}"):
        read(tmp_path, json.dumps(GOOD), line)


def test_a_file_without_traces_or_no_file_is_named(tmp_path):
    with pytest.raises(TraceError, match="no trace"):
        read(tmp_path, "")
    with pytest.raises(TraceError, match=r"none.jsonl: No such file"):
        traces.read_traces(tmp_path / "none.jsonl", AGENTS)


class Tokenizer(CharTokenizer):
    def encode(self, text):
        return [ord(c) for c in text]

    def sanitise(self, text):
        return text.replace("<end>", "")


def action(answer="ab", *, new_tokens=3, context=8):
    trace = Trace("solver", (Message("user", "12345"),), answer, "t:7")
    return traces.to_action(
        trace, Tokenizer(), thinking=False, new_tokens=new_tokens, context=context
    )


def test_an_action_is_the_answer_and_what_ends_it():
    made = action()
    assert made.prompt_ids.tolist() == [ord(c) for c in "12345"]
    assert made.token_ids.tolist() == [ord("a"), ord("b"), 0]
    assert made.finish == "stop" and made.logprobs.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"new_tokens": 2}, "3 tokens.*agents.solver.max_new_tokens=2"),
        ({"context": 7}, "8 tokens.*sampler.context=7"),
        ({"answer": "a<end>", "new_tokens": 9, "context": 99}, "control token"),
    ],
)
def test_what_cannot_be_an_action_is_named(changes, said):
    with pytest.raises(TraceError, match=f"t:7.*{said}"):
        action(**changes)
