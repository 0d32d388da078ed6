"""Many runs of one question: conditions times seeds, and what came of them.

A sweep file has `get_sweep()`, which returns

  {"config": "configs/bytes.py",   as --config takes it
   "conditions": {"process": {}, "outcome": {"reward.outcome_only": True}},
   "seeds": (0, 1, 2)}

A condition is a list of overrides of the config, by key. All conditions have the same
seeds, so the same problems and the same random numbers: differences are paired. The
first condition is what the others are compared with.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mappa_jax.config import ConfigError
from mappa_jax.plugins import run_file
from mappa_jax.records import read_evaluations, read_rows

KEYS = {"config", "conditions", "seeds"}


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
      condition, seed: which.
      config: the config file, as --config takes it.
      overrides: by key; the seed's is among them.
    """

    condition: str
    seed: int
    config: str
    overrides: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its folder within the sweep's."""
        return f"{self.condition}/seed_{self.seed}"

    def flags(self) -> list[str]:
        """Those of launch/train.py but for the workdir."""
        changes = [f"--config.{k}={v}" for k, v in self.overrides.items()]
        return [f"--config={self.config}", *changes]


def load_sweep(path: str | Path) -> list[Member]:
    """The runs of a sweep file: the first seed of every condition, then the next.

    So a sweep that is stopped early has told something about all conditions.

    Raises:
      ConfigError: the file is none, naming what is wrong.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"--sweep={path}: no such file")
    module = run_file(path)
    if not hasattr(module, "get_sweep"):
        raise ConfigError(f"{path}: has no get_sweep()")
    found = module.get_sweep()
    if not isinstance(found, Mapping) or set(found) != KEYS:
        raise ConfigError(f"{path}: get_sweep() must return the keys {sorted(KEYS)}")
    conditions, seeds = found["conditions"], list(found["seeds"])
    if not conditions or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: needs conditions, and seeds that differ")
    for name, overrides in conditions.items():
        if not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(f"{path}: {name!r} cannot be the name of a folder")
        if "seed" in overrides:
            raise ConfigError(f"{path}: {name!r} sets the seed; name it in 'seeds'")
    return [
        Member(name, seed, found["config"], {**overrides, "seed": seed})
        for seed in seeds
        for name, overrides in conditions.items()
    ]


def chosen(members: Sequence[Member], conditions: Sequence[str]) -> list[Member]:
    """Those of the named conditions; all for none.

    Raises:
      ConfigError: there is no such condition.
    """
    known = list(dict.fromkeys(m.condition for m in members))
    for name in conditions:
        if name not in known:
            raise ConfigError(f"--only={name}: the conditions are {', '.join(known)}")
    return [m for m in members if not conditions or m.condition in conditions]


# -- what came of them --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Curve:
    """Held-out results of a run.

    Attributes:
      rollouts: [E] trajectories trained on before each evaluation.
      tokens: [E] tokens sampled for them.
      success: [E] mean over the sources of the mean over their problems (avg@k), in
        0..1.
      by_source: [E] that of each source; NaN where none of its runs was graded.
    """

    rollouts: np.ndarray
    tokens: np.ndarray
    success: np.ndarray
    by_source: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def read_curve(workdir: Path, per_step: int) -> Curve | None:
    """The team's evaluations in a workdir, over all its sources; None without any.

    Args:
      workdir: of the run.
      per_step: trajectories of an iteration.

    Raises:
      RecordError: a line is damaged.
    """
    rows = [row for row in read_evaluations(workdir) if row["label"] == "team"]
    sampled = {0: 0.0}
    for row in read_rows(workdir / "metrics.jsonl", ("step", "tokens/new")):
        sampled[row["step"]] = sampled[row["step"] - 1] + row["tokens/new"]
    if not rows:
        return None
    graded = [row["sources"] for row in rows]
    by_source = {
        source: np.asarray(
            [s[source]["avg"] if source in s else math.nan for s in graded]
        )
        for source in dict.fromkeys(itertools.chain(*graded))
    }
    return Curve(
        rollouts=np.asarray([row["step"] * per_step for row in rows]),
        tokens=np.asarray([sampled[row["step"]] for row in rows]),
        success=np.nanmean([*by_source.values()], axis=0),
        by_source=by_source,
    )


def rollouts_to(curve: Curve, success: float) -> float:
    """Rollouts until `success` is reached, between evaluations by a straight line;
    infinity if it never is."""
    at, reached = curve.rollouts.astype(float), curve.success
    if reached[0] >= success:
        return float(at[0])
    for i in range(1, len(reached)):
        if reached[i] >= success:
            share = (success - reached[i - 1]) / (reached[i] - reached[i - 1])
            return float(at[i - 1] + share * (at[i] - at[i - 1]))
    return math.inf


def mean_success(curve: Curve) -> float:
    """The mean over the rollouts: the area under the curve, as a share."""
    width = curve.rollouts[-1] - curve.rollouts[0]
    if not width:
        return float(curve.success[-1])
    return float(np.trapezoid(curve.success, curve.rollouts) / width)


@dataclasses.dataclass(frozen=True)
class Row:
    """A condition in figures; intervals are 95% bootstraps over seeds.

    Attributes:
      seeds: how many runs have ended.
      start, final, mean: success before, after, and over the whole run.
      final_interval: of `final`.
      gain: `final` less the first condition's, seed by seed; with its interval.
      rollouts: median over seeds of `rollouts_to`.
    """

    condition: str
    seeds: int
    start: float
    final: float
    final_interval: tuple[float, float]
    mean: float
    gain: float | None
    gain_interval: tuple[float, float] | None
    rollouts: float


def table(
    curves: Mapping[str, Mapping[int, Curve]], success: float, resamples: int = 10_000
) -> list[Row]:
    """A row for each condition that has a run, the first first.

    Args:
      curves: by condition and seed.
      success: that `rollouts` counts up to.
      resamples: of the bootstrap.
    """
    rows, base = [], next(iter(curves), None)
    for name, runs in curves.items():
        if not runs:
            continue
        final = {seed: float(c.success[-1]) for seed, c in runs.items()}
        pairs = [
            final[seed] - float(curves[base][seed].success[-1])
            for seed in final
            if seed in curves[base]
        ]
        others = name != base and len(pairs) > 0
        rows.append(
            Row(
                condition=name,
                seeds=len(runs),
                start=float(np.mean([c.success[0] for c in runs.values()])),
                final=float(np.mean([*final.values()])),
                final_interval=interval([*final.values()], resamples),
                mean=float(np.mean([mean_success(c) for c in runs.values()])),
                gain=float(np.mean(pairs)) if others else None,
                gain_interval=interval(pairs, resamples) if others else None,
                rollouts=float(
                    np.median([rollouts_to(c, success) for c in runs.values()])
                ),
            )
        )
    return rows


def of_source(
    curves: Mapping[str, Mapping[int, Curve]], source: str
) -> dict[str, dict[int, Curve]]:
    """The curves of one source alone."""
    return {
        name: {
            seed: dataclasses.replace(c, success=c.by_source[source])
            for seed, c in runs.items()
        }
        for name, runs in curves.items()
    }


def interval(values: Sequence[float], resamples: int) -> tuple[float, float]:
    """The 95% percentile bootstrap of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.asarray(values), (resamples, len(values))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def markdown(rows: Iterable[Row], success: float) -> str:
    """The table for people."""

    def number(value: float | None) -> str:
        if value is None or math.isnan(value):
            return "-"
        return "never" if math.isinf(value) else f"{value:.3f}"

    def with_interval(value: float | None, ends: tuple[float, float] | None) -> str:
        if value is None:
            return "-"
        known = ends is not None and not math.isnan(ends[0])
        return number(value) + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if known else "")

    rows = list(rows)
    first = rows[0].condition if rows else ""
    lines = [
        f"| condition | seeds | before | after [95% over seeds] | over the run | "
        f"after, less {first} [paired] | rollouts to {success:g} (median) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        to = "never" if math.isinf(row.rollouts) else f"{row.rollouts:.0f}"
        lines.append(
            f"| {row.condition} | {row.seeds} | {number(row.start)} | "
            f"{with_interval(row.final, row.final_interval)} | {number(row.mean)} | "
            f"{with_interval(row.gain, row.gain_interval)} | {to} |"
        )
    return "\n".join(lines) + "\n"
