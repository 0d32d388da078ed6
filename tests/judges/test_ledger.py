"""The ledger: cache, account, replay; and what a crash leaves of it."""

import dataclasses
import json

import pytest

from mappa_jax.judges import JudgeError, Ledger
from mappa_jax.judges.ledger import ANSWERED, Entry
from mappa_jax.judges.provider import Usage


def entry(key="k", address="1/s/t/0/0", answer="A", outcome=ANSWERED, **fields):
    usage = Usage(prompt=100, cached=10, answer=20, thinking=5)
    return Entry(key, address, "p", "m", outcome, "", answer, usage, 0.5, **fields)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def write(path, *entries):
    ledger = Ledger(path)
    for one in entries:
        ledger.append(one, prompt=f"prompt of {one.key}")
    ledger.close()


def test_it_reads_back_what_was_written(path):
    entries = [entry("a"), entry("b", answer="\u00e9\n\ud800"), entry("c")]
    write(path, *entries)
    ledger = Ledger(path, read_only=True)
    assert ledger.answered("a") == entries[0]
    assert ledger.answered("b").answer == "\u00e9\n?"  # what UTF-8 can hold
    assert ledger.answered("none") is None
    assert (ledger.spent.calls, ledger.spent.tokens) == (3, 3 * 125)
    assert ledger.spent.usd == pytest.approx(1.5)


def test_only_answers_are_reused(path):
    write(path, entry("a", answer=None, outcome="timeout"))
    assert Ledger(path, read_only=True).answered("a") is None


def test_a_replay_finds_what_the_run_got_where_it_asked(path):
    write(
        path,
        entry("a", "1/0", None, "timeout"),
        entry("a", "2/0", "first"),
        entry("a", "3/0", None, "timeout"),  # abandoned, and then asked again
        entry("a", "3/0", "last"),
    )
    ledger = Ledger(path, read_only=True)
    assert ledger.at("a", "1/0").outcome == "timeout"
    assert ledger.at("a", "2/0").answer == "first"
    assert ledger.at("a", "3/0").answer == "last"
    assert ledger.at("a", "9/0").answer == "last"  # of the cache, in the run too
    assert ledger.at("b", "1/0") is None


def test_a_torn_last_line_is_removed_wherever_it_tore(path):
    write(path, entry("a"), entry("b"))
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        ledger = Ledger(path)
        assert ledger.answered("a") and not ledger.answered("b")
        assert path.read_bytes() == whole[:start]
        ledger.append(entry("c"), "prompt of c")
        ledger.close()
        assert Ledger(path, read_only=True).answered("c") == entry("c")


def test_a_damaged_line_is_named(path):
    write(path, entry("a"), entry("b"))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = b'{"call": {}}\n'
    path.write_bytes(b"".join(lines))
    before = path.read_bytes()
    with pytest.raises(JudgeError, match=r"ledger.jsonl:3: .*remove that line"):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_text_is_stored_once(path):
    write(path, entry("a", "1"), entry("a", "2"), entry("b", answer="A"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    blobs = [row["blob"] for row in rows if "blob" in row]
    assert len(blobs) == len(set(blobs)) == 3  # two prompts, one answer
    again = Ledger(path)
    again.append(entry("b", "4"), "prompt of b")
    again.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum("blob" in row for row in rows) == 3


def test_a_replay_writes_nothing(path):
    write(path, entry("a"))
    torn = path.read_bytes() + b'{"call'
    path.write_bytes(torn)
    ledger = Ledger(path, read_only=True)
    with pytest.raises(ValueError, match="replayed"):
        ledger.append(entry("b"), "x")
    ledger.close()
    assert path.read_bytes() == torn


def test_no_ledger_to_replay_is_named(tmp_path):
    with pytest.raises(JudgeError, match="judge.replay.*none.jsonl"):
        Ledger(tmp_path / "none.jsonl", read_only=True)


def test_in_memory_it_leaves_no_file(tmp_path):
    ledger = Ledger(None)
    ledger.append(entry("a"), "x")
    assert ledger.answered("a") == entry("a")
    assert dataclasses.asdict(ledger.spent)["calls"] == 1
    assert list(tmp_path.iterdir()) == []
