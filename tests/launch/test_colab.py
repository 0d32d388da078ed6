"""launch/colab.ipynb, executed from top to bottom as a newcomer would, with random
weights in place of a model's."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from mappa_jax.config import default_config
from mappa_jax.records import read_trajectories, training_path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "launch" / "colab.ipynb"
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def set_parameters(notebook, **values):
    """A copy with other values in the cell that is tagged "parameters"."""
    notebook = nbformat.from_dict(notebook)
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    for name, value in values.items():
        line = re.compile(rf"^{name} = .*$", re.M)
        assert line.search(cell.source), name
        cell.source = line.sub(lambda _, n=name, v=value: f"{n} = {v!r}", cell.source)
    return notebook


@pytest.fixture(scope="module")
def executed(notebook, cache, tmp_path_factory):
    """(the notebook with its outputs, the folder that it worked in)."""
    desk = tmp_path_factory.mktemp("desk")
    for name in ("launch", "configs", "mappa_jax"):
        (desk / name).symlink_to(ROOT / name)
    home = tmp_path_factory.mktemp("jupyter")
    packages = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = {"XLA_FLAGS": "", "PYTHONPATH": packages, "IPYTHONDIR": str(home)}
    ours = set_parameters(notebook, SMALL=True, CACHE=str(cache))
    client = NotebookClient(
        ours,
        timeout=500,
        kernel_name="python3",
        resources={"metadata": {"path": str(desk)}},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_RUNTIME_DIR", str(home / "runtime"))
        patch.delenv("COLAB_RELEASE_TAG", raising=False)
        client.execute(env=os.environ | settings)
    return ours, desk


def outputs(notebook, name):
    (cell,) = (c for c in notebook.cells if c.id == name)
    return cell.outputs


def printed(notebook, name):
    return "".join(o.text for o in outputs(notebook, name) if o.output_type == "stream")


def scored_by(trajectories):
    return {v.call.judge for t in trajectories for v in t.verdicts}


def test_it_trains_and_draws(executed):
    notebook, desk = executed
    assert "iteration 1: agents" in printed(notebook, "train")
    drawn = [o.data for o in outputs(notebook, "curves") if "data" in o]
    assert any("image/png" in data for data in drawn)
    assert (desk / "runs/colab/curves.png").read_bytes().startswith(PNG)


def test_it_shows_an_episode_and_the_viewer(executed):
    notebook, desk = executed
    said = printed(notebook, "episode")
    for agent in ("solver", "coder", "verifier"):
        assert f"=== {agent}, turn 1" in said
    page = desk / "runs/colab/report.html"
    assert page.as_uri() in printed(notebook, "viewer")
    assert "</html>" in page.read_text(encoding="utf-8")


def test_it_compares_trained_and_untrained(executed):
    _, desk = executed
    lines = (desk / "runs/colab/evaluations.jsonl").read_text().splitlines()
    rows = {row["label"]: row["step"] for row in map(json.loads, lines)}
    assert rows == {"trained": 1, "untrained": 0}


def test_a_changed_judge_scores_the_same_actions(executed):
    _, desk = executed
    first = desk / "runs/colab/rejudged"
    was = read_trajectories(training_path(desk / "runs/colab", 1))
    mine = read_trajectories(first / training_path("", 1).name)
    stricter = read_trajectories(first / "2" / training_path("", 1).name)
    assert scored_by(was) == {"rubric"}
    assert scored_by(mine) == {"terse"}
    assert scored_by(stricter) == {"shows_its_work"}
    said = [v.rationale for t in stricter for v in t.verdicts]
    assert all("says how the answer was found" in one for one in said)


def test_a_line_more_stands_in_the_copied_prompts(executed):
    _, desk = executed
    name = "mathchat_solver.txt"
    ours = (desk / "my_prompts" / name).read_text()
    theirs = (ROOT / "mappa_jax/judges/prompts" / name).read_text()
    assert ours.startswith(theirs) and len(ours.splitlines()) > len(theirs.splitlines())


def test_a_fourth_agent_acts_and_learns(executed):
    _, desk = executed
    trajectories = read_trajectories(training_path(desk / "runs/colab_four", 1))
    for trajectory in trajectories:
        agents = [action.agent for action in trajectory.actions]
        assert agents[:2] == ["planner", "solver"] and agents[-1] == "verifier"
        plan = trajectory.actions[0].content
        assert f"Plan:\n{plan}" in trajectory.actions[1].messages[-1].content
    assert scored_by(trajectories) == {"terse"}
    lines = (desk / "runs/colab_four/metrics.jsonl").read_text()
    assert "agents/planner/grad_norm" in lines


def test_the_team_is_exported(executed):
    _, desk = executed
    out = desk / "runs/colab_exported"
    assert {"team.json", "solver", "coder", "verifier"} <= {
        path.name for path in out.iterdir()
    }


def test_it_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, cell.id


def commands(notebook):
    """(script, flags without values) of every call of `run` in the notebook."""
    for cell in notebook.cells:
        if cell.cell_type != "code" or cell.source.startswith("%%"):
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run":
                script, *rest = map(literal, node.args)
                yield script, {flag.partition("=")[0] for flag in rest if flag}


def literal(node):
    """The constant text that an argument begins with."""
    node = node.values[0] if isinstance(node, ast.JoinedStr) else node
    return node.value if isinstance(node, ast.Constant) else ""


def keys(tree, start="--config"):
    """--config.judge.provider and the like, of every key of a config."""
    for name, value in tree.items():
        yield f"{start}.{name}"
        if hasattr(value, "items"):
            yield from keys(value, f"{start}.{name}")


def documented(script):
    """The flags that a script's help names."""
    asked = [sys.executable, str(ROOT / script), "--helpfull"]
    text = subprocess.run(asked, capture_output=True, text=True).stdout
    return set(re.findall(r"^\s+(--\w+)", text.replace("[no]", ""), re.M))


def test_its_commands_and_flags_exist(notebook):
    found = dict.fromkeys(script for script, _ in commands(notebook))
    assert len(found) == 5
    settings = {*keys(default_config())}
    settings |= {f.replace("--config.", "--") for f in settings}  # rejudge's --judge.
    for script in found:
        used = {f for s, flags in commands(notebook) if s == script for f in flags}
        known = documented(script) | settings
        assert "--workdir" in used and used <= known, (script, used - known)


def test_the_files_that_its_words_name_exist(notebook):
    words = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    names = re.findall(r"`((?:docs|launch|configs|mappa_jax)/[\w/.]*)`", words)
    assert len(names) > 8
    for name in names:
        assert (ROOT / name).exists(), name
