"""Made-up runs, their reports, and a browser to read them in."""

import dataclasses
import gzip
import json
import os
import shutil
from pathlib import Path

import pytest
from made_runs import write_run

from mappa_jax.report.build import (
    Builder,
    Report,
    index,
    overview,
    packed,
    read_digest,
)
from mappa_jax.report.page import write_report
from mappa_jax.report.workdir import read_run

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("MAPPA_CHROMIUM") or shutil.which("chromium")
ARTEFACTS = Path(os.environ.get("MAPPA_ARTEFACTS") or ROOT / ".artefacts" / "report")


def spell(agent, ids):
    """Tokens as letters, so that they can be read."""
    return {one: chr(97 + one % 26) for one in ids}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The folder of a made-up run."""
    return write_run(tmp_path_factory.mktemp("made") / "<b>run")


@pytest.fixture(scope="session")
def page(made, tmp_path_factory):
    """Its report."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(Builder(made, spell).build(), made.name, out)
    return out


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """A report of 10,000 trajectories: 400, read once, stand for 25 iterations."""
    folder = write_run(
        tmp_path_factory.mktemp("many") / "run",
        **dict(steps=1, tasks=200, attack=False, filler=20),
    )
    run = read_run(folder)
    file = run.files[0]
    files = tuple(
        dataclasses.replace(file, key=f"step_{step:06d}", step=step)
        for step in range(1, 26)
    )
    run = dataclasses.replace(run, files=files)
    digest = read_digest(file, spell)
    digests = {one.key: digest for one in files}
    blocks = packed(overview(run, digests, "")), packed(index(run, digests))
    out = folder / "report.html"
    write_report(Report((), *blocks, digests), "many", out)
    return out


@pytest.fixture(scope="module")
def chromium():
    """Debian's browser. Where it must be there (MAPPA_REQUIRE_BROWSER), its lack is a
    failure. Of a module, since Playwright runs a loop in which no other can."""
    if CHROMIUM is None:
        why = "no chromium on this machine: apt-get install chromium"
        if os.environ.get("MAPPA_REQUIRE_BROWSER"):
            pytest.fail(why)
        pytest.skip(why)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def reader(chromium):
    """(file or address, fragment, options of the context) -> an open page.

    After the test: nothing was complained of in any console, no dialog has opened, and
    no attack has run.
    """
    complaints, contexts, opened = [], [], []

    def read(where, fragment="#/overview", **options):
        options = {"viewport": {"width": 1280, "height": 900}} | options
        context = chromium.new_context(**options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda m: _note(complaints, m))
        tab.on("pageerror", lambda e: complaints.append(str(e)))
        tab.on("dialog", lambda d: (complaints.append(d.message), d.dismiss()))
        address = where if isinstance(where, str) else where.as_uri()
        tab.goto(address + fragment)
        tab.wait_for_selector("#tabs a[aria-current]")
        opened.append(tab)
        return tab

    yield read
    attacks = [tab.evaluate("window.pwned") for tab in opened]
    for context in contexts:
        context.close()
    assert not complaints
    assert set(attacks) <= {None}


def _note(complaints, message):
    if message.type in ("error", "warning"):
        complaints.append(f"{message.type}: {message.text}")


@pytest.fixture(scope="session")
def keep():
    """(page, name) -> a screenshot among the artefacts."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)

    def shoot(tab, name, **options):
        path = ARTEFACTS / f"{name}.png"
        tab.screenshot(path=path, **options)
        return path

    return shoot


@pytest.fixture
def read_json():
    """(block) -> what it holds."""
    return lambda block: json.loads(gzip.decompress(block))
