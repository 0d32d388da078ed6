"""What a person can get wrong is refused before the first step, and named."""

import asyncio
import shutil
import subprocess

import pytest

from mappa_jax import assemble as parts
from mappa_jax.config import ConfigError, resolve
from mappa_jax.data import DataError
from mappa_jax.judges import JudgeError
from mappa_jax.models import registry
from mappa_jax.models.config import ModelError
from mappa_jax.testing import Silent


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("--config.stepz=3", "steps"),
        ("--config.steps=many", "config.steps"),
        ("--config.data.source=jsonl:no-such-file.jsonl", "no-such-file.jsonl"),
    ],
)
def test_a_wrong_override_is_one_clear_line(launch, override, named, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    done = launch("train.py", "--config=configs/tiny.py", workdir, override)
    assert done.returncode in (1, 2)
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_config_file_that_is_not_there_is_named(launch, tmp_path):
    done = launch("train.py", "--config=no_such.py", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "no_such.py" in done.stderr and "Traceback" not in done.stderr


def test_evaluating_what_is_no_workdir_is_refused(launch, tmp_path):
    done = launch("evaluate.py", f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert "not a workdir" in done.stderr


@pytest.fixture
def model(cache, tmp_path):
    """A copy of the tiny model that a test may damage."""
    folder = tmp_path / "model"
    shutil.copytree(registry.resolve("random:tiny", cache), folder)
    return folder


def models(tiny, cache, **changes):
    config = parts.seat_agents(resolve(tiny(changes)))
    return parts.load_models(config, cache)


def everyones(model):
    names = ("solver", "coder", "verifier")
    return {f"agents.{name}.model": str(model) for name in names}


def test_missing_weights_are_named(tiny, cache, tmp_path):
    with pytest.raises(ModelError, match="no-such-model"):
        models(tiny, cache, **everyones(tmp_path / "no-such-model"))


def test_truncated_weights_are_named(assemble, tiny, model, tmp_path):
    weights = next(model.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])

    async def start():
        config = parts.seat_agents(resolve(tiny(everyones(model))))
        async with assemble(config, tmp_path / "run", Silent()):
            pass

    with pytest.raises(ModelError, match=f"{weights.name}.*fetch it again"):
        asyncio.run(start())


def test_a_tokenizer_without_a_chat_template_is_refused(tiny, cache, model):
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        models(tiny, cache, **everyones(model))


def test_a_context_beyond_the_models_is_refused(tiny, cache):
    changes = {"sampler.context": 16384, "packing.row_tokens": 16384}
    with pytest.raises(ConfigError, match=r"sampler\.context=16384 exceeds"):
        models(tiny, cache, **changes)


def assembled(assemble, tiny, workdir, **changes):
    async def start():
        config = parts.seat_agents(resolve(tiny(changes)))
        async with assemble(config, workdir, Silent()):
            pass

    asyncio.run(start())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "holds no problems"),
        ('{"prompt": "a", "answer": "1"}\n{"prompt": \n', ":2"),
        ('{"question": "a"}\n', ":1.*prompt"),
    ],
)
def test_a_bad_data_file_is_named_with_its_line(assemble, tiny, tmp_path, text, named):
    path = tmp_path / "tasks.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=f"tasks.jsonl.*{named}|{named}.*tasks.jsonl"):
        assembled(assemble, tiny, tmp_path / "run", **{"data.source": f"jsonl:{path}"})


def test_a_judge_without_its_key_is_refused(assemble, tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with pytest.raises(JudgeError, match="GEMINI_API_KEY"):
        assembled(assemble, tiny, tmp_path / "run", **{"judge.provider": "gemini"})


def test_a_run_does_not_go_on_with_other_judge_prompts(tmp_path):
    from mappa_jax.commands import assembly
    from mappa_jax.config import JudgeConfig
    from mappa_jax.judges.prompts import OWN
    from mappa_jax.workflows import WORKFLOWS

    folder, workdir = tmp_path / "prompts", tmp_path / "run"
    shutil.copytree(OWN, folder)
    config = JudgeConfig(provider="gemini", prompts=str(folder))
    for _ in range(2):
        assembly.check_prompts(config, WORKFLOWS["mathchat"], workdir)
    path = folder / "mathchat_coder.txt"
    path.write_text(path.read_text() + "Be kind.\n")
    with pytest.raises(JudgeError, match="judge.prompts=.*not those.*--workdir"):
        assembly.check_prompts(config, WORKFLOWS["mathchat"], workdir)
    rubric = JudgeConfig(prompts=str(folder))
    assembly.check_prompts(rubric, WORKFLOWS["mathchat"], workdir)


def test_an_override_below_what_has_no_keys_is_refused(command, tmp_path):
    made = command(
        "train.py",
        "--config=configs/tiny.py",
        f"--workdir={tmp_path}",
        "--config.judge.members.a.provider=gemini",
    )
    done = subprocess.run(capture_output=True, timeout=120, **made)
    assert done.returncode == 2
    assert "error: config: no such key" in done.stderr
    assert "config.judge.members.a.provider" in done.stderr


def test_more_prompts_than_problems_are_refused(assemble, tiny, tmp_path):
    with pytest.raises(DataError, match=r"prompts_per_step=33.*32 training problems"):
        assembled(assemble, tiny, tmp_path / "run", **{"data.prompts_per_step": 33})


def test_fused_attention_without_an_accelerator_is_refused(tiny, cache):
    with pytest.raises(
        ConfigError, match=r"config\.attention: there are fused kernels"
    ):
        models(tiny, cache, attention="fused")


def test_a_bias_of_nobody_is_refused(launch, train_arguments, tmp_path):
    arguments = train_arguments(tmp_path / "run", **{"judge.control.bias": "poet:1"})
    done = launch("train.py", *arguments)
    assert done.returncode == 2
    assert "'poet' is neither an agent nor a kind" in done.stderr
    assert "chain_sum" in done.stderr
