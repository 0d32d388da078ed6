"""launch/report.py: the page and the picture of a recorded run."""

import base64
import gzip
import json
import re
import shutil
import signal
import subprocess
import urllib.request

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from mappa_jax import records


@pytest.fixture
def draw(launch, tmp_path):
    def run(workdir):
        out = tmp_path / "curves.png"
        return launch("report.py", f"--workdir={workdir}", f"--out={out}"), out

    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run's folder."""
    return shutil.copytree(trained, tmp_path / "run")


def test_the_picture_shows_every_curve(draw):
    done, out = draw("docs/arithmetic_run")
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    pixels = matplotlib.image.imread(out)[..., :3]
    assert pixels.shape == (480, 1320, 3)
    left, right = np.split(pixels, 2, axis=1)
    for agent in ("C0", "C1", "C2"):
        assert area(left, agent) > 500, agent
    assert area(right, "0.6") > 500  # success in training
    assert area(right, "C0") > 500  # and on held-out problems


def area(pixels, color):
    """How many pixels have a colour of Matplotlib's."""
    return int((np.abs(pixels - to_rgb(color)) < 0.01).all(-1).sum())


def test_without_metrics_there_is_nothing_to_draw(draw, tmp_path):
    done, out = draw(tmp_path)
    assert done.returncode == 2
    assert "nothing to draw yet" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def blocks(page):
    """What a page holds, by name."""
    found = re.findall(r'data-block="([^"]*)">([^<]*)<', page.read_text())
    return {
        name: json.loads(gzip.decompress(base64.b64decode(text)))
        for name, text in found
        if name != "plotly"
    }


def test_the_page_tells_of_a_run_as_it_was(launch, run, cache):
    done = launch("report.py", f"--workdir={run}", f"--cache_dir={cache}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / "report.html")
    found = blocks(run / "report.html")
    overview = found["overview"]
    assert overview["agents"] == ["solver", "coder", "verifier"]
    assert overview["done"] == overview["steps"] == 1 and not overview["notes"]
    assert "jax" in overview["starts"][0]["packages"]
    ids = {p["id"] for p in overview["panels"]}
    wanted = "score kl clip_fraction entropy tokens programs grad_norm success seconds"
    assert set(wanted.split()) <= ids
    recorded = records.read_trajectories(records.training_path(run, 1))
    shown = found["chunk/step_000001/0"]
    for trajectory, one in zip(recorded, shown, strict=True):
        pairs = zip(trajectory.actions, one["actions"], strict=True)
        for action, told in pairs:
            credit = told["credit"]
            assert credit["ids"] == action.token_ids.tolist()
            assert np.isfinite(credit["advantage"]) and np.isfinite(credit["reward"])
            text = "".join(credit["pieces"][str(i)] for i in credit["ids"])
            plain = [c for c in action.text if c.isascii()]
            assert [c for c in text if c.isascii()] == plain


def test_a_run_of_before_credit_was_recorded(launch, run, cache):
    records.credit_path(run, 1).unlink()
    (run / "versions.jsonl").unlink()
    done = launch("report.py", f"--workdir={run}", f"--cache_dir={cache}")
    assert done.returncode == 0, done.stderr
    found = blocks(run / "report.html")
    assert found["overview"]["starts"] == []
    actions = [a for one in found["chunk/step_000001/0"] for a in one["actions"]]
    assert {a["credit"] for a in actions} == {None}


def test_without_the_tokenizer_tokens_are_shown_by_their_ids(launch, run, tmp_path):
    path = run / "config.json"
    name = "smollm2-135m-instruct"
    path.write_text(path.read_text().replace("random:tiny", name))
    empty = tmp_path / "empty"
    done = launch("report.py", f"--workdir={run}", f"--cache_dir={empty}")
    assert done.returncode == 0, done.stderr
    found = blocks(run / "report.html")
    assert any("shown by their ids" in note for note in found["overview"]["notes"])
    assert found["chunk/step_000001/0"][0]["actions"][0]["credit"]["pieces"] is None


@pytest.mark.parametrize(
    "name, where",
    [
        ("metrics.jsonl", "metrics.jsonl:1"),
        ("trajectories/step_000001.jsonl", "step_000001.jsonl:1"),
    ],
)
def test_a_damaged_line_is_one_clear_line(launch, run, name, where):
    path = run / name
    path.write_text("{broken\n" + path.read_text())
    done = launch("report.py", f"--workdir={run}")
    assert done.returncode == 2
    assert where in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--out=x.pdf"], "--out=x.pdf: a name that ends in .html or .png"),
        (["--serve=0", "--out=x.html"], "--serve: takes no --out"),
    ],
)
def test_flags_that_do_not_go_together(launch, flags, said):
    done = launch("report.py", "--workdir=docs/arithmetic_run", *flags)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_port_that_cannot_be_is_refused(launch, port):
    done = launch("report.py", "--workdir=docs/arithmetic_run", f"--serve={port}")
    assert done.returncode and "--serve" in done.stderr
    assert "[0, 65535]" in done.stderr and "Traceback" not in done.stderr


def test_a_run_is_served_until_it_is_stopped(command):
    made = command("report.py", "--workdir=docs/arithmetic_run", "--serve=0")
    process = subprocess.Popen(stdout=subprocess.PIPE, stderr=subprocess.PIPE, **made)
    try:
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert b"data-served" in answer.read()
        with urllib.request.urlopen(f"{address}block/overview", timeout=20) as answer:
            assert json.loads(gzip.decompress(answer.read()))["done"] == 40
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "no longer served" in said
