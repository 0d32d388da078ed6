"""The launch scripts, as far as they can be tried without a cloud or a cluster.

Each dry run's commands are held against the flags that the tools document
(documented_flags.json), against what the script does when gcloud, kubectl, srun and the
rest are stand-ins that write down how they were called, and against a secret that must
appear in none of them. The half that runs on a TPU's hosts is run here for real.
"""

import json
import math
import os
import re
import runpy
import shlex
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from mappa_jax.config import changed, resolve
from mappa_jax.models.published import architecture

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.rglob("*.sh"))
TABLE = json.loads(Path(__file__).with_name("documented_flags.json").read_text())
DOCUMENTED = TABLE["commands"]
LOCAL = {"git", "install", "mkdir", "rm", "setsid", "sudo", "env", "python3", "touch"}
SECRET = "k3y-that-nobody-may-see"

TRAIN = ["--", "python", "launch/train.py", "--config=configs/quickstart.py"]
CLOUD = [*TRAIN, "--workdir=gs://bucket/run"]
VM = ["--name=my-tpu", "--zone=us-west4-a"]
CREATE = ["--accelerator-type=v5litepod-16"]
QUEUED = [*VM, "--queued", "--project=p", "--internal-ip"]
POD = ["--name=r", "--image=pkg.dev/p/m:tpu", "--accelerator=v5e", "--topology=4x4"]
XPK = ["--cluster=c", "--name=r", "--tpu-type=v5litepod-16", "--image=pkg.dev/p/m:tpu"]
SLURM = ["--nodes=2", "--gpus-per-node=8", "--time=24:00:00"]
KEYS = "--keys=GEMINI_API_KEY,OPENAI_API_KEY"
SHARED = [*TRAIN, "--workdir=/shared/run"]

CASES = {
    "create": ["tpu_vm.sh", "create", *VM, *CREATE],
    "create spot": [
        *("tpu_vm.sh", "create", *VM, *CREATE, "--spot", "--project=p"),
        *("--service-account=a@p.iam.gserviceaccount.com", "--create-flag=--network=n"),
    ],
    "create queued": ["tpu_vm.sh", "create", *QUEUED, *CREATE, "--spot"],
    "create slices": ["tpu_vm.sh", "create", *QUEUED, *CREATE, "--slices=4"],
    "copy": ["tpu_vm.sh", "copy", *VM],
    "copy tree": ["tpu_vm.sh", "copy", *QUEUED, "--source=tree"],
    "install": ["tpu_vm.sh", "install", *VM],
    "run": ["tpu_vm.sh", "run", *VM, KEYS, *CLOUD, "--config.data.text=it's 'so'"],
    "run queued": ["tpu_vm.sh", "run", *QUEUED, KEYS, *CLOUD],
    "log": ["tpu_vm.sh", "log", *VM],
    "log queued": ["tpu_vm.sh", "log", *QUEUED],
    "status": ["tpu_vm.sh", "status", *VM],
    "status queued": ["tpu_vm.sh", "status", *QUEUED],
    "stop": ["tpu_vm.sh", "stop", *VM],
    "resume": ["tpu_vm.sh", "resume", *VM, *CREATE, KEYS, *CLOUD],
    "resume queued": ["tpu_vm.sh", "resume", *QUEUED, *CREATE, "--slices=2", *CLOUD],
    "delete": ["tpu_vm.sh", "delete", *VM],
    "delete queued": ["tpu_vm.sh", "delete", *QUEUED],
    "worker install": ["worker.sh", "install"],
    "worker start": ["worker.sh", "start", *CLOUD],
    "worker stop": ["worker.sh", "stop"],
    "gke": ["gke/submit.sh", *POD, *CLOUD],
    "gke keys": ["gke/submit.sh", *POD, KEYS, "--slices=2", "--context=c", *CLOUD],
    "gke out": ["gke/submit.sh", *POD, "--out=/tmp/jobset.yaml", *CLOUD],
    "xpk": ["gke/xpk.sh", *XPK, "--project=p", "--zone=z", *CLOUD],
    "slurm": ["slurm.sh", *SLURM, KEYS, *SHARED],
    "slurm container": [
        *(
            "slurm.sh",
            *SLURM,
            "--partition=gpu",
            "--account=a",
            "--sbatch-flag=--qos=q",
        ),
        *("--container-image=pkg.dev#m:cuda", "--container-mounts=/data:/data"),
        *SHARED,
    ],
    "image build": ["image.sh", "build", "--image=m:tpu", "--accelerator=tpu"],
    "image push": ["image.sh", "push", "--image=m:tpu"],
    "image run": [
        *("image.sh", "run", "--image=m:cuda", "--accelerator=cuda", "--runs=/runs"),
        *(KEYS, "--", "python", "launch/doctor.py"),
    ],
    "image run tpu": ["image.sh", "run", "--image=m", "--accelerator=tpu", *CLOUD],
}

# A stand-in: writes down its words, and what the test wants to know besides.
STAND_IN = r"""#!/usr/bin/env bash
tool=${0##*/}
{ printf '%s\x1f' "$tool" "$@"; printf '\x1e'; } >>"$SEEN/calls"
case "$tool $*" in
*" list "*)
  head -n 1 "$SEEN/states"
  if (($(wc -l <"$SEEN/states") > 1)); then sed -i 1d "$SEEN/states"; fi ;;
*" scp "*)
  for word; do
    if [[ -f $word ]]; then
      cp -p "$word" "$SEEN/${word##*/}"
      stat -c %a "$word" >"$SEEN/${word##*/}.mode"
    fi
  done ;;
*--from-env-file=*)
  for word; do
    case $word in --from-env-file=*) cp -p "${word#*=}" "$SEEN/env_file" ;; esac
  done ;;
*"--filename=-"*) cat >"$SEEN/manifest" ;;
*"test -e"*) exit "${INSTALLED:-0}" ;;
srun*) exit "${SRUN_CODE:-0}" ;;
esac
"""


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def call(home):
    """(script, arguments) -> what became of it."""

    def run(script, *arguments, root=ROOT, **variables):
        environment = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "GEMINI_API_KEY": SECRET,
            "OPENAI_API_KEY": f"{SECRET} with 'signs' and $PARTS",
        }
        return subprocess.run(
            [str(root / "launch" / script), *arguments],
            env=environment | variables,
            cwd=root,
            text=True,
            capture_output=True,
            timeout=60,
        )

    return run


@pytest.fixture
def dry(call):
    """(script, arguments) -> the lines of its dry run."""

    def run(script, *arguments):
        at = arguments.index("--") if "--" in arguments else len(arguments)
        done = call(script, *arguments[:at], "--dry-run", *arguments[at:])
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return done.stdout

    return run


@pytest.fixture
def stand_ins(tmp_path):
    """Takes the tools' places; has what they need in the environment and `calls()`."""
    seen, folder = tmp_path / "seen", tmp_path / "bin"
    seen.mkdir()
    folder.mkdir()
    for tool in {name.split()[0] for name in DOCUMENTED}:
        (folder / tool).write_text(STAND_IN)
        (folder / tool).chmod(0o755)
    (seen / "states").write_text("READY\n")

    class StandIns:
        environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SEEN": str(seen)}
        files = seen

        @staticmethod
        def calls():
            written = seen / "calls"
            text = written.read_text() if written.exists() else ""
            written.unlink(missing_ok=True)
            return [one.split("\x1f")[:-1] for one in text.split("\x1e")[:-1]]

    return StandIns


def commands(output: str) -> list[list[str]]:
    """The words of each printed command; here-documents and comments left out."""
    found, end = [], None
    for line in output.splitlines():
        if end is not None:
            end = None if line == end else end
        elif line and not line.startswith("#"):
            mark = re.search(r"<<'(\w+)'$", line)
            end = mark[1] if mark else None
            found.append(shlex.split(line.removesuffix(mark[0]) if mark else line))
    assert end is None, "a here-document has no end"
    return found


def faults(words: list[str]) -> list[str]:
    """What a command has that its tool does not document."""
    named = [key for key in DOCUMENTED if words[: len(key.split())] == key.split()]
    if not named:
        return [f"{' '.join(words[:5])}: not in the table"]
    row, flags = DOCUMENTED[named[0]], {}
    for flag in row["flags"].split():
        flags[flag.rstrip("[=]")] = flag
    out, plain = [], 0
    for word in words[len(named[0].split()) :]:
        if not word.startswith("--"):
            plain += 1
            if row["words"] < 0:
                break  # a command follows, with flags of its own
            continue
        name, equals, value = word.partition("=")
        form = flags.get(name)
        if form is None:
            out.append(f"{named[0]}: no flag {name}")
        elif form.endswith("[=]"):
            pass
        elif form.endswith("=") != bool(equals and value):
            out.append(f"{named[0]}: {word}: the form is {form}")
    if row["words"] >= 0 and plain != row["words"]:
        out.append(f"{named[0]}: {plain} words that are no flags, not {row['words']}")
    return out


def cloud(output: str) -> list[list[str]]:
    """The printed commands that are a cloud's or a cluster's, those in notes too."""
    tools = {name.split()[0] for name in DOCUMENTED}
    noted = [
        shlex.split(line.partition(": ")[2])
        for line in output.splitlines()
        if line.startswith(("# follow it: ", "# end it: "))
    ]
    return [words for words in commands(output) + noted if words[0] in tools]


def test_the_table_says_where_each_row_is_from():
    for name, row in DOCUMENTED.items():
        assert row["source"].startswith("https://"), name
        assert row["read"], name


@pytest.mark.parametrize(
    "line, fault",
    [
        ("gcloud compute tpus tpu-vm delete t --zone=z --quiet", None),
        ("gcloud compute tpus tpu-vm delete t --zone=z --force", "no flag --force"),
        ("gcloud compute tpus tpu-vm delete t --zone", "the form is --zone="),
        ("gcloud compute tpus tpu-vm delete t --quiet=yes", "the form is --quiet"),
        ("gcloud compute tpus tpu-vm delete --quiet", "0 words that are no flags"),
        ("gcloud compute tpus vms delete t", "not in the table"),
        ("srun --kill-on-bad-exit=0 python x.py --its-own", None),
        ("srun --no-such python x.py", "no flag --no-such"),
    ],
)
def test_the_check_of_flags_can_fail(line, fault):
    found = faults(shlex.split(line))
    assert (not found) if fault is None else (fault in found[0])


def test_shellcheck_has_nothing_to_say():
    beside = Path(sys.executable).with_name("shellcheck")
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert found, "shellcheck is missing: pip install -r requirements.txt"
    done = subprocess.run(
        [found, "--external-sources", "--source-path", ROOT, *SCRIPTS],
        text=True,
        capture_output=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_dry_run_prints_documented_commands_and_no_secret(case, dry, home):
    output = dry(*case)
    assert SECRET not in output
    printed = commands(output)
    known = LOCAL | {name.split()[0] for name in DOCUMENTED}
    for words in printed:
        lone = words[0] in ("(umask", "cat", "kill")
        assert lone or words[0] in known, f"an unknown tool: {words}"
    assert printed
    assert [fault for words in cloud(output) for fault in faults(words)] == []
    parsed = subprocess.run(["bash", "-n"], input=output, text=True)
    assert parsed.returncode == 0
    assert not list(home.rglob("*")), "a dry run left something"


def acts(calls: list[list[str]]) -> list[list[str]]:
    """Those that do something; a run asks in its own way how far a resource is."""
    asks = re.compile(r"gcloud compute tpus \S+ (list|describe) |.*test -e ")
    return [words for words in calls if not asks.match(" ".join(words))]


# Slurm runs the second half of its script, and the job's tests that.
@pytest.mark.parametrize(
    "name", [n for n in CASES if not n.startswith(("worker", "slurm", "gke out"))]
)
def test_what_a_dry_run_prints_is_what_a_run_does(name, call, dry, stand_ins, home):
    variables = stand_ins.environment | {
        "HOME": str(home),
        "GEMINI_API_KEY": SECRET,
        "OPENAI_API_KEY": SECRET,
    }
    pasted = subprocess.run(
        ["bash", "-euo", "pipefail"],
        input=dry(*CASES[name]),
        text=True,
        capture_output=True,
        env=os.environ | variables,
    )
    assert pasted.returncode == 0, pasted.stderr
    printed = acts(stand_ins.calls())
    if name.startswith("resume"):
        (stand_ins.files / "states").write_text("PREEMPTED\nREADY\n")
    done = call(*CASES[name], **stand_ins.environment, INSTALLED="1")
    assert done.returncode == 0, done.stderr
    ran = acts(stand_ins.calls())
    assert ran == printed
    assert ran or name.startswith("status")
    assert SECRET not in done.stdout + done.stderr + repr(ran)


@pytest.mark.parametrize("name", ["run", "run queued", "resume"])
def test_keys_travel_in_a_file_that_only_its_owner_reads(
    name, call, stand_ins, home, tmp_path
):
    done = call(*CASES[name], **stand_ins.environment)
    assert done.returncode == 0, done.stderr
    keys = stand_ins.files / "keys.env"
    assert (stand_ins.files / "keys.env.mode").read_text() == "600\n"
    read = subprocess.run(
        ["bash", "-c", '. "$0"; printf %s "$OPENAI_API_KEY"', str(keys)],
        text=True,
        capture_output=True,
        check=True,
    )
    assert read.stdout == f"{SECRET} with 'signs' and $PARTS"
    assert not list((home / ".cache").rglob("*.env")), "the keys were left behind"


def test_kubernetes_gets_keys_as_a_secret(call, stand_ins, home):
    done = call(*CASES["gke keys"], **stand_ins.environment)
    assert done.returncode == 0, done.stderr
    given = stand_ins.files / "env_file"
    assert stat.S_IMODE(given.stat().st_mode) == 0o600
    assert given.read_text().splitlines()[0] == f"GEMINI_API_KEY={SECRET}"
    text = (stand_ins.files / "manifest").read_text()
    assert SECRET not in text
    container = pod(yaml.safe_load(text))["containers"][0]
    assert container["envFrom"] == [{"secretRef": {"name": "r-keys"}}]
    assert not list((home / ".cache").rglob("keys"))


def test_a_failed_copy_of_the_keys_leaves_none_behind(call, stand_ins, home):
    broken = Path(stand_ins.environment["PATH"].split(":")[0]) / "gcloud"
    broken.write_text('#!/usr/bin/env bash\n[[ " $* " != *" scp "* ]]\n')
    done = call(*CASES["run"], **stand_ins.environment)
    assert done.returncode != 0
    assert not list((home / ".cache").rglob("*.env"))


REQUIRED = [
    (["tpu_vm.sh", "create", *VM, *CREATE], ["--name", "--zone", "--accelerator-type"]),
    (["tpu_vm.sh", "run", *VM, *CLOUD], ["--name", "--zone", "--workdir"]),
    (["tpu_vm.sh", "resume", *VM, *CREATE, *CLOUD], ["--accelerator-type"]),
    (["tpu_vm.sh", "delete", *VM], ["--name", "--zone"]),
    (
        ["gke/submit.sh", *POD, *CLOUD],
        ["--name", "--image", "--accelerator", "--topology", "--workdir"],
    ),
    (
        ["gke/xpk.sh", *XPK, *CLOUD],
        ["--cluster", "--name", "--tpu-type", "--image", "--workdir"],
    ),
    (
        ["slurm.sh", *SLURM, *SHARED],
        ["--nodes", "--gpus-per-node", "--time", "--workdir"],
    ),
    (["image.sh", "build", "--image=m"], ["--image"]),
]


@pytest.mark.parametrize(
    "case, option", [(case, option) for case, options in REQUIRED for option in options]
)
def test_a_missing_option_is_refused_by_name(case, option, call):
    done = call(*[word for word in case if not word.startswith(f"{option}=")])
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {option}")
    assert "expected" in done.stderr or "for example" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    "case, said",
    [
        (["tpu_vm.sh"], "no subcommand: expected create, copy"),
        (["tpu_vm.sh", "fly", *VM], "fly: expected create, copy"),
        (["tpu_vm.sh", "create", "--name", "x"], "--name: no such option, or it needs"),
        (["tpu_vm.sh", "create", *VM, *CREATE, "--spt"], "--spt: no such option"),
        (["tpu_vm.sh", "create", *VM, *CREATE, "--slices=2"], "add --queued"),
        (["tpu_vm.sh", "create", *VM, "--accelerator-type=x"], "--runtime-version is"),
        (["tpu_vm.sh", "create", "--name=A b", "--zone=z"], "--name=A b: expected"),
        (["tpu_vm.sh", "copy", *VM, "--source=x"], "--source=x: expected head or tree"),
        (["tpu_vm.sh", "run", *VM], "the command is missing: put it last, after --"),
        (["tpu_vm.sh", "run", *VM, "--keys=NOT_SET", *CLOUD], "NOT_SET is not set"),
        (["tpu_vm.sh", "run", *VM, *SHARED], "expected --workdir=gs://"),
        (["tpu_vm.sh", "run", *VM, "--", "env", "A_API_KEY=b", "x"], "use --keys"),
        (["gke/submit.sh", *POD, "--slices=0", *CLOUD], "--slices=0: expected a whole"),
        (["gke/submit.sh", *POD, "--accelerator=v9", *CLOUD], "expected v4, v5e, v5p"),
        (["gke/submit.sh", *POD, "--topology=3x3", *CLOUD], "expected 1x1, 2x2"),
        (["gke/submit.sh", *POD, "--chips-per-host=8", *CLOUD], "come as 2x4 only"),
        (["gke/submit.sh", *POD, "--secret=s", KEYS, *CLOUD], "give one of them"),
        (
            ["gke/submit.sh", *POD, "--topology=2x2", "--slices=2", *CLOUD],
            "GKE joins slices of several hosts only",
        ),
        (["gke/xpk.sh", *XPK, KEYS, *CLOUD], "use launch/gke/submit.sh"),
        (["slurm.sh", *SLURM, *TRAIN, "--workdir=runs/x"], "an absolute path that all"),
        (["slurm.sh", *SLURM, "--venv=/none", *SHARED], "/none: no bin/python there"),
        (["image.sh", "build", "--image=m", "--accelerator=x"], "cpu, tpu or cuda"),
        (["worker.sh", "start"], "the command is missing: put it last, after --"),
    ],
)
def test_what_cannot_be_meant_is_refused(case, said, call, stand_ins):
    done = call(*case, **stand_ins.environment)
    assert done.returncode == 2
    assert said in done.stderr
    assert stand_ins.calls() == []


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.name != "shell.sh"])
def test_help_names_every_option(script, call):
    done = call(script.relative_to(LAUNCH), "--help")
    assert done.returncode == 0
    text = script.read_text()
    for option in re.findall(r"^  (--[a-z-]+)=?\*?\)", text, re.MULTILINE):
        if option not in ("--in-job", "--"):
            assert option in done.stdout, f"{script.name} --help does not say {option}"


# Resuming.

ANEW = "ssh scp ssh ssh ssh ssh"  # copy, install, and run


@pytest.mark.parametrize(
    "states, installed, steps",
    [
        (
            "PREEMPTED\nREADY\n",
            1,
            "list delete create list ssh ssh scp ssh ssh ssh ssh",
        ),
        ("\nREADY\n", 1, "list create list ssh ssh scp ssh ssh ssh ssh"),
        ("READY\n", 0, "list list ssh ssh ssh"),
        ("READY\n", 1, "list list ssh ssh scp ssh ssh ssh ssh"),
    ],
    ids=["preempted", "gone", "there", "there but not installed"],
)
def test_resume_makes_what_is_gone_and_runs_again(
    states, installed, steps, call, stand_ins
):
    (stand_ins.files / "states").write_text(states)
    variables = stand_ins.environment | {"INSTALLED": str(installed)}
    done = call("tpu_vm.sh", "resume", *VM, *CREATE, *CLOUD, **variables)
    assert done.returncode == 0, done.stderr
    calls = stand_ins.calls()
    assert [words[4] for words in calls] == steps.split()
    started = [word for word in calls[-1] if word.startswith("--command=")][0]
    assert shlex.split(started.removeprefix("--command="))[-4:] == [
        *CLOUD[2:],
        "--distributed",
    ]


def test_resume_leaves_a_stopped_resource_to_the_user(call, stand_ins):
    (stand_ins.files / "states").write_text("STOPPED\n")
    done = call("tpu_vm.sh", "resume", *VM, *CREATE, *CLOUD, **stand_ins.environment)
    assert done.returncode == 2
    assert "my-tpu is STOPPED: start it or delete it" in done.stderr


def test_an_error_of_gcloud_is_not_taken_for_gone(call, stand_ins):
    broken = Path(stand_ins.environment["PATH"].split(":")[0]) / "gcloud"
    broken.write_text(
        '#!/usr/bin/env bash\necho "$*" >>"$SEEN/words"\necho no right >&2\nexit 1\n'
    )
    done = call("tpu_vm.sh", "resume", *VM, *CREATE, *CLOUD, **stand_ins.environment)
    assert done.returncode == 1
    assert "no right" in done.stderr
    assert "create" not in (stand_ins.files / "words").read_text()


@pytest.mark.parametrize("source", ["head", "tree"])
def test_the_copy_holds_the_code_and_nothing_else(source, call, stand_ins, tmp_path):
    root = tmp_path / "checkout"
    shutil.copytree(LAUNCH, root / "launch")
    shutil.copy(ROOT / ".gitignore", root)
    for name in (".venv/x", "runs/x", ".cache/x", "a__pycache__/x", "__pycache__/x"):
        (root / name).parent.mkdir()
        (root / name).touch()
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(root)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "code"], check=True)
    (root / "new file").touch()
    done = call(
        *("tpu_vm.sh", "copy", *VM, f"--source={source}"),
        root=root,
        **stand_ins.environment,
    )
    assert done.returncode == 0, done.stderr
    archive = stand_ins.files / "code.tar.gz"
    listed = subprocess.run(
        ["tar", "-tzf", archive], text=True, capture_output=True, check=True
    ).stdout.splitlines()
    files = {name for name in listed if not name.endswith("/")}
    assert {"launch/worker.sh", "a__pycache__/x", ".gitignore"} <= files
    assert ("new file" in files) == (source == "tree")
    assert not [n for n in files if n.startswith((".venv", "runs", ".cache", "__py"))]


# On a host.


@pytest.fixture
def worker(call, home):
    yield lambda *arguments: call("worker.sh", *arguments)
    pid = home / ".mappa_jax" / "run.pid"
    if pid.exists():
        call("worker.sh", "stop")


def wait_for(path: Path, seconds: float = 10.0) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come")


SAVES = """
trap 'echo saved; exit 143' TERM
echo ready >$HOME/ready
while :; do sleep 0.05; done"""


def test_a_run_on_a_host_outlives_its_starter_and_stops_cleanly(worker, home):
    state = home / ".mappa_jax"
    assert "never started" in worker("state").stdout
    done = worker("start", "--", "bash", "-c", SAVES)
    assert "running, process" in done.stdout, done.stderr
    wait_for(home / "ready")
    pid = int((state / "run.pid").read_text())
    assert os.getsid(pid) == pid, "it would end with the ssh session"
    again = worker("start", "--", "true")
    assert again.returncode == 2
    assert "a run is under way" in again.stderr
    assert worker("idle").returncode == 2
    stopped = worker("stop")
    assert "exited with 143" in stopped.stdout
    assert "saved" in (state / "run.log").read_text()
    assert worker("idle").returncode == 0
    assert "exited with 143" in worker("state").stdout


def test_a_host_gives_the_keys_to_the_run_only(worker, home):
    state = home / ".mappa_jax"
    state.mkdir()
    (state / "keys.env").write_text("export JUDGE_API_KEY=hidden\n")
    (state / "keys.env").chmod(0o644)
    show = 'echo "$JUDGE_API_KEY" >"$HOME/told"; tr "\\0" " " </proc/$$/cmdline'
    worker("start", "--", "bash", "-c", show)
    assert wait_for(home / "told") == "hidden\n"
    assert wait_for(state / "exit_code") == "0\n"
    assert "hidden" not in (state / "run.log").read_text()
    assert stat.S_IMODE((state / "keys.env").stat().st_mode) == 0o600


def test_a_host_reports_an_end_at_once_and_a_host_that_went_down(worker, home):
    state = home / ".mappa_jax"
    worker("start", "--", "bash", "-c", "exit 2")
    assert wait_for(state / "exit_code") == "2\n"
    assert "exited with 2" in worker("state").stdout
    (state / "exit_code").unlink()
    (state / "run.pid").write_text(f"{os.getpid()}\n")  # a number that is used again
    assert "ended without an exit code" in worker("state").stdout
    (state / "run.pid").unlink()


# Kubernetes.


def pod(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def rendered(output: str):
    body = output.partition("<<'MANIFEST'\n")[2].partition("\nMANIFEST")[0]
    return yaml.safe_load(body)


@pytest.mark.parametrize(
    "generation, topology, slices, selector, hosts, chips",
    [
        ("v4", "2x2x2", 1, "tpu-v4-podslice", 2, 4),
        ("v5e", "1x1", 1, "tpu-v5-lite-podslice", 1, 1),
        ("v5e", "2x4", 2, "tpu-v5-lite-podslice", 2, 4),
        ("v5e", "16x16", 2, "tpu-v5-lite-podslice", 64, 4),
        ("v5p", "2x2x4", 2, "tpu-v5p-slice", 4, 4),
        ("v6e", "2x4 --chips-per-host=8", 1, "tpu-v6e-slice", 1, 8),
        ("v6e", "4x4", 4, "tpu-v6e-slice", 4, 4),
    ],
)
def test_the_manifest_asks_for_the_slices_it_names(
    generation, topology, slices, selector, hosts, chips, dry
):
    shape, *more = topology.split()
    output = dry(
        *("gke/submit.sh", *POD[:2], f"--accelerator={generation}"),
        *(f"--topology={shape}", f"--slices={slices}", *more, *CLOUD),
    )
    manifest = rendered(output)
    assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert manifest["kind"] == "JobSet"
    assert (
        manifest["metadata"]["name"] == manifest["spec"]["network"]["subdomain"] == "r"
    )
    (job,) = manifest["spec"]["replicatedJobs"]
    assert job["replicas"] == slices
    of_job = job["template"]["spec"]
    assert of_job["parallelism"] == of_job["completions"] == hosts
    assert of_job["completionMode"] == "Indexed"
    assert of_job["backoffLimit"] == 0
    assert pod(manifest)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": selector,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    (container,) = pod(manifest)["containers"]
    for kind in ("requests", "limits"):
        assert container["resources"][kind] == {"google.com/tpu": chips}
    assert chips * hosts == math.prod(map(int, shape.split("x")))
    assert container["command"] == [*CLOUD[1:], "--distributed"]
    assert "envFrom" not in container
    assert "@" not in yaml.safe_dump(manifest)


def test_the_manifest_restarts_what_was_saved_and_not_what_was_refused(dry):
    manifest = rendered(dry("gke/submit.sh", *POD, "--max-restarts=7", *CLOUD))
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    spec = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [2]
    assert (
        rule["onExitCodes"]["containerName"] == pod(manifest)["containers"][0]["name"]
    )
    assert pod(manifest)["restartPolicy"] == "Never"


def test_the_manifest_carries_any_command_and_option(dry):
    odd = ['--config.x=it\'s "so" \\ @NAME@ & $(HOME)', "a: b # c"]
    options = ["--spot", "--secret=s", "--service-account=sa", "--grace-seconds=30"]
    manifest = rendered(dry("gke/submit.sh", *POD, *options, *CLOUD, *odd))
    spec, container = pod(manifest), pod(manifest)["containers"][0]
    expanded = [word.replace("$$(", "$(") for word in container["command"]]
    assert expanded == [*CLOUD[1:], *odd, "--distributed"]
    assert "$$(HOME)" in container["command"][-3]  # Kubernetes makes one $ of two
    assert spec["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert spec["serviceAccountName"] == "sa"
    assert spec["terminationGracePeriodSeconds"] == 30
    assert container["envFrom"] == [{"secretRef": {"name": "s"}}]


def test_the_manifest_can_be_written_to_a_file(call, tmp_path, stand_ins):
    out = tmp_path / "job set.yaml"
    done = call("gke/submit.sh", *POD, f"--out={out}", *CLOUD, **stand_ins.environment)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(out.read_text())["kind"] == "JobSet"
    assert stand_ins.calls() == []


# Slurm.


def flag(words: list[str], name: str) -> str:
    (value,) = [w.partition("=")[2] for w in words if w.partition("=")[0] == name]
    return value


def test_slurm_starts_one_process_per_gpu_that_sees_all_of_its_node(dry):
    sbatch, srun, _ = commands(dry("slurm.sh", *SLURM, *SHARED))
    sbatch = sbatch[: sbatch.index(f"{ROOT}/launch/slurm.sh")]
    for words in (sbatch, srun):
        assert flag(words, "--ntasks-per-node") == flag(words, "--gpus-per-node") == "8"
        assert flag(words, "--nodes") == "2"
    assert flag(srun, "--gpu-bind") == "none"
    assert "--gpus-per-task" not in " ".join(sbatch + srun)
    assert flag(srun, "--kill-on-bad-exit") == "0"
    assert flag(sbatch, "--signal") == "TERM@600"
    assert "--requeue" in sbatch
    assert flag(sbatch, "--open-mode") == "append"
    assert srun[-2:] == ["--workdir=/shared/run", "--distributed"]


@pytest.mark.parametrize("code", [0, 1, 2, 143])
def test_a_slurm_job_requeues_itself_only_to_go_on(code, call, stand_ins, tmp_path):
    (tmp_path / "venv/bin").mkdir(parents=True)
    shutil.copy("/bin/true", tmp_path / "venv/bin/python")
    spooled = tmp_path / "slurm_script"  # Slurm runs a copy
    shutil.copy(LAUNCH / "slurm.sh", spooled)
    done = subprocess.run(
        [spooled, f"--root={ROOT}", "--in-job", *SLURM, f"--venv={tmp_path}/venv"]
        + SHARED,
        env=os.environ
        | stand_ins.environment
        | {"SRUN_CODE": str(code), "SLURM_JOB_ID": "17"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == code, done.stderr
    srun, *then = stand_ins.calls()
    assert srun[0] == "srun"
    requeue = [["scontrol", "requeue", "Incomplete", "17"]]
    assert then == (requeue if code == 143 else [])


def test_slurm_submits_itself(call, stand_ins):
    options = ["--container-image=pkg.dev#m:cuda", KEYS]
    done = call("slurm.sh", *SLURM, *options, *SHARED, **stand_ins.environment)
    assert done.returncode == 0, done.stderr
    (sbatch,) = stand_ins.calls()
    assert faults(sbatch) == []
    at = sbatch.index(f"{ROOT}/launch/slurm.sh")
    assert sbatch[at + 1 : at + 3] == [f"--root={ROOT}", "--in-job"]
    assert sbatch[-len(SHARED) - 1 :] == [*SHARED, "--distributed"]
    assert SECRET not in repr(sbatch) + done.stdout + done.stderr


# The image.


def test_the_image_has_the_extras_and_no_root():
    text = (ROOT / "Dockerfile").read_text()
    setup = (ROOT / "setup.py").read_text()
    kinds = re.search(r"^ +(\w+\|\w+)\) extra=", text, re.MULTILINE)[1].split("|")
    assert kinds == ["tpu", "cuda"]
    assert all(f'"{kind}": [' in setup for kind in kinds)
    assert "apt-get install -y --no-install-recommends bubblewrap" in text
    assert "--requirement requirements.txt" in text
    assert "ARG RUN_AS=mappa" in text
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["${RUN_AS}"]
    built = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    script = (LAUNCH / "image.sh").read_text()
    assert set(re.findall(r"--build-arg=(\w+)", script)) <= built


def test_the_image_takes_nothing_that_git_ignores():
    ignored = {
        line.rstrip("/").removeprefix("**/")
        for line in (ROOT / ".dockerignore").read_text().split()
    }
    for line in (ROOT / ".gitignore").read_text().split():
        assert line.rstrip("/") in ignored, f"{line} is not in .dockerignore"


# The documentation.


def documented_lines() -> list[str]:
    text = (ROOT / "docs" / "launching.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    joined = "".join(blocks).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.startswith("launch/")]


def test_every_documented_line_is_taken_by_its_script(dry):
    lines = documented_lines()
    told = {line.split()[0] for line in lines}
    assert told == {
        f"launch/{s}" for s in ("tpu_vm.sh", "gke/submit.sh", "gke/xpk.sh", "slurm.sh")
    } | {"launch/image.sh"}
    for line in lines:
        script, *arguments = shlex.split(line, comments=True)
        output = dry(script.removeprefix("launch/"), *arguments)
        assert [f for words in cloud(output) for f in faults(words)] == [], line


def get_config(path: str):
    """What --config= reads: a file, and its argument after a colon."""
    file, _, argument = path.partition(":")
    return runpy.run_path(str(ROOT / file))["get_config"](argument)


def number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


CHIPS = {"tpu_vm.sh": 16, "gke/submit.sh": 32, "gke/xpk.sh": 32, "slurm.sh": 16}


def test_the_documented_runs_fit_their_devices():
    """Every mesh has as many devices as are asked for, and rows divide it."""
    lines = [line for line in documented_lines() if "launch/train.py" in line]
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line)
        (path,) = (w.partition("=")[2] for w in words if w.startswith("--config="))
        changes = [
            word.removeprefix("--config.").split("=")
            for word in words
            if word.startswith("--config.") and ".judge." not in word
        ]
        config = changed(resolve(get_config(path)), {k: number(v) for k, v in changes})
        mesh = config.mesh
        sizes = (mesh.agent, mesh.data, mesh.fsdp, mesh.tensor)
        chips = CHIPS[words[0].removeprefix("launch/")]
        assert np.prod(sizes) == chips, line
        ways = mesh.data * mesh.fsdp
        assert config.packing.rows % ways == config.sampler.slots % ways == 0, line
        for agent in config.agents.values():
            assert architecture(agent.model).n_kv_heads % mesh.tensor == 0, line
