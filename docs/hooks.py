"""Hooks of the documentation's build (mkdocs.yml)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Sources lie outside the site: [config.py](../mappa_jax/config.py) becomes its text.
OUTSIDE = re.compile(
    r"\[([^\]]+)\]\((?:\.\./)+(?:mappa_jax|launch|configs|tests)[^)]*\)"
)
COMMANDS = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    inside = OUTSIDE.sub(lambda link: f"`{link[1].strip('`')}`", markdown)
    return inside.replace(COMMANDS, commands()) if COMMANDS in inside else inside


def commands() -> str:
    """A table of the commands, each with the first paragraph of its docstring."""
    rows = ["| command | what |", "|---|---|"]
    for script in sorted((ROOT / "launch").glob("*.py")):
        source = ROOT / "mappa_jax" / "commands" / script.name
        text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))
        said = " ".join(text.split("\n\n")[0].split())
        rows.append(f"| `mappa-{script.stem.replace('_', '-')}` | {said} |")
    return "\n".join(rows)
