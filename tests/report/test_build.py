"""The blocks, and the page that they stand in."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from made_runs import ATTACK, FILE_ATTACK, write_run

from mappa_jax import records
from mappa_jax.report.build import CHUNK, Builder
from mappa_jax.report.curves import panels
from mappa_jax.report.page import SCRIPTS, STYLES, asset, parts


class Elements(HTMLParser):
    """(tag, attributes, text) of every script, and all start tags."""

    def __init__(self):
        super().__init__()
        self.scripts, self.tags, self._inside = [], [], None

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append([dict(attrs), ""])
            self._inside = self.scripts[-1]

    def handle_data(self, data):
        if self._inside is not None:
            self._inside[1] += data

    def handle_endtag(self, tag):
        self._inside = None


@pytest.fixture(scope="session")
def elements(page):
    found = Elements()
    found.feed(page.read_text())
    return found


def test_every_trajectory_is_in_the_index_and_in_its_chunk(made, read_json):
    blocks = {name: read_json(block) for name, block in Builder(made).build().blocks()}
    index = blocks["index"]
    at = 0
    for number, file in enumerate(index["files"]):
        path = made / "trajectories" / f"{file['key']}.jsonl"
        found = records.read_trajectories(path)
        assert file["episodes"] == len(found)
        for line, trajectory in enumerate(found):
            chunk = blocks[f"chunk/{file['key']}/{line // CHUNK}"]
            shown = chunk[line % CHUNK]
            assert shown["task"]["id"] == trajectory.task.id
            assert len(shown["actions"]) == len(trajectory.actions)
            assert index["file"][at] == number
            assert index["tasks"][index["task"][at]].endswith(trajectory.task.id)
            at += 1
    assert at == len(index["file"])


def test_only_files_that_have_changed_are_read_again(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", steps=3, attack=False)
    builder = Builder(folder)
    first = builder.build()
    read = []
    original = records.read_trajectories
    monkeypatch.setattr(
        records,
        "read_trajectories",
        lambda path: read.append(path.name) or original(path),
    )
    assert builder.build().index == first.index and not read
    path = records.training_path(folder, 2)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    records.credit_path(folder, 2).unlink()
    assert builder.build().index != first.index
    assert read == ["step_000002.jsonl"]


def test_the_page_loads_nothing_and_runs_two_scripts(elements):
    allowed = {"application/octet-stream"}
    running = [text for a, text in elements.scripts if a.get("type") not in allowed]
    assert len(running) == 1
    assert all("src" not in attributes for attributes, _ in elements.scripts)
    assert not {"img", "svg", "iframe", "object"} & set(elements.tags)


def test_the_policy_knows_the_scripts_by_their_hashes(elements, page):
    policy = re.search(r'Security-Policy" content="([^"]*)"', page.read_text())[1]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["connect-src"] == "'none'"
    assert "unsafe" not in rules["script-src"]
    own = next(text for attributes, text in elements.scripts if not attributes)
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in rules["script-src"].split()
    assert len(rules["script-src"].split()) == 2  # ours and Plotly


def test_no_text_of_a_run_stands_in_the_page_as_it_is(page):
    text = page.read_text()
    assert ATTACK not in text and FILE_ATTACK not in text
    assert "window.pwned" not in text


def test_the_blocks_of_the_page_are_those_of_the_report(elements, made):
    blocks = {
        a["data-block"]: base64.b64decode(text)
        for a, text in elements.scripts
        if "data-block" in a
    }
    library = blocks.pop("plotly")
    assert library[:2] == b"\x1f\x8b" and len(library) > 10**6
    assert set(blocks) == {name for name, _ in Builder(made).build().blocks()}


def test_a_served_page_holds_no_data():
    text = "".join(parts("x", None))
    assert 'data-block="overview"' not in text
    assert "connect-src 'self'" in text


def test_the_assets_never_parse_markup_or_text():
    for name in SCRIPTS:
        source = asset(name)
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "eval(",
            "document.write",
        ):
            assert word not in source, name
        assert "</script" not in source and "http://" not in source, name
        assert "https://" not in source, name
    for name in STYLES:
        assert "url(" not in asset(name) and "@import" not in asset(name)


def test_panels_are_those_with_numbers():
    metrics = [
        {
            "step": 1,
            "agents/a/score": 3.0,
            "agents/a/tokens": 30,
            "agents/a/actions": 3,
        },
        {
            "step": 2,
            "agents/a/score": None,
            "agents/a/tokens": 8,
            "agents/a/actions": 0,
        },
    ]
    found = {panel["id"]: panel for panel in panels(metrics, [], ["a"])}
    assert set(found) == {"score", "tokens"}
    assert found["score"]["series"] == [{"name": "a", "x": [1, 2], "y": [3.0, None]}]
    assert found["tokens"]["series"][0]["y"] == [10.0, None]


def test_evaluations_keep_their_intervals(made, read_json):
    overview = read_json(Builder(made).build().overview)
    panel = next(p for p in overview["panels"] if p["id"] == "avg")
    (series,) = panel["series"]
    assert series["x"] == [0, 4]
    for low, middle, high in zip(
        series["low"], series["y"], series["high"], strict=True
    ):
        assert low <= middle <= high


def test_the_report_of_a_real_run(docs_run, read_json):
    report = Builder(docs_run).build()
    overview = read_json(report.overview)
    assert overview["verdict"]["tone"] == "better"
    assert overview["agents"] == ["solver", "coder", "verifier"]
    assert {"score", "kl", "entropy", "grad_norm"} <= {
        p["id"] for p in overview["panels"]
    }
    assert json.loads(dict(overview["config"])["steps"]) == overview["done"] == 40


@pytest.fixture
def docs_run(request):
    return request.config.rootpath / "docs" / "arithmetic_run"
