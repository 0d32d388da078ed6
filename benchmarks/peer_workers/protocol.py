"""The workers' side of the driver's line protocol: JSON objects, one a line.

The first line is the set-up; each of the others names a part of the work, which is done
once and answered with its seconds and facts. Between lines a worker waits in `read`.
Only the standard library and NumPy: every environment has them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], dict[str, Any]]  # does the work; what was done, as facts


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """What every side has to do. All ids are above `eos` and `pad`.

    Attributes:
      folder: the weights, in the layout of Hugging Face.
      device: "cpu" or "gpu".
      dtype: "float32" or "bfloat16".
      microbatch: rows of a micro-batch in the update.
      agents: of a team, in the iteration.
      eos, pad: ids.
      prompts: [R, P] int32, to be sampled from.
      stops: [R] int32, each row's new tokens.
      tokens: [N, T] int32, sequences to be trained on, right-padded with `pad`.
      starts: [N] int32, where a sequence's completion starts.
      lengths: [N] int32, where it ends.
      scores: [N] float32, from 0 to 10; as many as N and R want.
      advantages: [N] float32, the scores less their mean.
    """

    folder: Path
    device: str
    dtype: str
    microbatch: int
    agents: int
    eos: int
    pad: int
    prompts: np.ndarray
    stops: np.ndarray
    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray
    advantages: np.ndarray

    @property
    def learning_rate(self) -> float:
        return 1e-6

    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(prompt, completion) of every sequence."""
        ends = zip(self.tokens, self.starts, self.lengths, strict=True)
        return [(row[:start], row[start:end]) for row, start, end in ends]


def read_work(setup: dict[str, Any]) -> Work:
    """The driver's set-up line, its arrays read from the file that it names."""
    fields = {f.name for f in dataclasses.fields(Work)}
    plain = {k: v for k, v in setup.items() if k in fields}
    with np.load(setup["arrays"]) as arrays:
        return Work(**plain | {"folder": Path(setup["folder"])} | dict(arrays))


def padded(
    pairs: list[tuple[np.ndarray, np.ndarray]], pad: int, widths: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts padded on the left, completions on the right, to `widths`."""
    prompts = np.full((len(pairs), widths[0]), pad, np.int32)
    completions = np.full((len(pairs), widths[1]), pad, np.int32)
    for i, (prompt, completion) in enumerate(pairs):
        prompts[i, widths[0] - len(prompt) :] = prompt
        completions[i, : len(completion)] = completion
    return prompts, completions


def agents_in_turn(
    work: Work, one: Callable[[], tuple[list[int], dict[str, Any]]]
) -> dict[str, Any]:
    """The facts of an iteration from what does one agent's part of it, which gives the
    lengths of its rows and the facts of its update."""
    found = [one() for _ in range(work.agents)]
    return {
        "lengths": [lengths for lengths, _ in found],
        "tokens": sum(facts["tokens"] for _, facts in found),
        "grad_norm": found[-1][1]["grad_norm"],
    }


def serve(prepare: Callable[[Work, str], Run]) -> None:
    """Answers the driver until its end of the pipe is closed.

    Args:
      prepare: from the work and the name of a part ("sampling", "update",
        "iteration") to what does it; is called once, when the set-up names the part.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not for the driver
    run: Run | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if run is None:
                run = prepare(read_work(request), request["part"])
                reply: dict[str, Any] = {"ready": True}
            else:
                start = time.perf_counter()
                facts = run()
                seconds = facts.pop("seconds", None) or time.perf_counter() - start
                reply = {"seconds": seconds, "facts": facts}
        except Exception:
            reply = {"error": traceback.format_exc()}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()
