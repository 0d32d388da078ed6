"""The page: assets and blocks in one HTML file, under a policy that runs nothing else.

The Content-Security-Policy lets two scripts run, by their hashes: ours and Plotly. No
address may be fetched from but, of a page that is served, its own server's. Styles are
free because Plotly sets some; no text of a run ever becomes one, or any markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import os
import re
from collections.abc import Iterator
from pathlib import Path

import plotly.offline

from mappa_jax.report.build import Report, packed

STYLES = ("theme.css", "layout.css", "episode.css")
# In the order in which they need one another; joined into one script.
SCRIPTS = (
    *("dom.js", "store.js", "filters.js", "overview.js", "curves.js", "episodes.js"),
    *("action.js", "episode.js", "compare.js", "config.js", "keys.js", "main.js"),
)


def asset(name: str) -> str:
    return (
        importlib.resources.files("mappa_jax.report").joinpath("assets", name)
    ).read_text(encoding="utf-8")


def write_report(report: Report, name: str, out: Path) -> None:
    """Writes the whole report to one file, or nothing."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(parts(name, report))
    os.replace(part, out)


def parts(name: str, report: Report | None) -> Iterator[str]:
    """The page's text, piece by piece.

    Args:
      name: of the run.
      report: what it holds; None for a page that asks its server.
    """
    script, library = _script(), plotly.offline.get_plotlyjs()
    head, _, rest = asset("page.html").partition("<!--BLOCKS-->")
    fills = {
        "TITLE": html.escape(f"{name}: mappa_jax report"),
        "POLICY": policy((script, library), served=report is None),
        "SERVED": "yes" if report is None else "no",
        "STYLE": "\n".join(map(asset, STYLES)),
        "SCRIPT": script,
    }
    # One pass: what is filled in is not searched again.
    yield re.sub(r"\{\{([A-Z]+)\}\}", lambda found: fills[found[1]], head)
    for key, block in report.blocks() if report is not None else ():
        yield _block(key, block)
    yield _block("plotly", packed(library))
    yield rest


def _script() -> str:
    return '"use strict";\n' + "\n".join(map(asset, SCRIPTS))


def policy(scripts: tuple[str, ...], *, served: bool) -> str:
    """The Content-Security-Policy of a page with these scripts."""
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {hashes}",
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "connect-src 'self'" if served else "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _block(key: str, block: bytes) -> str:
    """Bytes in an element that no browser runs; base64 has nothing to escape."""
    text = base64.b64encode(block).decode()
    name = html.escape(key)
    return (
        f'<script type="application/octet-stream" data-block="{name}">{text}</script>\n'
    )
