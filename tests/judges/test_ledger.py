"""The ledger: cache, account, replay; and what a crash leaves of it."""

import contextlib
import dataclasses
import json

import pytest

from mappa_jax.config import BudgetConfig, JudgeConfig
from mappa_jax.judges import JudgeError, Ledger, make_judge
from mappa_jax.judges.account import Account
from mappa_jax.judges.ledger import ANSWERED, Entry, Spent
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


# -- several hosts ----------------------------------------------------------------


def test_hosts_keep_files_of_their_own_which_all_read(tmp_path):
    """The same answer stands in each file that needs it, in whatever order they are
    read; what was said last at an address counts."""
    path = tmp_path / "judge_ledger.jsonl"
    entries = [
        entry(key="a", address="1", outcome="timeout", answer=None, time=1.0),
        entry(key="a", address="1", answer="same", time=2.0),
        entry(key="b", address="2", answer="same", time=3.0),
        entry(key="c", address="3", answer="same", time=4.0),
    ]
    for one, host in zip(entries, (1, 0, 0, 2), strict=True):
        with contextlib.closing(Ledger(path, host=host)) as ledger:
            ledger.append(one, "prompt")
    assert {p.name for p in tmp_path.iterdir()} == {
        "judge_ledger.jsonl",
        "judge_ledger.host1.jsonl",
        "judge_ledger.host2.jsonl",
    }
    for host in range(4):
        with contextlib.closing(Ledger(path, host=host)) as ledger:
            assert ledger.spent.calls == 4
            assert ledger.at("a", "1").answer == "same"
            assert ledger.answered("c").answer == "same"


def test_hosts_learn_of_calls_without_writing_them(tmp_path):
    path = tmp_path / "judge_ledger.jsonl"
    one, two = Ledger(path), Ledger(path, host=1)
    with contextlib.closing(one), contextlib.closing(two):
        one.append(entry(key="a"), "prompt")
        two.learn(one.take_new())
        assert two.answered("a").key == "a" and two.spent.usd == two.settled.usd == 0.5
        assert one.take_new() == [] and two.take_new() == []
    assert (tmp_path / "judge_ledger.host1.jsonl").read_bytes() == b""


def test_a_cap_holds_for_all_hosts_together():
    """Ten calls, or 2.4 dollars at 0.5 each, before three hosts tell one another."""

    def made(hosts, **budget):
        calls = [0] * hosts
        for host in range(hosts):
            ledger = Ledger(None)
            account = Account(BudgetConfig(**budget), ledger, host, hosts)
            while account.over(Spent(calls=1, usd=0.5)) is None:
                ledger.append(entry(key=str(calls[host])), "prompt")
                calls[host] += 1
        return calls

    assert made(1, calls=10) == [10]
    assert made(3, calls=10) == [4, 3, 3]
    assert made(4, calls=1) == [1, 0, 0, 0]
    assert made(3, usd=2.4) == [1, 1, 1]


def test_a_rate_that_cannot_be_divided_is_refused():
    config = JudgeConfig(provider="openai", rpm=2, base_url="http://localhost")
    with pytest.raises(JudgeError, match="judge.rpm=2 .* 3 hosts"):
        make_judge(config, roles=("a",), keys={}, ledger=Ledger(None), hosts=3)
