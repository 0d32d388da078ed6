"""What a person sees while a run goes on."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mappa_jax.commands.tables import show

if TYPE_CHECKING:
    from mappa_jax.judges import Meter
    from mappa_jax.sampling.engine import Load

SAMPLING = ("rollout", "evaluate")  # phases that the sampler works for
EVERY = 30.0  # seconds between two plain lines of a phase


class _Column(ProgressColumn):
    """A text that is made anew twice a second."""

    max_refresh = 0.5

    def __init__(self, text: Callable[[Task], str]):
        super().__init__()
        self._text = text

    def render(self, task: Task) -> Text:
        return Text(self._text(task))


def judge_text(meter: Meter | None) -> str:
    """The judge's calls under way and what it has cost so far."""
    if meter is None or not (meter.calls or meter.in_flight):
        return ""
    said = f"judge: {meter.in_flight} in flight, {meter.calls} calls"
    said += f", ${meter.usd:.3f}" if meter.usd else ""
    if meter.down_since is not None:
        seconds = time.monotonic() - meter.down_since
        said += f"; DOWN for {seconds:.0f} s, waiting"
    return said


def load_text(load: Load, agents: Sequence[str], rate: float) -> str:
    """Each agent's requests, waiting + being sampled, and the pace of all."""
    queues = [
        f"{name} {waiting}+{sampling}"
        for name, waiting, sampling in zip(
            agents, load.waiting, load.sampling, strict=False
        )
        if waiting or sampling
    ]
    pace = [f"{rate:.0f} tokens/s"] if rate > 0 else []
    return "  ".join(queues + pace)


def duration(seconds: float) -> str:
    """3725 -> "1 h 02 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02} min" if hours else f"{minutes} min"


class _Pace:
    """Tokens per second between two looks, of a count that only grows."""

    def __init__(self):
        self._last, self._rate = (time.monotonic(), 0), 0.0

    def __call__(self, tokens: int) -> float:
        now = time.monotonic()
        since, before = now - self._last[0], self._last[1]
        if since >= 1.0:
            self._last, self._rate = (now, tokens), (tokens - before) / since
        return self._rate


class ConsoleProgress:
    """A bar per phase and a line per iteration (`train.Progress`).

    Args:
      steps: iterations of the run.
      agents: their names, in the team's order.
      quiet: of several hosts, those that only take part.
      plain: no bars but a line now and then, for logs; also where the output is no
        terminal.
    """

    def __init__(
        self,
        steps: int,
        agents: Sequence[str] = (),
        quiet: bool = False,
        plain: bool = False,
    ):
        self._steps, self._agents = steps, agents
        self.console = Console(quiet=quiet)
        self._plain = plain or not self.console.is_terminal
        self._meter: Callable[[], Meter] | None = None
        self._load: Callable[[], Load] | None = None
        self._pace = _Pace()
        self._seconds: list[float] = []  # of the iterations so far
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            _Column(lambda task: self._left()),
            _Column(self._sampler_text),
            _Column(lambda task: self._judge_text()),
            console=self.console,
            transient=True,
            disable=self._plain,
        )
        self._bars: dict[str, TaskID] = {}
        self._said = self._began = time.monotonic()
        self._step = 0  # the last iteration that has ended
        self._over = threading.Event()
        self._teller = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> ConsoleProgress:
        self._bar.start()
        if self._plain:
            self._teller.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()
        self._over.set()
        if self._plain:
            self._teller.join()

    def _tell(self) -> None:
        """Plain lines, when nothing has been said for long."""
        while not self._over.wait(self._said + EVERY - time.monotonic()):
            if time.monotonic() - self._said >= EVERY:
                self._said = time.monotonic()
                for task in self._bar.tasks:
                    self.note(self._line(task))

    def _left(self) -> str:
        """How long the run will go on, by the median of its iterations."""
        if not self._seconds:
            return ""
        whole = (self._steps - self._step) * statistics.median(self._seconds)
        left = whole - (time.monotonic() - self._began)
        return f"{duration(left)} to go" if left > 0 else ""

    def start(self, step: int, phase: str, total: int) -> Callable[[], None]:
        under_way = [task.id for task in self._bar.tasks if not task.finished]
        for other, bar in [*self._bars.items()]:
            if other != "rollout" or other == phase or bar not in under_way:
                self._bar.remove_task(self._bars.pop(other))
        label = f"iteration {step}/{self._steps} {phase}"
        bar = self._bars[phase] = self._bar.add_task(label, total=total, phase=phase)
        return lambda: self._bar.advance(bar)

    def _line(self, task: Task) -> str:
        """A phase as one plain line."""
        parts = (self._sampler_text(task), self._judge_text(), self._left())
        more = "; ".join([f"{task.elapsed:.0f} s", *filter(None, parts)])
        return f"{task.description}: {task.completed:.0f} of {task.total:.0f}; {more}"

    def _judge_text(self) -> str:
        return judge_text(self._meter() if self._meter else None)

    def _sampler_text(self, task: Task) -> str:
        if self._load is None or not task.fields["phase"].startswith(SAMPLING):
            return ""
        load = self._load()
        return load_text(load, self._agents, self._pace(load.tokens))

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=self._plain)

    def watch(self, meter: Callable[[], Meter], load: Callable[[], Load]) -> None:
        self._meter, self._load = meter, load

    def finish(self, step: int, metrics: dict[str, Any]) -> None:
        scores = "  ".join(
            f"{name} {show('{:.2f}', row['score'])}"
            for name, row in metrics["agents"].items()
        )
        total = metrics["seconds"]["iteration"]
        self._said = self._began = time.monotonic()
        self._step = step
        self._seconds.append(total)
        left = self._left()
        eta = f"; {left}" if left else ""
        self.console.print(
            f"iteration {step}/{self._steps}: mean score {scores}  "
            f"success {show('{:.2f}', metrics['team']['success'])}  "
            f"({total:.0f} s{eta})",
            soft_wrap=self._plain,
        )
        for source, row in metrics.get("eval", {}).items():
            self.console.print(
                f"  held-out {source}: avg {row['avg']:.3f} "
                f"[{row['avg_low']:.3f}, {row['avg_high']:.3f}]"
            )
