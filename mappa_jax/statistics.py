"""The statistics of an evaluation: averages, pass@k and their intervals.

P problems, k samples of each; a score is in 0..1. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mappa_jax.types import Trajectory

RIGHT = 1.0 - 1e-6  # a scorer may give partial credit; right are full marks


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> np.ndarray:
    """The unbiased estimate of P(at least one of k samples is right).

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, "Evaluating Large Language Models
    Trained on Code", equation 1), as a product, which does not overflow.

    Args:
      n: [...] samples drawn, per problem.
      c: [...] of them right.
      k: tries.

    Returns:
      [...] float64.

    Raises:
      ValueError: not 1 <= k <= n, or not 0 <= c <= n.
    """
    n, c = np.broadcast_arrays(np.asarray(n, np.int64), np.asarray(c, np.int64))
    if k < 1 or (n < k).any():
        raise ValueError(f"pass@k needs 1 <= k <= n, got k={k}, n={n.tolist()}")
    if (c < 0).any() or (c > n).any():
        raise ValueError(
            f"pass@k needs 0 <= c <= n, got c={c.tolist()}, n={n.tolist()}"
        )
    # C(n - c, k) / C(n, k) = prod_{i<k} (n - c - i) / (n - i); a factor reaches zero
    # where fewer than k samples are wrong.
    i = np.arange(k)
    factors = np.maximum(n[..., None] - c[..., None] - i, 0) / (n[..., None] - i)
    return 1.0 - factors.prod(axis=-1)


def bootstrap_interval(
    per_problem: ArrayLike, resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean, over problems.

    Problems are resampled and not samples: the samples of one problem are not
    independent, and it is other problems that a claim is about (Efron 1979).

    Args:
      per_problem: [P] one value per problem.
      resamples: how many.
      seed: of NumPy's default generator.
      level: coverage, in (0, 1).

    Returns:
      (low, high).

    Raises:
      ValueError: no problems, a value that is not finite, or bad arguments.
    """
    values_P = np.asarray(per_problem, np.float64)
    if values_P.ndim != 1 or values_P.size == 0 or not np.isfinite(values_P).all():
        raise ValueError("bootstrap_interval needs finite values of at least 1 problem")
    if resamples < 1 or not 0.0 < level < 1.0:
        raise ValueError(f"got resamples={resamples}, level={level}")
    generator = np.random.default_rng(seed)
    drawn_RxP = generator.integers(values_P.size, size=(resamples, values_P.size))
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(values_P[drawn_RxP].mean(axis=1), [tail, 1.0 - tail])
    return float(low), float(high)


def scores_by_source(
    trajectories: Iterable[Trajectory],
) -> dict[str, list[list[float]]]:
    """The scores of each problem's samples, by source.

    Trajectories without an outcome (no ground truth, or a run that the outside world
    has ended) are left out: they are not wrong answers.
    """
    problems: dict[str, dict[str, list[float]]] = {}
    for trajectory in trajectories:
        if trajectory.outcome is not None:
            of_source = problems.setdefault(trajectory.task.source, {})
            samples = of_source.setdefault(trajectory.task.id, [])
            samples.append(trajectory.outcome.score)
    return {source: list(by_id.values()) for source, by_id in problems.items()}


def majority_by_source(
    trajectories: Iterable[Trajectory],
) -> dict[str, list[float]]:
    """Per problem the score of the answer that most of its samples gave, by source
    (self-consistency, Wang et al. 2022, arXiv 2203.11171).

    Answers are the same where their text is. Those that as many samples gave share the
    vote: their mean score counts. A sample without an answer has no vote, and a problem
    without votes scores 0. Trajectories without an outcome are left out, and sources
    whose outcomes name no answers.
    """
    problems: dict[str, dict[str, dict[str, list[float]]]] = {}
    for trajectory in trajectories:
        if trajectory.outcome is None:
            continue
        of_source = problems.setdefault(trajectory.task.source, {})
        votes = of_source.setdefault(trajectory.task.id, {})
        if trajectory.outcome.answer is not None:
            answer = trajectory.outcome.answer.strip()
            votes.setdefault(answer, []).append(trajectory.outcome.score)
    return {
        source: [_majority(votes) for votes in by_id.values()]
        for source, by_id in problems.items()
        if any(by_id.values())
    }


def _majority(votes: Mapping[str, Sequence[float]]) -> float:
    most = max(map(len, votes.values()), default=0)
    scores = [np.mean(s) for s in votes.values() if len(s) == most]
    return float(np.mean(scores)) if scores else 0.0


def summarise(
    scores: Mapping[str, Sequence[Sequence[float]]], k: int, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """avg@k and pass@k with intervals, by source.

    Args:
      scores: per source, per problem, the scores of its samples (`scores_by_source`);
        problems may differ in their number of samples.
      k: samples asked for per problem.
      resamples, seed: of the bootstrap.

    Returns:
      By source: `value`, `low`, `high` (the mean over problems of their mean score,
      with its 95% interval), `problems`, `samples`, and `pass`, a dict with `value`,
      `low`, `high` and `problems` for pass@k over the problems that have k samples;
      `pass` is absent where none has.

    Raises:
      ValueError: a source without scores.
    """
    return {
        source: _summary([np.asarray(s, np.float64) for s in rows], k, resamples, seed)
        for source, rows in scores.items()
    }


def quality_by_kind(
    trajectories: Iterable[Trajectory], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Success and quality by kind of task, where the outcomes tell of quality.

    Args:
      trajectories: those without an outcome are left out.
      resamples, seed: of the bootstrap.

    Returns:
      By kind: `problems`, and by name ("success", and every name of
      `Outcome.quality`): `value`, `low`, `high`, of the mean over problems of the mean
      over those of its samples that have the number. Empty where none has.
    """
    graded = [t for t in trajectories if t.outcome is not None]
    if not any(t.outcome.quality for t in graded):
        return {}
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for t in graded:
        numbers = {"success": t.outcome.score} | dict(t.outcome.quality)
        for name, value in numbers.items():
            problems = found.setdefault(t.task.kind, {}).setdefault(name, {})
            problems.setdefault(t.task.id, []).append(value)
    return {
        kind: {"problems": len(names["success"])}
        | {
            name: mean_estimate(
                [float(np.mean(values)) for values in problems.values()],
                resamples,
                seed,
            )
            for name, problems in names.items()
        }
        for kind, names in sorted(found.items())
    }


def _summary(
    rows: list[np.ndarray], k: int, resamples: int, seed: int
) -> dict[str, Any]:
    if not rows or any(row.size == 0 for row in rows):
        raise ValueError("every problem needs at least one score, every source one")
    summary = mean_estimate([row.mean() for row in rows], resamples, seed)
    summary |= {"problems": len(rows), "samples": sum(row.size for row in rows)}
    passed = [
        float(pass_at_k(row.size, int((row >= RIGHT).sum()), k))
        for row in rows
        if row.size >= k
    ]
    if passed:
        estimate = mean_estimate(passed, resamples, seed)
        summary["pass"] = estimate | {"problems": len(passed)}
    return summary


def mean_estimate(
    values: Sequence[float], resamples: int, seed: int
) -> dict[str, float]:
    """`value`, `low` and `high` of a mean over problems, with its 95% interval."""
    low, high = bootstrap_interval(values, resamples, seed)
    return {"value": float(np.mean(values)), "low": low, "high": high}
