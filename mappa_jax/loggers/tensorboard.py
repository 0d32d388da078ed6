"""TensorBoard files in WORKDIR/tensorboard, written by tensorboardX."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mappa_jax.loggers.base import Shown

SCORE_BINS = np.linspace(0, 10, 21)
LENGTH_BINS = 30


class TensorBoard:
    """Scalars, histograms of scores and lengths, an action of each agent, hparams.

    Args:
      workdir: of the run.
      settings: its config, by flat key.
      resume_step: what an earlier run has written from this step on is hidden.
    """

    def __init__(self, workdir: Path, settings: Mapping[str, Any], resume_step: int):
        (workdir / "tensorboard").mkdir(exist_ok=True)
        # Not a SummaryWriter: its thread dies of a full disk, and the next call hangs.
        self._events = EventsWriter(
            str(workdir / "tensorboard" / "events"),
            # Files are named by the second; a quick restart must not write over one.
            filename_suffix=f".{resume_step:06d}",
        )
        self._put(resume_step, session_log=SessionLog(status=SessionLog.START))
        for part in summary.hparams(dict(settings), {"team/success": 0.0}):
            self._put(resume_step, summary=part)
        self._events.flush()

    def write(self, step: int, numbers: Mapping[str, float], shown: Shown) -> None:
        """Raises OSError if the disk is full."""
        for name, value in numbers.items():
            self._put(step, summary=summary.scalar(name, value))
        self._histograms(step, "scores", shown.scores, SCORE_BINS)
        self._histograms(step, "lengths", shown.tokens, LENGTH_BINS)
        for agent, text in shown.texts.items():
            self._put(step, summary=summary.text(f"actions/{agent}", text))
        self._events.flush()

    def _histograms(
        self, step: int, name: str, values: Mapping[str, Sequence[float]], bins: Any
    ) -> None:
        for agent, row in values.items():
            if row:
                found = summary.histogram(f"{name}/{agent}", np.asarray(row), bins)
                self._put(step, summary=found)

    def _put(self, step: int, **what: Any) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **what))

    def close(self) -> None:
        self._events.close()
