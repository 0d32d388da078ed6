"""Small pure functions on the text of an action."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_THINK = re.compile(r"<think>.*?</think>", re.DOTALL)
_CODE = re.compile(r"```(?:python|py)\s*\n(.*?)```", re.DOTALL)
_PLAIN_NAME = re.compile(r"[\w./+-]+")
CUT_MARK = "\n[... {} {} cut ...]\n"


def strip_thinking(text: str, *, opened: bool) -> str:
    """`text` without its thinking section.

    Args:
      text: what an agent wrote.
      opened: whether the prompt had opened the section already, so that `text`
        starts inside it. A section that never closes is thinking to the end.
    """
    if opened:
        text = "<think>" + text
    text = _THINK.sub("", text)
    text = text.partition("<think>")[0]
    # A closing tag without an opening one: all before it was thinking.
    return text.rpartition("</think>")[2].strip()


def extract_code(text: str) -> str | None:
    """All ```python blocks of `text`, joined in order; None where there is none."""
    blocks = [block.strip("\n") for block in _CODE.findall(text)]
    return "\n\n".join(blocks) if blocks else None


def shown_names(names: Iterable[str]) -> str:
    """Names of files in one line; one that is no plain name is quoted, so that it can
    be read as nothing else."""
    return ", ".join(n if _PLAIN_NAME.fullmatch(n) else repr(n) for n in names)


Spans = Sequence[tuple[int, int]]


def cut_middle(text: str, limit: int, spans: Spans | None = None) -> str:
    """At most `limit` tokens plus a visible mark: the head and the tail of `text`.

    The tail is kept because a traceback's last line says most.

    Args:
      text: any.
      limit: in tokens where `spans` is given, else in characters.
      spans: the (start, end) of each token in `text`, as a tokenizer gives them.
    """
    unit = "characters" if spans is None else "tokens"
    spans = [(i, i + 1) for i in range(len(text))] if spans is None else spans
    if len(spans) <= limit:
        return text
    head, tail = limit // 2, limit - limit // 2
    stop = spans[head - 1][1] if head else 0
    start = spans[-tail][0] if tail else len(text)
    return text[:stop] + CUT_MARK.format(len(spans) - limit, unit) + text[start:]
