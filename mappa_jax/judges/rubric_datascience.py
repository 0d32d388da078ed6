"""The offline rubric of the data-science team (METHOD.md, "The judge").

It reads the trail of files: who owed what, what was there before an action and what
after. The blame for a missing file lies with the agent who owed it, and not with the
one who then fails for want of it. It does not read the code.

Points of an action:

    text instead of a program, while files are owed                 0
    the agent's files are all there and it stops without a program  8
    it ran, and all its files are there, made by it                 9
    ... made by another agent                                       4
    it ran, files are missing, turns are left                       1.5 .. 3
    it ran, files are missing, and its turns end                    1 .. 2
    it failed for want of a file that another agent owed            4
    it failed by itself, or ran into a limit                        0.5 .. 2
    it failed, but its files are all there                          5
    it removed a file that another agent had made           at most 2
    the last agent's submission is there, the metrics known at most by quality

A file that holds nothing is not there. Within a range, by the share of its files that
are there. `balanced` caps the last agent's points by the relative performance gap, 4 at
the baseline to 9 at the reference model; `paper` by the tables of the paper, which are
harder on classification than on regression.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Literal

from mappa_jax.types import JudgeRequest, Observation

Style = Literal["balanced", "paper"]

TEXT_ONLY, CLOSING, COMPLETE, BLOCKED, CRASHED_COMPLETE = 0.0, 8.0, 9.0, 4.0, 5.0
NOT_ITS_OWN, DESTRUCTIVE = 4.0, 2.0
INVALID = 3.0  # a submission that cannot be scored
# METHOD.md: at least so much (or below so much), at most so many points.
_BY_RATE = ((0.85, 9.0), (0.75, 8.0), (0.65, 6.0), (0.55, 4.0), (0.0, 3.0))
_BY_ERROR = ((10.0, 9.0), (25.0, 8.0), (50.0, 6.0))  # percent of the target's range
_WORST_ERROR = 4.0
_GAP_FLOOR, _GAP_POINTS = 4.0, 5.0
_QUOTED = re.compile(r"'([^'\n]+)'|\"([^\"\n]+)\"")


@dataclasses.dataclass(frozen=True)
class Finding:
    """The points of an action and why."""

    points: float
    why: str


@dataclasses.dataclass(frozen=True)
class Trail:
    """What an action found and left.

    Attributes:
      there: the agent's files that are there after the action, with something in them.
      missing: those that are not.
      foreign: those of `there` that no action of this agent has written.
      owed: files of agents who act before this one, that were not there when it acted;
        file -> whose doing that is: who owed it, or who removed it.
      removed: files that others had made and this action removed.
    """

    there: tuple[str, ...]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    owed: Mapping[str, str]
    removed: tuple[str, ...]

    @property
    def share(self) -> float:
        """Of the agent's files, the part that is there."""
        whole = len(self.there) + len(self.missing)
        return len(self.there) / whole if whole else 1.0


def trail(request: JudgeRequest) -> Trail:
    """The files that the action's agent owes, and those it should have found."""
    action, team = request.action, request.team
    seen = action.observation
    runs = [(a.agent, a.observation) for a in request.before if a.observation]
    before = seen.files_before if seen else runs[-1][1].files if runs else ()
    if seen is not None:
        runs.append((action.agent, seen))
    after = [n for n in runs[-1][1].files if n not in runs[-1][1].empty] if runs else []
    mine = {n for agent, run in runs if agent == action.agent for n in _written(run)}
    there = tuple(name for name in request.role.makes if name in after)
    removed = () if seen is None else set(seen.files_before) - set(seen.files)
    return Trail(
        there=there,
        missing=tuple(name for name in request.role.makes if name not in after),
        foreign=tuple(name for name in there if name not in mine),
        owed={
            name: _whose_doing(name, role.title, request)
            for role in team[: team.index(request.role)]
            for name in role.makes
            if name not in before
        },
        removed=tuple(sorted(n for n in removed if n not in mine)),
    )


def _written(run: Observation) -> set[str]:
    return (set(run.files) - set(run.files_before)) | set(run.changed)


def _whose_doing(name: str, owner: str, request: JudgeRequest) -> str:
    """Whose doing it is that a file is not there, in words."""
    titles = {role.name: role.title for role in request.team}
    for action in reversed(request.before):
        run = action.observation
        if run and name in run.files_before and name not in run.files:
            return f"removed by the {titles[action.agent]}"
    return f"owed by the {owner}"


def judge_action(request: JudgeRequest, style: Style) -> Finding:
    """The points of an action of the data-science team, 0..10."""
    found = trail(request)
    finding = _uncapped(request, found)
    if found.removed and finding.points > DESTRUCTIVE:
        gone = ", ".join(found.removed)
        return Finding(DESTRUCTIVE, f"it removed {gone}, which it had not made")
    return finding if found.missing else _capped(finding, request, style)


def _uncapped(request: JudgeRequest, found: Trail) -> Finding:
    seen = request.action.observation
    if seen is None:
        if found.missing:
            said = f"no program, though {', '.join(found.missing)} is owed"
            return Finding(TEXT_ONLY, said)
        return Finding(CLOSING, "nothing was left to do")
    if not seen.ok:
        return _failed(found, seen)
    if found.foreign:
        said = f"it ran, but {', '.join(found.foreign)} is another agent's work"
        return Finding(NOT_ITS_OWN, said)
    if not found.missing:
        return Finding(COMPLETE, f"it ran, and {', '.join(found.there)} is there")
    why = f"it ran, but {', '.join(found.missing)} is missing"
    if _turns_end(request):
        return Finding(1.0 + found.share, f"{why}, and its turns end here")
    return Finding(1.5 + 1.5 * found.share, why)


def _failed(found: Trail, seen: Observation) -> Finding:
    how = f"the {seen.limit} limit" if seen.limit else f"exit status {seen.exit_status}"
    wanted = _named_files(seen.stderr) & set(found.owed)
    if wanted and seen.limit is None:
        who = ", ".join(f"{name} ({found.owed[name]})" for name in sorted(wanted))
        return Finding(BLOCKED, f"it failed for want of {who}")
    if not found.missing:
        return Finding(CRASHED_COMPLETE, f"it failed ({how}), but its files are there")
    return Finding(0.5 + 1.5 * found.share, f"it failed by itself: {how}")


def _named_files(stderr: str) -> set[str]:
    """Files that the last line of a traceback, or a FileNotFoundError, speaks of."""
    lines = [line for line in stderr.splitlines() if "FileNotFoundError" in line]
    quoted = [group for line in lines for group in _QUOTED.findall(line)]
    return {(single or double).rpartition("/")[2] for single, double in quoted}


def _turns_end(request: JudgeRequest) -> bool:
    return request.action.turn + 1 >= request.role.max_turns


def _capped(finding: Finding, request: JudgeRequest, style: Style) -> Finding:
    """The last agent's points by what its submission is worth, where that is shown."""
    outcome = request.action.outcome
    if request.reference is None or outcome is None:
        return finding
    if outcome.score < 1.0:
        return Finding(min(finding.points, INVALID), outcome.report)
    cap = _CAPS[style](outcome.quality)
    if cap >= finding.points:
        return finding
    return Finding(cap, f"{finding.why}; {outcome.report}")


def _balanced_cap(quality: Mapping[str, float]) -> float:
    if "gap" not in quality:
        return COMPLETE
    return _GAP_FLOOR + _GAP_POINTS * min(max(quality["gap"], 0.0), 1.0)


def _paper_cap(quality: Mapping[str, float]) -> float:
    for name in ("roc_auc", "fair_accuracy"):
        if name in quality:
            return next(cap for least, cap in _BY_RATE if quality[name] >= least)
    if "fair_rmse_percent" in quality:
        error = quality["fair_rmse_percent"]
        return next((cap for most, cap in _BY_ERROR if error < most), _WORST_ERROR)
    return COMPLETE


_CAPS: Mapping[Style, Callable[[Mapping[str, float]], float]] = {
    "balanced": _balanced_cap,
    "paper": _paper_cap,
}
