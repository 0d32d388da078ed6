"""Text of an action: thinking, code blocks, cutting."""

import pytest

from mappa_jax.text import cut_middle, extract_code, strip_thinking


@pytest.mark.parametrize(
    ("opened", "written", "left"),
    [
        (False, "plain", "plain"),
        (False, "<think>a</think>b", "b"),
        (False, "x <think>a</think>b<think>c\nd</think> e", "x b e"),
        (False, "said <think>cut off", "said"),
        (False, "<think>cut off", ""),
        (True, "a</think>b", "b"),
        (True, "never closed", ""),
        (True, "a</think>b<think>c</think>d", "bd"),
        (False, "stray</think>b", "b"),
        (False, "<think>a</think>b</think>c", "c"),
    ],
)
def test_thinking_is_not_handed_on(opened, written, left):
    assert strip_thinking(written, opened=opened) == left


def test_all_blocks_are_joined_in_order():
    said = "One:\n```python\na = 1\n```\ntwo:\n```py\nprint(a)\n```\ndone"
    assert extract_code(said) == "a = 1\n\nprint(a)"


@pytest.mark.parametrize(
    "said", ["no code", "```\nprint(1)\n```", "```bash\nls\n```", "```python\nopen"]
)
def test_only_closed_python_blocks_are_code(said):
    assert extract_code(said) is None


def test_indentation_inside_a_block_is_kept():
    assert extract_code("```python\nif 1:\n    x()\n```") == "if 1:\n    x()"


def test_code_inside_thinking_is_not_content():
    said = "<think>```python\nbad()\n```</think>```python\ngood()\n```"
    assert extract_code(strip_thinking(said, opened=False)) == "good()"


def test_short_text_is_not_cut():
    assert cut_middle("12345", 5) == "12345"


@pytest.mark.parametrize("limit", [0, 1, 10, 11])
def test_cutting_keeps_head_and_tail_and_says_how_much_is_gone(limit):
    text = "head" + "x" * 500 + "the end"
    cut = cut_middle(text, limit)
    assert f"[... {len(text) - limit} characters cut ...]" in cut
    head, _, tail = cut.partition("\n[...")
    tail = tail.partition("...]\n")[2]
    assert len(head) + len(tail) == limit
    assert text.startswith(head) and text.endswith(tail)


def test_tokens_are_counted_where_they_are_given():
    text, spans = "aa bb ccc d", [(0, 2), (2, 5), (5, 9), (9, 11)]
    assert cut_middle(text, 4, spans) == text
    assert cut_middle(text, 2, spans) == "aa\n[... 2 tokens cut ...]\n d"
    assert cut_middle(text, 3, spans) == "aa\n[... 1 tokens cut ...]\n ccc d"
