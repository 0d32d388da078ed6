"""launch/plan.py as a person runs it, with libtpu where its environment is made."""

import json

import pytest

TINY = "--config=configs/tiny.py"
# Rows, slots and prefills that eight chips can divide.
EIGHT = ("--mesh=1,2,2,2", "--config.packing.rows=4")


def test_it_plans_for_simulated_devices(launch, tmp_path):
    path = tmp_path / "out" / "plan.json"
    done = launch(
        *("plan.py", TINY, "--topology=cpu:2", "--mesh=1,1,2,1", f"--json={path}"),
        *("--only=credit", "--prompt_tokens=300"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("FITS")
    found = json.loads(path.read_text())
    assert found["fits"] and found["chip"]["measured_here"]
    assert [p["name"] for p in found["phases"]] == ["credit"]
    assert found["forecast"] is None  # the update is missing


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--topology=cpu:many",), "expected cpu:8"),
        (
            ("--topology=cpu:2", "--config.agents.coder.model=Qwen/Qwen9"),
            "'Qwen/Qwen9': its architecture is not in models/published.py",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(launch, flags, said):
    done = launch("plan.py", TINY, *flags)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr


def test_without_libtpu_it_says_what_to_run(launch, plan_python):
    if plan_python.exists():
        pytest.skip(f"{plan_python} exists, so that the command goes on there")
    done = launch("plan.py", TINY, "--topology=v5e:2x4")
    assert done.returncode == 2
    assert "make plan-env" in done.stderr


@pytest.fixture
def with_libtpu(plan_python):
    if not plan_python.exists():
        pytest.skip(
            f"{plan_python} is missing: `make plan-env` makes the environment with "
            "libtpu, which must not be in this one"
        )


def test_a_small_case_for_a_real_topology(launch, with_libtpu, tmp_path):
    """XLA:TPU compiles for a slice of eight chips that is not there."""
    path = tmp_path / "plan.json"
    done = launch(
        *("plan.py", TINY, "--topology=v5e:2x4", f"--json={path}", *EIGHT),
        "--only=decode",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert (found["topology"], found["accelerator_type"]) == ("v5e:2x4", "v5litepod-8")
    decode = found["phases"][0]
    assert decode["compiled"] and decode["name"] == "decode"
    axes = {row["axes"] for row in decode["collectives"]}
    assert {"fsdp", "tensor"} <= axes
    assert decode["hbm_bytes_per_chip"] < found["chip"]["usable_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x2", "v6e:2x4", "v4:2x2x2"])
def test_every_kind_of_chip(launch, with_libtpu, tmp_path, topology):
    path = tmp_path / "plan.json"
    done = launch("plan.py", TINY, f"--topology={topology}", f"--json={path}", *EIGHT)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert found["chips"] == 8 and found["forecast"]["usd_per_iteration"]["spot"] > 0
    assert all(not phase["uncounted_custom_calls"] for phase in found["phases"])


@pytest.mark.slow
def test_what_does_not_fit_is_an_answer(launch, with_libtpu, tmp_path):
    """Rows of 28,672 tokens whose score matrices exceed a chip: exit code 3."""
    path = tmp_path / "plan.json"
    done = launch(
        *("plan.py", "--config=configs/mathchat.py:qwen3-4b", "--topology=v5e-8"),
        *("--mesh=1,1,1,8", "--config.mode=lora", "--config.param_dtype=bfloat16"),
        *("--only=update", f"--json={path}"),
    )
    assert done.returncode == 3, done.stderr
    found = json.loads(path.read_text())
    (update,) = found["phases"]
    assert not found["fits"] and not update["compiled"]
    assert update["largest_array"]["shape"].endswith("28672,28672]")
    assert any("packing.row_tokens" in line for line in found["advice"])
    assert update["flops_per_chip"] > 1e15
