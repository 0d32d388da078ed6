"""Small pure functions on the text of an action."""

from __future__ import annotations

import re

_THINK = re.compile(r"<think>.*?</think>", re.DOTALL)
_CODE = re.compile(r"```(?:python|py)\s*\n(.*?)```", re.DOTALL)
CUT_MARK = "\n[... {} characters cut ...]\n"


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


def cut_middle(text: str, limit: int) -> str:
    """At most `limit` characters plus a visible mark: the head and the tail of `text`.

    The tail is kept because a traceback's last line says most.
    """
    if len(text) <= limit:
        return text
    head = limit // 2
    tail = limit - head
    mark = CUT_MARK.format(len(text) - limit)
    return text[:head] + mark + (text[-tail:] if tail else "")
