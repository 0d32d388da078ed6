"""launch/plan.py as a person runs it, with libtpu where its environment is made."""

import json
import subprocess

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
    assert "what was compiled fits; the other programs were not tried" in done.stdout
    found = json.loads(path.read_text())
    assert found["fits"] and not found["whole"] and found["chip"]["measured_here"]
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
def test_the_count_agrees_with_xla_tpu(launch_path, plan_python, with_libtpu):
    """Operations but for the additions inside all-reduces, and padded sizes to the
    byte; collectives by hand."""
    script = launch_path.parent / "tests" / "support" / "tpu_programs.py"
    done = subprocess.run(
        [str(plan_python), str(script)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, one in found.items():
        for key in ("arguments", "results", "transcendental"):
            assert one[key][0] == one[key][1], (name, key)
        assert one["flops"][0] == pytest.approx(one["flops"][1], rel=1e-3), name
    assert found["highest"]["matmul"] == {"f32:highest": 2 * 256**3}
    # [512, 8192] of bfloat16 summed over four: 2 x 3/4 of it.
    assert found["gathered"]["sent"] == {"all-reduce fsdp": 2 * 0.75 * 512 * 8192 * 2}
    # A quarter of [4096, 2048], sent to three; the gradient, summed over all eight.
    assert found["gradient"]["sent"] == {
        "all-gather fsdp": 3 * 1024 * 2048 * 2,
        "all-reduce data+fsdp": 2 * 7 / 8 * 4096 * 2048 * 2,
    }


@pytest.mark.slow
def test_the_fused_kernels_compile_for_a_tpu(launch_path, plan_python, with_libtpu):
    """And read the cache where it lies: no scratch of a hundredth of its size."""
    script = launch_path.parent / "tests" / "support" / "tpu_kernels.py"
    done = subprocess.run(
        [str(plan_python), str(script)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["decode"]["mosaic"] and found["rows"]["mosaic"]
    assert found["decode"]["scratch"] < found["decode"]["arguments"] / 100


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
def test_activations_in_the_hosts_memory_compile_for_a_tpu(launch, with_libtpu):
    mesh = ("--topology=v5e:2x2", "--mesh=1,1,4,1", "--config.packing.rows=4")
    done = launch("plan.py", TINY, *mesh, "--config.remat=offload", "--only=update")
    assert done.returncode == 0, done.stderr
    assert "what was compiled fits" in done.stdout


@pytest.mark.slow
def test_what_does_not_fit_is_an_answer(launch, with_libtpu, tmp_path):
    """Weights, moments and activations that exceed a chip: exit code 3."""
    path = tmp_path / "plan.json"
    done = launch(
        *("plan.py", "--config=configs/mathchat.py:qwen3-4b", "--topology=v5e-8"),
        *("--mesh=1,1,1,8", "--only=update", f"--json={path}"),
    )
    assert done.returncode == 3, done.stderr
    found = json.loads(path.read_text())
    (update,) = found["phases"]
    assert not found["fits"] and not update["compiled"]
    assert any("optimizer.moments" in line for line in found["advice"])
    assert update["flops_per_chip"] > 1e15
