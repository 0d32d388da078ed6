"""mappa_jax beside what one would use instead: the same work, the same minutes.

python benchmarks/peers.py --json=docs/performance/peers.json
python benchmarks/peers.py --smoke                     # tiny shapes, a few minutes
python benchmarks/peers.py --only=update --sequences=16 --repeats=3

The peers, each from its registry package in an environment of its own (made at the
first call, in --env_dir), each in a process that lives through a comparison:
  tunix         google-tunix: its vanilla sampler, its GRPO loss in its RL trainer
  transformers  `generate`, with torch
  torch         a plain PyTorch step with gradient checkpointing
  trl           one step of GRPOTrainer
The files in peer_workers/ say what each does and how it is configured.

The work, the same arrays and the same random weights for all:
  sampling   --rows prompts of --prompt tokens, all different; row r gets exactly
             stops[r] new ones, spread evenly over --new/16 .. --new, at temperature 1
             from the whole vocabulary. Each side forces the lengths as its users can.
  update     one policy-gradient step on --sequences sequences of lengths spread evenly
             over --longest/8 .. --longest, half of each a prompt; clipped surrogate
             (0.2), mean over a sequence's tokens and then over sequences, no KL, AdamW,
             gradients clipped at norm 1; gradient checkpointing on every side. What
             turns lists of ids into padded or packed arrays counts.
  iteration  --agents agents with weights of their own: the sampling and then one update
             on what was sampled. For us one team; for the peer single-agent runs in
             turn (one process doing one agent's work so many times, so that neither
             start-up nor compilation counts against it).
In float32 on a CPU, with all its cores: torch's bfloat16 on a CPU has matrix units
(AMX, where there are any) that XLA:CPU does not use. On a GPU in bfloat16.

Ours and a peer take turns (A B, B A, ...); a ratio is the median of the pairs' seconds,
theirs / ours: above 1 ours is faster. Before and after each timing the machine's speed
is probed with bursts of fixed work on every core; the share of full speed is against
the fastest burst of the whole run. A pair within which the speed moved by more than
--tolerance is taken again, --retakes times in a comparison at most; then the steadiest
is kept, and counted. With --pairs=PATH.jsonl every pair is written down when it is
taken, and a later call with the same work, code and packages, on the same machine, goes
on from there: a comparison of hours may be stopped. The sides must have done the same
work: tokens by row, tokens trained on, and the first update's gradient norm; otherwise
the comparison fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mappa_jax.commands import common

common.prepare_environment()

from absl import flags  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
WORKERS = Path(__file__).resolve().parent / "peer_workers"
BURST = bytes(1 << 21)  # hashed by each core: a few milliseconds, without the GIL
EOS, PAD = 2, 1  # ids; those of prompts are larger
NORMS_APART = 0.05  # relative, of gradients computed in float32; 0.25 in bfloat16


# -- the peers ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Peer:
    """A side that is not ours: its worker, and its environment's packages."""

    worker: str
    environment: str
    does: tuple[str, ...]


ENVIRONMENTS = {
    "tunix": (
        "google-tunix==0.1.7",
        *("jax==0.10.2", "jaxlib==0.10.2", "flax==0.12.8", "optax==0.2.8"),
        *("qwix==0.1.8", "transformers==5.12.1"),
    ),
    "torch": (
        *("torch==2.13.0", "transformers==5.23.0", "trl==1.16.0"),
        *("accelerate==1.15.0", "datasets==5.2.0"),
    ),
}
ON_GPU = {"tunix": ("jax[cuda12]==0.10.2",), "torch": ()}
PEERS = {
    "tunix": Peer("tunix_worker.py", "tunix", ("sampling", "update", "iteration")),
    "transformers": Peer("torch_worker.py", "torch", ("sampling",)),
    "torch": Peer("torch_worker.py", "torch", ("update", "iteration")),
    "trl": Peer("trl_worker.py", "torch", ("update",)),
}
# The peers that a whole iteration can be made of: who samples, who updates.
WHOLE = {"tunix": ("tunix", "tunix"), "torch": ("transformers", "torch")}
TARGETS = {
    "sampling_vs_tunix": 2.0,
    "sampling_vs_transformers": 2.0,
    "update_vs_tunix": 1.3,
    "update_vs_torch": 1.0,
    "iteration_vs_peer": 3.0,
}


def environment_python(name: str, folder: Path, device: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there.

    Raises:
      subprocess.CalledProcessError: its packages cannot be installed.
    """
    wanted = ENVIRONMENTS[name] + (ON_GPU[name] if device == "gpu" else ())
    digest = hashlib.sha256(repr((sys.version_info[:2], wanted)).encode()).hexdigest()
    place = folder / f"{name}-{device}-{digest[:8]}"
    python = place / "bin" / "python"
    if not (place / "installed").exists():
        print(f"installing {', '.join(wanted)} in {place}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        install = ["-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([python, *install, *wanted], check=True)
        (place / "installed").touch()
    return python


# -- the work -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much work, see the flags."""

    model: str
    rows: int
    prompt: int
    new: int
    sequences: int
    longest: int
    microbatch: int
    agents: int


SMOKE = Sizes("tiny", 4, 32, 16, 8, 64, 2, 3)


def check_sizes(sizes: Sizes) -> None:
    """Raises ValueError unless the peers' micro-batches can be of one size."""
    for name in ("rows", "sequences"):
        if getattr(sizes, name) % sizes.microbatch:
            raise ValueError(
                f"--{name}={getattr(sizes, name)} is no multiple of "
                f"--microbatch={sizes.microbatch}"
            )


def make_arrays(sizes: Sizes, vocabulary: int) -> dict[str, Any]:
    """The arrays of peer_workers/protocol.Work."""
    import numpy as np

    rng = np.random.default_rng(0)

    def spread(low: int, high: int, count: int) -> Any:
        even = np.linspace(max(low, 2), high, count).round()
        return rng.permutation(even).astype(np.int32)

    def ids(*shape: int) -> Any:
        return rng.integers(max(EOS, PAD) + 1, vocabulary, shape).astype(np.int32)

    lengths = spread(sizes.longest // 8, sizes.longest, sizes.sequences)
    tokens = ids(sizes.sequences, sizes.longest)
    count = max(sizes.rows, sizes.sequences)
    scores = rng.uniform(4, 6, count).astype(np.float32)
    return {
        "prompts": ids(sizes.rows, sizes.prompt),
        "stops": spread(sizes.new // 16, sizes.new, sizes.rows),
        "tokens": np.where(np.arange(sizes.longest) < lengths[:, None], tokens, PAD),
        "starts": lengths // 2,
        "lengths": lengths,
        "scores": scores,
        "advantages": scores - scores[: sizes.sequences].mean(),
    }


def model_shape(name: str) -> Any:
    """A ModelConfig whose RoPE has the base 1e6, the one that every side can have."""
    from mappa_jax.models import published
    from mappa_jax.models.config import Rope

    known = {
        "tiny": "random:tiny",
        "135m": "smollm2-135m-instruct",
        "qwen3-0.6b": "Qwen/Qwen3-0.6B",
        "qwen3-1.7b": "Qwen/Qwen3-1.7B",
        "qwen3-4b": "Qwen/Qwen3-4B",
    }
    return dataclasses.replace(published.architecture(known[name]), rope=Rope(1e6))


def write_weights(cfg: Any, folder: Path) -> None:
    """Random weights in Hugging Face's layout."""
    import jax
    import numpy as np

    from mappa_jax.models import hf
    from mappa_jax.parallel.mesh import path_name

    rng = np.random.default_rng(0)

    def one(path: Any, shape: Any) -> Any:
        if "norm" in path_name(path):
            return np.ones(shape.shape, np.float32)
        return 0.02 * rng.standard_normal(shape.shape, np.float32)

    params = jax.tree_util.tree_map_with_path(one, hf.param_shapes(cfg))
    folder.mkdir(parents=True, exist_ok=True)
    hf.save_params(params, cfg, folder)


# -- speed, timings and pairs -------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Timing:
    """Seconds of a side's work, what it did, and bursts around it.

    Attributes:
      before, after: mean seconds of a burst of fixed work, over all cores.
    """

    seconds: float
    facts: dict[str, Any]
    before: float
    after: float

    @property
    def burst(self) -> float:
        return (self.before + self.after) / 2


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Two timings that followed each other."""

    ours: Timing
    peer: Timing

    @property
    def ratio(self) -> float:
        return self.peer.seconds / self.ours.seconds

    @property
    def spread(self) -> float:
        """By how much the machine's speed moved: 0.1 is a tenth."""
        ends = [t for side in (self.ours, self.peer) for t in (side.before, side.after)]
        return max(ends) / min(ends) - 1


class Probe:
    """Measures how fast the machine is just now.

    Attributes:
      best: seconds of the fastest burst so far: full speed.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self.best = float("inf")

    def __call__(self) -> float:
        """Mean seconds of a burst, all cores at work."""
        spans: list[float] = []
        cores = range(len(os.sched_getaffinity(0)))
        threads = [threading.Thread(target=self._bursts, args=(spans,)) for _ in cores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.best = min(self.best, *spans)
        return statistics.fmean(spans)

    def _bursts(self, spans: list[float]) -> None:
        end = time.perf_counter() + self._seconds
        start = time.perf_counter()
        while start < end:
            hashlib.sha256(BURST).digest()
            now = time.perf_counter()
            spans.append(now - start)
            start = now


def take_pairs(
    ours: Callable[[], Timing],
    peer: Callable[[], Timing],
    repeats: int,
    tolerance: float,
    retakes: int,
    tell: Callable[[int, Pair], None] = lambda number, pair: None,
    had: Mapping[int, Sequence[Pair]] = MappingProxyType({}),
) -> tuple[list[Pair], int]:
    """Pairs of timings, in turn ours first and theirs first.

    A pair with a spread above `tolerance` is taken again while `retakes` last, which
    are of all pairs together; of its takes the steadiest is kept. `tell` hears of every
    take, `had` holds those of an earlier call, both by the pair's number.

    Returns:
      The pairs kept, and how many were taken again.
    """
    kept, again = [], sum(len(takes) - 1 for takes in had.values())
    for number in range(repeats):
        takes = [*had.get(number, ())]
        while not takes or (takes[-1].spread > tolerance and again < retakes):
            again += bool(takes)
            order = [ours, peer] if number % 2 == 0 else [peer, ours]
            found = [take() for take in order]
            takes.append(Pair(*(found if number % 2 == 0 else found[::-1])))
            tell(number, takes[-1])
        kept.append(min(takes, key=lambda pair: pair.spread))
    return kept, again


def summary(pairs: Sequence[Pair], again: int, tolerance: float, full: float) -> Any:
    """A comparison as JSON values.

    Args:
      pairs: those kept.
      again: pairs that were taken again.
      tolerance: of a pair's spread.
      full: seconds of the fastest burst.
    """

    def side(timings: list[Timing]) -> dict[str, Any]:
        return {
            "median_seconds": statistics.median(t.seconds for t in timings),
            "seconds": [t.seconds for t in timings],
            "share_of_full_speed": [round(full / t.burst, 3) for t in timings],
            "facts": timings[-1].facts,
        }

    return {
        "ratio": statistics.median(pair.ratio for pair in pairs),
        "ratios": [pair.ratio for pair in pairs],
        "ours": side([pair.ours for pair in pairs]),
        "peer": side([pair.peer for pair in pairs]),
        "taken_again": again,
        "moved": sum(pair.spread > tolerance for pair in pairs),
    }


# -- pairs that are kept --------------------------------------------------------------


def code_digest() -> str:
    """Of what is measured: both sides' code, and this file."""
    found = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted([*(ROOT / "mappa_jax").rglob("*.py"), *WORKERS.glob("*.py")]):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def append_pair(
    path: Path, of: dict[str, Any], number: int, pair: Pair, full: float
) -> None:
    """Writes a take down: `of` says what was measured, `full` the fastest burst."""
    from mappa_jax.records import append_row

    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"of": of, "number": number, "full": full}
    append_row(path, row | dataclasses.asdict(pair))


def read_pairs(path: Path, of: dict[str, Any]) -> tuple[dict[int, list[Pair]], float]:
    """The takes of this very measurement by the pair's number, and the fastest burst of
    them (infinity without any).

    Raises:
      RecordError: a line is damaged.
    """
    from mappa_jax.records import read_rows

    needed = ("of", "number", "full", "ours", "peer")
    rows = [row for row in read_rows(path, needed) if row["of"] == of]
    takes: dict[int, list[Pair]] = {}
    for row in rows:
        pair = Pair(Timing(**row["ours"]), Timing(**row["peer"]))
        takes.setdefault(row["number"], []).append(pair)
    return takes, min((row["full"] for row in rows), default=float("inf"))


class OtherWork(RuntimeError):
    """Two sides did not do the same work."""


def check_same_work(
    part: str, arrays: dict[str, Any], agents: int, norms_apart: float, *facts: Any
) -> None:
    """Raises OtherWork unless both sides' first runs did what was asked, alike."""
    stops = arrays["stops"].tolist()
    lengths = {"sampling": stops, "iteration": [stops] * agents}.get(part)
    tokens = {
        "update": int((arrays["lengths"] - arrays["starts"]).sum()),
        "iteration": agents * sum(stops),
    }.get(part)
    for fact in facts:
        if lengths is not None and fact["lengths"] != lengths:
            raise OtherWork(f"{part}: rows of {fact['lengths']} tokens, not {lengths}")
        if tokens is not None and fact["tokens"] != tokens:
            raise OtherWork(f"{part}: {fact['tokens']} tokens trained on, not {tokens}")
    if part == "update":
        a, b = (fact["grad_norm"] for fact in facts)
        if not abs(a - b) <= norms_apart * max(abs(a), abs(b)):
            raise OtherWork(f"update: gradients of norm {a:.6g} and {b:.6g}")


# -- workers ------------------------------------------------------------------------


class WorkerFailed(RuntimeError):
    """A side could not do its work; says why."""


class Worker:
    """A side's process.

    Args:
      command: interpreter and file.
      environment: of the process.
      log: where its standard error goes.
      setup: the first line that it is told.

    Raises:
      WorkerFailed: as `run`.
    """

    def __init__(
        self,
        command: Sequence[Any],
        environment: dict[str, str],
        log: Path,
        setup: dict[str, Any],
    ):
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )
        try:
            self._ask(setup)
        except WorkerFailed:
            self.close()
            raise

    def run(self) -> tuple[float, dict[str, Any]]:
        """Seconds and facts of doing the work once."""
        reply = self._ask({})
        return reply["seconds"], reply["facts"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            tail = self._log.read_text(errors="replace")[-2000:]
            raise WorkerFailed(f"ended with {self._process.wait()}: {tail}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerFailed(reply["error"])
        return reply

    def close(self) -> None:
        """Ends the process: at once, or by force after half a minute."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """What is fixed over a run.

    Attributes:
      folder: weights, arrays, logs.
      env_dir: of the peers' environments and of compiled programs.
    """

    sizes: Sizes
    device: str
    arrays: dict[str, Any]
    folder: Path
    env_dir: Path
    probe: Probe
    repeats: int
    tolerance: float
    retakes: int
    pairs: Path | None = None  # where they are written down

    @property
    def dtype(self) -> str:
        return "float32" if self.device == "cpu" else "bfloat16"

    @contextlib.contextmanager
    def worker(self, side: str, part: str) -> Iterator[Worker]:
        """A side's process, ready for a part and warm; `side` is "ours" or a peer."""
        file, python = "ours.py", Path(sys.executable)
        if side != "ours":
            peer = PEERS[side]
            place = (peer.environment, self.env_dir, self.device)
            file, python = peer.worker, environment_python(*place)
        setup = {
            "part": part,
            "folder": str(self.folder / "model"),
            "arrays": str(self.folder / "work.npz"),
            "device": self.device,
            "dtype": self.dtype,
            "microbatch": self.sizes.microbatch,
            "agents": self.sizes.agents,
            "eos": EOS,
            "pad": PAD,
        }
        log = self.folder / f"{part}-{side}.log"
        environment = self._environment(side == "ours")
        worker = Worker([python, WORKERS / file], environment, log, setup)
        try:
            yield worker
        finally:
            worker.close()

    def _environment(self, ours: bool) -> dict[str, str]:
        platform = {"cpu": "cpu", "gpu": "cuda"}[self.device]
        found = [str(ROOT)] if ours else []
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(found),
            "JAX_PLATFORMS": platform,
            "JAX_COMPILATION_CACHE_DIR": str(self.env_dir / "xla"),
            "HF_HUB_OFFLINE": "1",
            "XLA_FLAGS": "",
        }

    def timer(self, worker: Worker) -> Callable[[], Timing]:
        def take() -> Timing:
            before = self.probe()
            seconds, facts = worker.run()
            return Timing(seconds, facts, before, self.probe())

        return take

    def compare(self, part: str, peer: str, ours: Worker, first: Any) -> Any:
        """One comparison as JSON values.

        Args:
          part: of the work.
          peer: whom with.
          ours: our process.
          first: the facts of our first run, which is not timed.
        """
        of = self._measurement(part, peer)
        had: dict[int, list[Pair]] = {}
        if self.pairs is not None:
            had, full = read_pairs(self.pairs, of)
            self.probe.best = min(self.probe.best, full)
            print(f"  {part}: {len(had)} pairs with {peer} are there", flush=True)

        def tell(number: int, pair: Pair) -> None:
            self._tell(part, peer, pair)
            if self.pairs is not None:
                append_pair(self.pairs, of, number, pair, self.probe.best)

        with self.worker(peer, part) as theirs:
            _, other = theirs.run()
            apart = NORMS_APART * (1 if self.dtype == "float32" else 5)
            agents = self.sizes.agents
            check_same_work(part, self.arrays, agents, apart, first, other)
            pairs, again = take_pairs(
                *(self.timer(ours), self.timer(theirs)),
                *(self.repeats, self.tolerance, self.retakes),
                tell,
                had,
            )
        norms = [fact.get("grad_norm") for fact in (first, other)]
        found = summary(pairs, again, self.tolerance, self.probe.best)
        return found | {"peer_name": peer, "first_grad_norms": norms}

    def _measurement(self, part: str, peer: str) -> dict[str, Any]:
        """All that a pair depends on but for the machine."""
        from mappa_jax.versions import installed

        environment = PEERS[peer].environment
        return {
            "part": part,
            "peer": peer,
            "sizes": dataclasses.asdict(self.sizes),
            "device": self.device,
            "cores": len(os.sched_getaffinity(0)),
            "ours": installed(),
            "packages": [
                *ENVIRONMENTS[environment],
                *(ON_GPU[environment] if self.device == "gpu" else ()),
            ],
            "code": code_digest(),
        }

    def _tell(self, part: str, peer: str, pair: Pair) -> None:
        shares = [self.probe.best / side.burst for side in (pair.ours, pair.peer)]
        print(
            f"  {part}: ours {pair.ours.seconds:.2f} s at {shares[0]:.0%} of full "
            f"speed, {peer} {pair.peer.seconds:.2f} s at {shares[1]:.0%}"
            + (" (the speed moved)" if pair.spread > self.tolerance else ""),
            flush=True,
        )

    def measure(self, part: str, peers: dict[str, str]) -> dict[str, Any]:
        """A part of the work against peers, {key of the result: peer}; what fails is a
        result with "error"."""
        found: dict[str, Any] = {}
        with self.worker("ours", part) as ours:
            _, first = ours.run()
            for key, peer in peers.items():
                try:
                    found[key] = self.compare(part, peer, ours, first)
                except (WorkerFailed, OtherWork, subprocess.CalledProcessError) as e:
                    found[key] = {"error": str(e), "peer_name": peer}
                    print(f"  {part}: {peer} failed: {e}", flush=True)
        return found


def best_whole(found: dict[str, Any], peers: Sequence[str]) -> str:
    """Of `peers` the one whose sampling and update together were fastest; torch, if
    that is not known."""

    def seconds(name: str) -> float:
        keys = [f"{p}_vs_{w}" for p, w in zip(PARTS[:2], WHOLE[name], strict=True)]
        sides = [found.get(key, {}).get("peer") for key in keys]
        if None in sides:
            return float("inf")
        return sum(side["median_seconds"] for side in sides)

    known = [name for name in peers if seconds(name) < float("inf")]
    return min(known, key=seconds) if known else max(peers, key="torch".__eq__)


PARTS = ("sampling", "update", "iteration")


def report(found: dict[str, Any]) -> str:
    """The comparisons as a table."""
    lines = []
    for key, one in found.items():
        if "error" in one:
            last = one["error"].strip().splitlines()[-1]
            lines.append(f"{key:26} failed: {last}")
            continue
        shares = one["ours"]["share_of_full_speed"] + one["peer"]["share_of_full_speed"]
        target = f", target {TARGETS[key]:g}" if key in TARGETS else ""
        lines.append(
            f"{key:26} {one['ratio']:5.2f} "
            f"(ours {one['ours']['median_seconds']:.2f} s, "
            f"{one['peer_name']} {one['peer']['median_seconds']:.2f} s; "
            f"{min(shares):.0%} to {max(shares):.0%} of full speed, "
            f"{one['moved']} of {len(one['ratios'])} pairs unsteady{target})"
        )
    return "\n".join(lines)


def written(bench: Bench, found: dict[str, Any]) -> dict[str, Any]:
    """What --json gets: ratios by name, and below them everything measured."""
    ratios = {key: one.get("ratio") for key, one in found.items()}
    versions = sorted(p for name in ENVIRONMENTS.values() for p in name)
    about = {
        "sizes": dataclasses.asdict(bench.sizes),
        "device": bench.device,
        "dtype": bench.dtype,
        "cores": len(os.sched_getaffinity(0)),
        "remat": "ours: projections (products are kept); peers: whole layers",
        "packages": versions,
        "tolerance": bench.tolerance,
    }
    return ratios | {"about": about, "comparisons": found}


# -- the command --------------------------------------------------------------------

_JSON = flags.DEFINE_string("json", "", "Where to write the numbers, if anywhere.")
_PAIRS = flags.DEFINE_string("pairs", "", "Where pairs are kept from call to call.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Pairs of every comparison.")
_ONLY = flags.DEFINE_list("only", list(PARTS), "Which parts of the work.")
_AGAINST = flags.DEFINE_list("against", list(PEERS), "Which peers.")
_ENV_DIR = flags.DEFINE_string(
    "env_dir", "~/.cache/mappa_jax/peers", "The peers' environments."
)
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Where.")
_SMOKE = flags.DEFINE_boolean("smoke", False, f"Instead of the sizes: {SMOKE}.")
_MODEL = flags.DEFINE_enum(
    "model", "135m", ["tiny", "135m", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b"], "Shape."
)
_ROWS = flags.DEFINE_integer("rows", 16, "Prompts sampled from, per agent.")
_PROMPT = flags.DEFINE_integer("prompt", 512, "Tokens of a prompt.")
_NEW = flags.DEFINE_integer("new", 256, "The most new tokens of a row.")
_SEQUENCES = flags.DEFINE_integer("sequences", 64, "Of the update.")
_LONGEST = flags.DEFINE_integer("longest", 1024, "Tokens of the longest of them.")
_MICROBATCH = flags.DEFINE_integer("microbatch", 4, "Rows of a micro-batch.")
_AGENTS = flags.DEFINE_integer("agents", 3, "Of the iteration.")
_TOLERANCE = flags.DEFINE_float("tolerance", 0.15, "Of the speed within a pair.")
_RETAKES = flags.DEFINE_integer("retakes", 5, "Pairs taken again, per comparison.")
_PROBE = flags.DEFINE_float("probe_seconds", 0.5, "Of a probe of the speed.")


def sizes_asked() -> Sizes:
    if _SMOKE.value:
        return SMOKE
    return Sizes(
        model=_MODEL.value,
        rows=_ROWS.value,
        prompt=_PROMPT.value,
        new=_NEW.value,
        sequences=_SEQUENCES.value,
        longest=_LONGEST.value,
        microbatch=_MICROBATCH.value,
        agents=_AGENTS.value,
    )


def make_bench(folder: Path) -> Bench:
    import numpy as np

    sizes = sizes_asked()
    check_sizes(sizes)
    cfg = model_shape(sizes.model)
    write_weights(cfg, folder / "model")
    arrays = make_arrays(sizes, cfg.vocab_size)
    np.savez(folder / "work.npz", **arrays)
    env_dir = Path(_ENV_DIR.value).expanduser()
    env_dir.mkdir(parents=True, exist_ok=True)
    return Bench(
        sizes=sizes,
        device=_DEVICE.value,
        arrays=arrays,
        folder=folder,
        env_dir=env_dir,
        probe=Probe(_PROBE.value),
        repeats=_REPEATS.value,
        tolerance=_TOLERANCE.value,
        retakes=_RETAKES.value,
        pairs=Path(_PAIRS.value) if _PAIRS.value else None,
    )


def main(argv: list[str]) -> None:
    common.begin(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"  # of this process, which only writes weights
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = make_bench(Path(folder))
        for part in _ONLY.value:
            against = [n for n in _AGAINST.value if part in PEERS[n].does]
            peers = {f"{part}_vs_{name}": name for name in against}
            if part == "iteration":
                peers = {"iteration_vs_peer": best_whole(found, against)}
            if peers:
                found |= bench.measure(part, peers)
            if _JSON.value:
                Path(_JSON.value).parent.mkdir(parents=True, exist_ok=True)
                text = json.dumps(written(bench, found), indent=1)
                Path(_JSON.value).write_text(text + "\n")
    print(report(found))


if __name__ == "__main__":
    common.run_app(main)
