"""Compiles a lowered function for devices that need not be there."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from pathlib import Path

import jax

from mappa_jax.plan import hlo, memory

_SIZES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, eq=False)
class Built:
    """A compiled program, or what XLA left of one that does not fit.

    Attributes:
      module: its text, read.
      memory: what it needs.
      complete: whether it compiled; if not, `module` is from before the placement in
        on-chip memory and `memory` is what XLA says would be needed.
      seconds: of compilation.
    """

    module: hlo.Module
    memory: memory.Memory
    complete: bool
    seconds: float


def build(lowered: jax.stages.Lowered, *, tpu: bool) -> Built:
    """Compiles; on a TPU a program that does not fit is an answer, not an error.

    XLA:TPU refuses such a program after all its optimisations, and writes the program
    and its memory into the dump folder before it does.

    Raises:
      jax.errors.JaxRuntimeError: compilation failed for another reason.
    """
    start = time.perf_counter()
    if not tpu:
        return _built(lowered.compile(), start)
    with tempfile.TemporaryDirectory() as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": "True"}
        try:
            return _built(lowered.compile(compiler_options=dump), start)
        except jax.errors.JaxRuntimeError as e:
            left = sorted(Path(folder).glob("*.oom_intermediate_module.txt"))
            if "RESOURCE_EXHAUSTED" not in str(e) or not left:
                raise
            module = hlo.parse(left[-1].read_text())
            needed = _needed(Path(folder), str(e))
            return Built(
                module,
                memory.of_overflow(module, needed),
                complete=False,
                seconds=time.perf_counter() - start,
            )


def _built(compiled: jax.stages.Compiled, start: float) -> Built:
    seconds = time.perf_counter() - start
    module = hlo.parse(compiled.as_text())
    return Built(module, memory.of_compiled(module, compiled), True, seconds)


def _needed(folder: Path, message: str) -> float:
    """Bytes that a program needs, from its report or else from the error."""
    for report in folder.glob("*memory-usage-report.txt"):
        space, _, rest = report.read_text().partition("\n")
        total = re.match(r"Total bytes: (\d+)", rest)
        if total and "color=0" in space:
            return float(total[1])
    found = re.search(r"(?:temporaries \(|Used )([\d.]+)([KMGT]?)", message)
    if not found:
        raise hlo.HloError(f"the compiler does not say what is needed: {message[:300]}")
    return float(found[1]) * _SIZES[found[2]]
