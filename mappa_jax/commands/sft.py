"""Fine-tunes a team on traces: a warm start for launch/train.py.

  python launch/sft.py --config=configs/quickstart.py --traces=traces.jsonl \\
    --workdir=runs/warm --epochs=2 --learning_rate=1e-4

A trace is a line of JSON (mappa_jax/traces.py), what an agent was shown and what it is
to say:
  {"agent": "solver", "messages": [{"role": "user", "content": "..."}], "answer": "..."}

It leaves each agent in WORKDIR/agents/NAME, a Hugging Face folder that the team can
start from: --config.agents.solver.model=runs/warm/agents/solver. (mode="shared" leaves
one, WORKDIR/agents/team.) The same command goes on where it stopped; on one host.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.progress import Progress

from mappa_jax.commands import common

_CONFIG = config_flags.DEFINE_config_file("config", None, "The team's config file.")
_TRACES = flags.DEFINE_string("traces", None, "JSON lines of actions to imitate.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the fine-tuning.")
_EPOCHS = flags.DEFINE_integer("epochs", 1, "Passes over the traces.", lower_bound=1)
_RATE = flags.DEFINE_float(
    "learning_rate", 0.0, "Peak, of every agent; 0: the config's.", lower_bound=0.0
)
_HELD_OUT = flags.DEFINE_float(
    *("held_out", 0.05, "Share of each agent's traces that it is only tried on."),
    lower_bound=0.0,
    upper_bound=0.9,
)
_CACHE = flags.DEFINE_string("cache_dir", common.CACHE, "Weights and programs.")
flags.mark_flags_as_required(["config", "traces", "workdir"])


class Shown:
    """A bar for each phase and a line for each epoch."""

    def __init__(self, epochs: int):
        self._epochs = epochs
        self.console = Console()
        self._bar = Progress(console=self.console, transient=True)

    def __enter__(self) -> Shown:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, step: int, phase: str, total: int) -> Callable[[], None]:
        for old in self._bar.task_ids:
            self._bar.remove_task(old)
        bar = self._bar.add_task(f"epoch {step}/{self._epochs} {phase}", total=total)
        return lambda: self._bar.advance(bar)

    def finish(self, step: int, metrics: dict[str, Any]) -> None:
        said = []
        for name, row in metrics["agents"].items():
            held = row.get("nll_held_out")
            said.append(f"{name} {row['nll']:.3f}" + (f" ({held:.3f})" if held else ""))
        self.console.print(
            f"epoch {step}/{self._epochs}: nats per token (held out) "
            + "  ".join(said),
            highlight=False,
        )


def main(argv: list[str]) -> None:
    common.begin(argv)
    from mappa_jax.assemble import seat_agents

    config = seat_agents(common.resolve_flag(_CONFIG.value))
    with Shown(_EPOCHS.value) as shown:
        written = common.run_until_interrupted(
            _run(config, shown), "the epochs before are saved; the same command goes on"
        )
    for name, folder in written.items():
        shown.console.print(f"--config.agents.{name}.model={folder}", soft_wrap=True)


async def _run(config: Any, shown: Shown) -> dict[str, Path]:
    from mappa_jax import assemble, imitation
    from mappa_jax.checkpoints import Checkpoints
    from mappa_jax.commands.assembly import open_writer
    from mappa_jax.learning.update import Learner, init_state

    cache, workdir = Path(_CACHE.value).expanduser(), Path(_WORKDIR.value)
    assemble.enable_compilation_cache(cache / "xla")
    shown.start(0, "weights", 1)
    names = list(config.agents)
    models = assemble.load_models(config, cache)
    actions = _actions(config, models)
    train, held_out = imitation.split(actions, names, _HELD_OUT.value, config.seed)
    config = imitation.imitating(
        config, train, epochs=_EPOCHS.value, learning_rate=_RATE.value
    )
    models = assemble.load_models(config, cache)  # without a reference policy
    _claim_traces(workdir)
    common.claim_workdir(workdir, config)
    learner = Learner(models.team, config, models.mesh)
    trainable, frozen = models.init_weights(config)
    state = init_state(trainable, models.team, config, models.mesh)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
        stack.callback(checkpoints.close)
        start = checkpoints.latest() or 0
        if start:
            state, _ = checkpoints.restore(start, state)
        if start < config.steps:
            shown.start(start, "compile", 1)
            learner.warm_up(state, frozen)
        writer = open_writer(config, workdir, start + 1 if start else 0)
        stack.callback(writer.close)
        parts = imitation.Imitation(
            config, train, held_out, learner, frozen, checkpoints, writer, shown
        )
        state = await imitation.imitate(parts, state, start)
    weights = (state.trainable, frozen)
    return assemble.write_agents(config, models, weights, workdir / "agents")


def _actions(config: Any, models: Any) -> list[Any]:
    """The traces as actions, each by its own agent's tokenizer."""
    from mappa_jax import traces

    tokenizers = dict(zip(config.agents, models.tokenizers, strict=True))

    def one(trace: traces.Trace) -> Any:
        agent = config.agents[trace.agent]
        return traces.to_action(
            trace,
            tokenizers[trace.agent],
            thinking=agent.thinking,
            new_tokens=agent.max_new_tokens,
            context=config.sampler.context,
        )

    return [one(t) for t in traces.read_traces(_TRACES.value, list(config.agents))]


def _claim_traces(workdir: Path) -> None:
    """Raises ConfigError if the workdir was begun with other traces."""
    from mappa_jax.config import ConfigError

    digest = hashlib.sha256(Path(_TRACES.value).read_bytes()).hexdigest()
    mine = {"sha256": digest, "held_out": _HELD_OUT.value}
    path = workdir / "traces.json"
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(mine) + "\n")
    elif json.loads(path.read_text()) != mine:
        raise ConfigError(
            f"--workdir={workdir}: it was begun with other traces, or another "
            "--held_out; bring those back, or use another --workdir"
        )


def run() -> None:
    common.run_app(main)


if __name__ == "__main__":
    run()
