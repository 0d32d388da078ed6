"""Pieces of an answer that is still being written add up to it."""

import pytest

from mappa_jax.serving.partial import Deltas, cut, settled


@pytest.mark.parametrize(
    ("content", "stops", "ready"),
    [
        ("abc", (), "abc"),
        ("abc<", (), "abc"),
        ("abc</thin", (), "abc"),
        ("a < b", (), "a < b"),
        ("abcEN", ("END",), "abc"),
        ("abcENDx", ("END",), "abc"),
        ("abcEx", ("END",), "abcEx"),
        ("caf\ufffd", (), "caf"),
        ("", ("END",), ""),
    ],
)
def test_what_may_change_is_held(content, stops, ready):
    assert settled(content, stops) == ready


def test_the_first_stop_string_cuts():
    assert cut("one, two; three", (";", ",")) == ("one", True)
    assert cut("one", (";",)) == ("one", False)


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize(
    ("said", "stops"),
    [
        ("The answer is 5.", ()),
        ("a <b> c", ()),
        ("first END second", ("END",)),
        ("tail E", ("END",)),
    ],
)
def test_the_pieces_add_up(said, stops, step):
    deltas = Deltas(stops)
    ends = range(step, len(said) + step, step)
    pieces = [deltas.partial(said[:end].strip()) for end in ends]
    final, _ = cut(said, stops)
    assert "".join(pieces) + deltas.final(final) == final
    assert len([piece for piece in pieces if piece]) > 1  # not all at the end


def test_what_turns_out_to_be_thinking_is_followed_by_the_answer():
    deltas = Deltas(())
    assert deltas.partial("well, hmm") == "well, hmm"
    assert deltas.partial("5") == ""  # after a stray </think>
    assert deltas.final("5 it is") == "\n\n5 it is"
