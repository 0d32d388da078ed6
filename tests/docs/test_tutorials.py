"""The code blocks of the tutorials, run from top to bottom as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.M)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(language, file or "", text) of every block that says its language."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def program(page: Path) -> str:
    """What a reader does with a page: files are written, Python goes into one
    interpreter, shell lines into a shell."""
    steps = ["import pathlib, subprocess"]
    for language, file, text in blocks(page):
        if file:
            steps.append(f"pathlib.Path({file!r}).write_text({text!r})")
        elif language == "python":
            steps.append(text)
        elif language == "sh":
            steps.append(f"subprocess.run(['bash', '-euc', {text!r}], check=True)")
    return "\n".join(steps)


@pytest.fixture
def desk(tmp_path):
    """A folder that looks like a clone's root."""
    for name in ("launch", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_does_what_it_says(page, desk, cache):
    script = desk / "page.py"
    script.write_text(program(page))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    home = {"HOME": str(cache / "home"), "PATH": path, "XLA_FLAGS": ""}
    packages = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=desk,
        env=os.environ | home | {"PYTHONPATH": packages},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_tutorial_has_something_to_run():
    assert len(TUTORIALS) == 5
    for page in TUTORIALS:
        run = [b for b in blocks(page) if b[0] in ("python", "sh") and not b[1]]
        assert run, page.name


def test_a_block_that_fails_is_noticed(desk, tmp_path):
    page = tmp_path / "wrong.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    done = subprocess.run([sys.executable, "-c", program(page)], capture_output=True)
    assert done.returncode != 0 and b"AssertionError" in done.stderr
