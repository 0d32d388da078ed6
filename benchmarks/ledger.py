"""Where an iteration's time goes, and how far each phase is from this machine's limits.

python benchmarks/ledger.py --config=configs/tiny.py
python benchmarks/ledger.py --config=configs/quickstart.py --out=docs/performance

In one process: what the machine can do (a matrix product in the compute dtype; a copy,
bytes read plus written), the run's programs compiled without and with JAX's persistent
cache, some iterations of training with every span recorded, and then the programs
alone, at the sizes of the config and on the last iteration's batch. Only useful work
counts: tokens that are not padding, keys that a token may see, cache entries of rows
that live. Recomputation and padding therefore lower a share, and padding is named
beside it.

Writes OUT/ledger.json, .md and .png; prints the table.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mappa_jax.commands import common

common.prepare_environment()

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.")
_CACHE = flags.DEFINE_string("cache_dir", common.CACHE, "Weights and data.")
_ITERATIONS = flags.DEFINE_integer(
    "iterations", 4, "Of training, at least 3; the first and the last do not count."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Calls of every program; medians.")
_OUT = flags.DEFINE_string("out", "", "The folder of the results; none: print only.")
flags.mark_flags_as_required(["config"])

COMPILED = "/jax/core/compile/backend_compile_duration"
PHASES = {  # of an iteration, in the order of the bar; seconds that exclude each other
    "prefill": "device",
    "decode": "device",
    "sandbox exposed": "host",
    "rollout, host": "host",
    "judge exposed": "host",
    "pack": "host",
    "credit": "device",
    "update": "device",
    "write and save": "host",
    "other": "host",
}


# -- what useful work is ------------------------------------------------------------


def token_flops(cfg: Any) -> float:
    """Of a token's way through all layers, but for attention's scores: 2 a weight."""
    return 2.0 * (cfg.n_params - _tables(cfg))


def _tables(cfg: Any) -> int:
    return (1 if cfg.tie_embeddings else 2) * cfg.vocab_size * cfg.d_model


def seen_flops(cfg: Any) -> float:
    """Of a query and a key that it sees, in all layers: 4 a head dimension."""
    return 4.0 * cfg.n_layers * cfg.n_heads * cfg.head_dim


def head_flops(cfg: Any) -> float:
    """Of a token's logits."""
    return 2.0 * cfg.vocab_size * cfg.d_model


def seen_by_rows(ends: Any) -> int:
    """Pairs of a query and a key that it sees: a key is seen from its place to its end
    (sliding windows aside)."""
    import numpy as np

    ends = np.asarray(ends)
    return int(np.maximum(ends - np.arange(ends.shape[-1]), 0).sum())


# -- measuring ------------------------------------------------------------------


def seconds_of(call: Callable[[], Any], repeats: int) -> float:
    """The median, after one call that is not counted."""
    import jax

    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def compile_seconds(run: Any, state: Any, cache: Path) -> dict[str, float]:
    """Of all programs: without a cache, into an empty one, and out of it."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    def compile_all() -> float:
        jax.clear_caches()
        start = time.perf_counter()
        run.stage.engine.warm_up(state.trainable, run.frozen)
        run.learner.warm_up(state, run.frozen)
        return time.perf_counter() - start

    jax.config.update("jax_enable_compilation_cache", False)
    cold = compile_all()
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    compile_all()
    return {"cold": cold, "from cache": compile_all()}


class Watched:
    """A learner that keeps the batch it was last given."""

    def __init__(self, learner: Any):
        self._learner = learner
        self.packed: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    def assign_credit(self, state: Any, frozen: Any, packed: Any) -> Any:
        self.packed = self._learner.assign_credit(state, frozen, packed)
        return self.packed


@dataclasses.dataclass(frozen=True)
class Measured:
    """A program alone: seconds of a call, and its useful tokens, operations, bytes read
    and written; the share of its places that are padding."""

    name: str
    seconds: float
    tokens: int
    flops: float | None = None
    bytes: float | None = None
    padding: float | None = None

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def prefills(run: Any, weights: Any, repeats: int) -> Iterator[Measured]:
    """Every bucket of every group, all rows full; what goes on from a cache stands at
    its end."""
    import numpy as np

    config = run.config.sampler
    cases = [("prefill", b, 0) for b in config.prompt_buckets]
    cases += [("extend", b, config.context - b) for b in config.extend_buckets]
    for g, program in enumerate(run.stage.engine._programs):
        cfg = program.policy.cfg
        for kind, bucket, start in cases:
            prompts = program.blank_prompts(bucket)
            prompts.slot[...] = np.arange(program.prefill_rows) % program.rows
            prompts.start[...], prompts.length[...] = start, bucket
            prompts.tokens[...] = np.arange(bucket) % 97
            prompts.request.max_new[...] = 1
            fill = functools.partial(getattr(program, kind), weights[g], 0)
            state = {"slots": program.empty()}

            def call(fill=fill, prompts=prompts, state=state):
                state["slots"] = fill(state["slots"], prompts)
                return state["slots"].token

            rows = prompts.slot.size
            took = seconds_of(call, repeats)
            seen = rows * bucket * (start + (bucket + 1) / 2)
            work = rows * bucket * token_flops(cfg) + seen * seen_flops(cfg)
            name = f"{kind} {rows} x {bucket}" + (f" at {start}" if start else "")
            yield Measured(name, took, rows * bucket, flops=work)


def decodes(run: Any, weights: Any, repeats: int) -> Iterator[Measured]:
    """A chunk of decoding, by how many rows live and what stands in their cache."""
    import jax

    config = run.config.sampler
    for g, program in enumerate(run.stage.engine._programs):
        policy, cache = program.policy, jax.tree.leaves(program.slot_shapes().cache)
        trainable, frozen = weights[g]
        whole, sets = (
            (frozen, 1) if policy.mode == "lora" else (trainable or frozen, policy.sets)
        )
        # Each slice reads one agent's weights; so does each part of it along "data".
        copies = program.grid[0] * program._mesh.mesh.shape["data"]
        held = sum(x.nbytes for x in jax.tree.leaves(whole)) / sets * copies
        total = program.grid[0] * program.grid[1] * program.rows
        size = sum(x.size * x.dtype.itemsize for x in cache)
        entry = size / (total * config.context)  # bytes of a token
        room = config.context - config.chunk * (repeats + 1)
        contexts = sorted({room // 4, room // 2, room})
        for live in sorted({1, total // 2, total}):
            for context in contexts:
                call, emitted = _decoding(program, weights[g], live, context)
                took = seconds_of(call, repeats)
                steps = statistics.median(emitted[1:])
                entries = live * (context + (repeats + 2) * config.chunk / 2)
                moved = steps * (held + entries * entry)
                yield Measured(
                    f"decode {live} rows at {context}",
                    took,
                    int(steps * live),
                    bytes=moved,
                )


def _decoding(
    program: Any, weights: Any, live: int, context: int
) -> tuple[Callable, list[int]]:
    """A call that decodes a chunk of so many rows, and the steps of each call."""
    import jax.numpy as jnp
    import numpy as np

    slots = program.empty()
    shape = slots.token.shape
    lives = (np.arange(np.prod(shape)) < live).reshape(shape)

    def like(x: Any, value: Any) -> Any:
        return program._placed(np.full(shape, 0, x.dtype) + np.asarray(value, x.dtype))

    request = slots.request._replace(
        max_new=like(slots.request.max_new, 1 << 30),
        temperature=like(slots.request.temperature, 1.0),
    )
    state = {
        "slots": slots._replace(
            position=like(slots.position, context * lives),
            done=like(slots.done, ~lives),
            request=request,
        )
    }
    emitted: list[int] = []
    none = np.zeros((np.prod(shape),), bool)

    def call() -> Any:
        state["slots"], chunk = program.decode(weights, 0, state["slots"], none, 0)
        emitted.append(int(np.max(chunk.emitted)))
        return jnp.zeros(())

    return call, emitted


def learning(
    run: Any, state: Any, packed: Any, repeats: int
) -> tuple[list[Measured], Any]:
    """Log-probabilities and update on a real batch; and the state after it."""
    import numpy as np

    learner, team = run.learner, run.stage.engine._programs
    forward = whole = real = room = 0.0
    for step in packed.minibatches:
        for g, part in enumerate(step):
            if part is None:
                continue
            cfg, batch = team[g].policy.cfg, part.batch
            lanes = zip(np.asarray(batch.ends), part.counts, strict=True)
            ends = np.concatenate([lane[:count] for lane, count in lanes])
            used = int((ends > 0).sum())
            actions = sum(len(s.action.token_ids) for s in part.slots)
            real, room = real + used, room + ends.size
            products = used * token_flops(cfg) + actions * head_flops(cfg)
            scores = seen_by_rows(ends) * seen_flops(cfg)
            forward += products + scores
            # Backward is twice the work, but once where the weights are frozen
            # (adapters aside).
            frozen = team[g].policy.mode == "lora"
            whole += products * (2 if frozen else 3) + scores * 3
    padding = 1 - real / room
    name = f"{int(real)} tokens"
    took = seconds_of(
        lambda: learner.assign_credit(state, run.frozen, packed).actions.mask, repeats
    )
    out = []
    recomputes = run.config.objective.old_logprobs == "recompute"
    if passes := bool(learner._refers) + recomputes:
        work = passes * forward
        title = f"log-probabilities, {passes} x {name}"
        out.append(Measured(title, took, int(real), work, padding=padding))
    holder = {"state": state}

    def call() -> Any:
        holder["state"], _ = learner.update(holder["state"], run.frozen, packed)
        return holder["state"]

    took = seconds_of(call, repeats)
    out.append(Measured(f"update, {name}", took, int(real), whole, padding=padding))
    return out, holder["state"]


def iterations(spans: Any) -> list[dict[str, float]]:
    """Seconds by phase of every iteration but the first and the last, which nothing
    follows."""
    from mappa_jax.timeline import covered, exposed

    starts = [s.start for s in spans.of("train", "rollout")]
    device, programs = spans.of("engine"), spans.of("sandbox")
    out = []
    for start, end in zip(starts[1:-1], starts[2:], strict=True):

        def took(name: str, start=start, end=end) -> float:
            return covered(spans.of("train", name), start, end)

        found = {
            "prefill": covered(spans.of("engine", "prefill"), start, end),
            "decode": covered(spans.of("engine", "decode"), start, end),
            "sandbox exposed": exposed(programs, device, start, end),
            "judge exposed": took("verdicts"),
            "pack": took("pack"),
            "credit": took("credit") - took("pack"),
            "update": took("update"),
            "write and save": took("write") + took("save"),
        }
        sampling = ("prefill", "decode", "sandbox exposed")
        busy = sum(found[name] for name in sampling)
        found["rollout, host"] = max(took("rollout") - busy, 0.0)
        found["other"] = max(end - start - sum(found.values()), 0.0)
        out.append({name: found[name] for name in PHASES})
    return out


def peak_memory(run: Any) -> dict[str, float]:
    """GiB on each device while a program runs, by program: arguments, results and
    scratch space; and the process's own peak."""
    programs = {
        f"{name}/{g}": compiled
        for g, one in enumerate(run.stage.engine._programs)
        for name, compiled in one._run.items()
    } | run.learner._run
    out = {}
    for name, compiled in programs.items():
        sizes = compiled.memory_analysis()
        own = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        whole = sizes.argument_size_in_bytes + own + sizes.temp_size_in_bytes
        out[name] = whole / 2**30
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return out | {"process": usage / 2**20}


def shared_buffers(run: Any, state: Any) -> bool:
    """Whether the sampler's programs take the weights as the update leaves them."""
    import jax

    if run.config.sampler.weights != "compute":
        return False
    update = run.learner._run["update"].output_shardings[0]
    written = jax.tree.leaves([group.trainable for group in update.groups])
    read = [
        where
        for one in run.stage.engine._programs
        for where in jax.tree.leaves(one._run["decode"].input_shardings[0][0])
    ]
    arrays = jax.tree.leaves(state.trainable)
    return all(
        a.is_equivalent_to(b, x.ndim)
        for a, b, x in zip(written, read, arrays, strict=True)
    )


async def measure(config: Any, cache: Path, repeats: int) -> dict[str, Any]:
    """Everything, as it is written to ledger.json."""
    import jax

    from mappa_jax import timeline
    from mappa_jax.commands.assembly import assemble
    from mappa_jax.plan.local import measured
    from mappa_jax.testing import Silent
    from mappa_jax.train import train

    # Several times: a machine that is shared is not always as fast.
    chips = [measured(jax.devices())]
    kind = "f32" if config.dtype == "float32" else "bf16"
    devices = jax.device_count()
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if event == COMPILED else None
    )
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        async with assemble(config, workdir, cache, Silent()) as (run, state, _):
            took = compile_seconds(run, state, Path(folder) / "xla")
            watched = Watched(run.learner)
            run = dataclasses.replace(run, learner=watched)
            first_compiled = len(compiled)
            with timeline.record() as spans:
                state = await train(run, state, 0)
            later = len(compiled) - first_compiled
            rounds = iterations(spans)
            programs = len(run.learner._run) + sum(
                len(one._run) for one in run.stage.engine._programs
            )
            chips.append(measured(jax.devices()))
            found, state = learning(run, state, watched.packed, repeats)
            engine = run.stage.engine
            groups = zip(engine._programs, state.trainable, run.frozen, strict=True)
            weights = tuple(p.hand_over(own, base) for p, own, base in groups)
            found = [
                *prefills(run, weights, repeats),
                *decodes(run, weights, repeats),
                *found,
            ]
            chips.append(measured(jax.devices()))
            memory, same = peak_memory(run), shared_buffers(run, state)
    phases = {name: statistics.median(one[name] for one in rounds) for name in PHASES}
    flops = max(chip.flops[kind] for chip in chips) * devices
    copied = max(chip.bandwidth for chip in chips) * devices
    return {
        "device": f"{devices} x {chips[0].name}",
        "jax": jax.__version__,
        "dtype": config.dtype,
        "ceilings": {
            "flops": flops,
            "copy_bytes_per_second": copied,
        },
        "compile_seconds": took,
        "executables": programs,
        "compilations_after_warm_up": later,
        "weights_copied_from_update_to_sampler": 0 if same else 1,
        "iteration_seconds": phases,
        "iterations": len(rounds),
        "programs": [
            dataclasses.asdict(one)
            | {
                "tokens_per_second": one.rate,
                "mfu": one.flops / one.seconds / flops if one.flops else None,
                "copy_share": one.bytes / one.seconds / copied if one.bytes else None,
            }
            for one in found
        ],
        "peak_memory_gib": memory,
    }


# -- showing --------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """The ledger as Markdown."""
    flops = found["ceilings"]["flops"] / 1e9
    copied = found["ceilings"]["copy_bytes_per_second"] / 1e9
    phases = found["iteration_seconds"]
    whole = sum(phases.values())
    lines = [
        f"{found['device']}, {found['dtype']}, jax {found['jax']}: {flops:,.0f} "
        f"Gflop/s in a matrix product, {copied:,.1f} GB/s in a copy.",
        "",
        "| an iteration | on the | seconds | share |",
        "|---|---|---|---|",
        *(
            f"| {name} | {PHASES[name]} | {seconds:.3f} | {seconds / whole:.1%} |"
            for name, seconds in phases.items()
        ),
        f"| all | | {whole:.3f} | |",
        "",
        "| a program alone | ms | tokens/s | MFU | of the copy | padding |",
        "|---|---|---|---|---|---|",
    ]

    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    for one in found["programs"]:
        cells = (percent(one[key]) for key in ("mfu", "copy_share", "padding"))
        lines.append(
            f"| {one['name']} | {1e3 * one['seconds']:,.1f} | "
            f"{one['tokens_per_second']:,.0f} | " + " | ".join(cells) + " |"
        )
    took = found["compile_seconds"]
    memory = found["peak_memory_gib"]
    most = max((n for n in memory if n != "process"), key=memory.get)
    lines += [
        "",
        f"{found['executables']} executables, compiled in {took['cold']:.1f} s, in "
        f"{took['from cache']:.1f} s out of JAX's cache; "
        f"{found['compilations_after_warm_up']} compilations after that. "
        f"{found['weights_copied_from_update_to_sampler']} copies of the weights "
        "between update and sampler. "
        f"Most memory: {memory[most]:.2f} GiB a device in {most}; the process "
        f"{memory['process']:.2f} GiB.",
    ]
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any], path: Path) -> None:
    """The iteration as one stacked bar."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    phases = found["iteration_seconds"]
    figure, axis = plt.subplots(figsize=(9, 2.4))
    colors = plt.get_cmap("tab10").colors
    left = 0.0
    for color, (name, seconds) in zip(colors, phases.items(), strict=True):
        hatch = "" if PHASES[name] == "device" else "///"
        label = f"{name} {seconds:.2f} s"
        axis.barh(0, seconds, left=left, color=color, hatch=hatch, label=label)
        left += seconds
    axis.set_yticks([])
    axis.set_xlabel("seconds of an iteration (hatched: the host)")
    axis.set_xlim(0, left)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=4, fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def main(argv: list[str]) -> None:
    common.begin(argv)
    from mappa_jax.assemble import seat_agents
    from mappa_jax.config import changed

    # One after the other, so that every second belongs to one phase.
    config = dataclasses.replace(common.resolve_flag(_CONFIG.value), staleness=0)
    config = seat_agents(config)
    config = changed(
        config,
        {
            "steps": max(_ITERATIONS.value, 3),
            "eval.every": 0,
            "eval.at_start": False,
            "eval.at_end": False,
        },
    )
    found = asyncio.run(
        measure(config, Path(_CACHE.value).expanduser(), _REPEATS.value)
    )
    print(table(found))
    if _OUT.value:
        folder = Path(_OUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ledger.json").write_text(json.dumps(found, indent=1) + "\n")
        (folder / "ledger.md").write_text(table(found))
        draw(found, folder / "ledger.png")


if __name__ == "__main__":
    common.run_app(main)
