"""Tab completion of the commands' flags, tried in a real bash."""

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


def test_it_knows_every_command(script):
    named = script.splitlines()[-1].split()[6:]
    assert {"mappa-train", "mappa-judge-report", "mappa-sweep"} <= set(named)
    assert "mappa-common" not in named
