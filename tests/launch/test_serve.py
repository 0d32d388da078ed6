"""launch/serve.py and launch/chat.py as a person runs them."""

import json
import queue
import re
import signal
import subprocess
import threading
import urllib.request

import openai
import pytest

from mappa_jax.config import resolve, to_dict
from mappa_jax.team_file import FORMAT, SAMPLING, SETTINGS, VERSION

TASK = [{"role": "user", "content": "What is 2 + 3?"}]


@pytest.fixture(scope="module")
def server(command, trained, cache):
    """(the process, its address), once it serves."""
    made = command(
        "serve.py", f"--workdir={trained}", f"--cache_dir={cache}", "--port=0"
    )
    process = subprocess.Popen(stdout=subprocess.PIPE, stderr=subprocess.PIPE, **made)
    lines: queue.Queue[str] = queue.Queue()

    def read():
        for line in process.stdout:
            lines.put(line)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield process, re.match(r"(\S+)/v1 serves", lines.get(timeout=300))[1]
    finally:
        process.kill()
        process.wait()
        thread.join()
        process.stdout.close()
        process.stderr.close()


def test_it_answers_and_ends_when_told(server):
    """SIGTERM while an answer is worked on: it is finished first."""
    process, url = server
    with urllib.request.urlopen(f"{url}/health") as reply:
        told = json.load(reply)
    assert told["status"] == "ok" and told["step"] == 1
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        create = client.chat.completions.create
        one = create(model="team", messages=TASK, seed=1)
        again = create(model="team", messages=TASK, seed=1)
        assert one.choices[0].message.content == again.choices[0].message.content
        stream = create(model="team", messages=TASK, seed=1, n=8, stream=True)
        first = next(iter(stream))
        process.send_signal(signal.SIGTERM)
        chunks = [first, *stream]
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert len([x for x in finishes if x]) == 8
    assert process.wait(timeout=60) == 143
    said = process.stderr.read()
    assert said.endswith("stopped\n") and "Traceback" not in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host=0.0.0.0"], "MAPPA_SERVE_KEY"),
        (["--team=nowhere"], "and not both"),
    ],
)
def test_what_cannot_be_is_refused(launch, trained, cache, flags, said):
    given = (f"--workdir={trained}", f"--cache_dir={cache}")
    done = launch("serve.py", *given, *flags, env={"MAPPA_SERVE_KEY": ""})
    assert done.returncode and said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_key_that_cannot_be_sent_is_refused(launch, trained):
    flags = (f"--workdir={trained}", "--host=0.0.0.0")
    done = launch("serve.py", *flags, env={"MAPPA_SERVE_KEY": "two words"})
    assert done.returncode == 2 and "printable ASCII" in done.stderr


def test_a_team_is_not_believed_about_code(launch, tiny, tmp_path):
    """Its workflow is a file that would leave a mark."""
    mark = tmp_path / "mark"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    plain = to_dict(resolve(tiny()))
    agent = {"folder": "solver", "kind": "merged", "sampling": {}}
    agent["sampling"] = {key: plain["agents"]["solver"][key] for key in SAMPLING}
    settings = {key: plain[key] for key in SETTINGS}
    settings["workflow"]["name"] = f"{tmp_path / 'evil.py'}:TEAM"
    row = {"format": FORMAT, "version": VERSION, "agents": {"solver": agent}}
    row |= {"settings": settings, "run": {"step": 1}}
    (tmp_path / "team.json").write_text(json.dumps(row))
    for script in ("serve.py", "chat.py"):
        done = launch(script, f"--team={tmp_path}")
        assert done.returncode == 2 and "--trust_team" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not mark.exists()
    done = launch("chat.py", f"--team={tmp_path}", "--trust_team")
    assert done.returncode == 2 and mark.exists(), done.stderr


def test_the_terminal(command, trained, cache):
    made = command("chat.py", f"--workdir={trained}", f"--cache_dir={cache}")
    done = subprocess.run(
        input="What is 2 + 3?\n/agents\n", capture_output=True, timeout=300, **made
    )
    assert done.returncode == 0, done.stderr
    parts = ["after 1 iterations", "solver (", "coder (", "verifier (", "answer"]
    places = [done.stdout.index(part) for part in parts]
    assert places == sorted(places)
    assert "checks the solver's work" in done.stdout and "\x1b" not in done.stdout
