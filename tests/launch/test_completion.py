"""Tab completion of the commands' flags, tried in a real bash."""

import re
import shutil
import subprocess

import pytest


@pytest.fixture(scope="module")
def script(launch):
    done = launch("completion.py")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def complete(script):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")

    def ask(command, word):
        words = f"COMP_WORDS=({command} '{word}') COMP_CWORD=1"
        program = f'{script}\n{words}\n_mappa\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
        done = subprocess.run([bash, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return ask


def test_flags_are_completed_by_command(complete):
    assert complete("mappa-train", "--work") == ["--workdir="]
    assert complete("mappa-evaluate", "--wh") == ["--who="]
    assert complete("/usr/bin/mappa-plan", "--sea") == ["--search"]
    assert "--preload=" in complete("mappa-doctor", "--")


def test_keys_of_the_config_are_completed(complete):
    found = complete("mappa-train", "--config.sampler.s")
    assert "--config.sampler.slots=" in found
    assert complete("mappa-doctor", "--config.sampler.s") == []


def test_flags_that_commands_share_are_theirs(complete):
    for command in ("mappa-serve", "mappa-chat"):
        assert complete(command, "--wor") == ["--workdir="]
        assert complete(command, "--te") == ["--team="]
    for command in ("mappa-train", "mappa-evaluate"):
        assert complete(command, "--coor") == ["--coordinator_address="]


def test_it_knows_every_command_and_no_other(script, launch_path):
    named = script.splitlines()[-1].partition("-F _mappa ")[2].split()
    scripts = {f"mappa-{p.stem.replace('_', '-')}" for p in launch_path.glob("*.py")}
    assert set(named) == scripts


@pytest.mark.parametrize("script", ["train.py", "chat.py", "serve.py", "report.py"])
def test_help_tells_the_flags_of_the_commands_own_examples(script, launch, launch_path):
    source = launch_path.parent / "mappa_jax" / "commands" / script
    named = re.findall(r"--(\w+)", source.read_text().split('"""')[1])
    said = launch(script, "--help").stdout
    told = re.findall(r"--(?:\[no\])?(\w+):", said)
    assert named and not set(named) - set(told)
