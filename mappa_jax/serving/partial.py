"""The text of an answer while it is being written.

A piece that is sent cannot be taken back, so what further tokens may change is held:
the beginning of a stop string or of a thinking tag, half a character.
"""

from __future__ import annotations

from collections.abc import Sequence

TAGS = ("<think>", "</think>")
UNFINISHED = "\ufffd"  # what the bytes of half a character decode to


def cut(content: str, stops: Sequence[str]) -> tuple[str, bool]:
    """`content` before the first of `stops`, and whether there is one."""
    places = [at for stop in stops if (at := content.find(stop)) >= 0]
    return (content[: min(places)], True) if places else (content, False)


def settled(content: str, stops: Sequence[str]) -> str:
    """The beginning of `content` that no further token changes."""
    content, stopped = cut(content, stops)
    if stopped:
        return content
    content = content.rstrip(UNFINISHED)
    held = max(_begun(content, mark) for mark in (*TAGS, *stops))
    return content[: len(content) - held]


def _begun(content: str, mark: str) -> int:
    """How many of the last characters are the beginning of `mark`."""
    lengths = range(min(len(mark) - 1, len(content)), 0, -1)
    return next((n for n in lengths if content.endswith(mark[:n])), 0)


class Deltas:
    """Pieces that add up to the answer.

    A stray closing tag makes all before it thinking, which may have been sent by then:
    the answer then follows after an empty line.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = stops
        self._sent = ""

    def partial(self, content: str) -> str:
        """What can be sent of an answer that says `content` so far."""
        ready = settled(content, self._stops)
        if not ready.startswith(self._sent):
            return ""
        piece, self._sent = ready[len(self._sent) :], ready
        return piece

    def final(self, content: str) -> str:
        """What is left of the answer, which is `content`."""
        if content.startswith(self._sent):
            return content[len(self._sent) :]
        return f"\n\n{content}"
