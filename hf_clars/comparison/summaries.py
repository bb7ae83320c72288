"""What was found: measures of runs, means of groups, differences, and all of it as one comparison."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .groups import Group, seed_of
from .question import Question
from .runs import AXES, ComparedRun
from .statistics import Curve, Interval, Mean

DRAWN_STATES = ("finished", "diverged")
"""Runs of which something is said or drawn; others have no end yet, or none that says anything."""


@dataclass(frozen=True)
class RunSummary:
    """One run's measures; `curves` has its metric over every axis it knows."""

    run: ComparedRun
    curves: Mapping[str, Curve]
    measures: Mapping[str, float]

    @property
    def reached(self) -> bool:
        return any(axis in self.measures for axis in AXES)


@dataclass(frozen=True)
class GroupSummary:
    """A group over its seeds.

    Attributes:
        runs: all of the group's, finished or not.
        means: measure → mean over the finished runs that have it; to the target, over those that reached it.
    """

    group: Group
    runs: Sequence[RunSummary]
    means: Mapping[str, Mean]

    @property
    def name(self) -> str:
        return self.group.name

    @property
    def finished(self) -> list[RunSummary]:
        return [summary for summary in self.runs if summary.run.state == "finished"]

    def count(self, *states: str) -> int:
        return sum(summary.run.state in states for summary in self.runs)

    @property
    def reached(self) -> int:
        """Finished runs that reached the target."""
        return sum(summary.reached for summary in self.finished)

    @property
    def tried(self) -> int:
        """Runs that reached the target or did not: the finished and the diverged. Of others nobody knows."""
        return self.count(*DRAWN_STATES)

    def by_seed(self, measure: str) -> dict[Hashable, float]:
        """A measure of the finished runs by their seed; by something that pairs with nothing where seeds are not
        known, or not unique."""
        having = [summary for summary in self.finished if measure in summary.measures]
        seeds = [seed_of(summary.run) for summary in having]
        if None in seeds or len(set(seeds)) < len(seeds):
            seeds = [(self.name, i) for i in range(len(having))]
        return {seed: summary.measures[measure] for seed, summary in zip(seeds, having, strict=True)}


@dataclass(frozen=True)
class Difference:
    """`group` minus `leader` in one measure."""

    group: str
    leader: str
    measure: str
    interval: Interval


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        groups: the leader first; see `ranked`.
        axes: those over which a finished or diverged run has points of the metric.
        range: of the axis, that the area is taken over; None where the runs share none.
        differences: of each group to the leader, in every measure.
        remarks: lines about what a reader must know to trust the numbers.
        left_out: lines about runs without the metric.
        skipped: lines about runs that could not be read.
    """

    question: Question
    groups: Sequence[GroupSummary]
    axes: Sequence[str]
    range: tuple[float, float] | None
    differences: Sequence[Difference]
    remarks: Sequence[str] = ()
    left_out: Sequence[str] = ()
    skipped: Sequence[str] = ()
    runs: Sequence[RunSummary] = field(default_factory=list)

    def differences_in(self, measure: str) -> list[Difference]:
        return [d for d in self.differences if d.measure == measure]

    @property
    def axes_to_target(self) -> list[str]:
        """Those over which the way to the target is known, the one that was asked for first."""
        known = [axis for axis in self.axes if any(axis in group.means for group in self.groups)]
        return sorted(known, key=lambda axis: axis != self.question.axis)

    @property
    def deciding(self) -> str:
        """The measure that ranks the groups: how long to the target if one of them reached it, else the last value."""
        axis = self.question.axis
        return axis if any(axis in group.means for group in self.groups) else "final"


def ranked(groups: Sequence[GroupSummary], question: Question, measure: str | None = None) -> list[GroupSummary]:
    """The best first. To a target: a larger share of runs that reached it is better, then the smaller mean.

    By `measure`; by default how long to the target, and by their last values those of which no run reached it.
    """
    sign = 1 if question.lower_is_better else -1

    def place(group: GroupSummary) -> tuple[float, ...]:
        by = measure or (question.axis if question.axis in group.means else "final")
        if by not in group.means:
            return (2, 0, 0)
        mean = group.means[by].mean
        return (0, -group.reached / group.tried, mean) if by in AXES else (1, 0, sign * mean)

    return sorted(groups, key=place)


def distance(group: GroupSummary, axis: str) -> float | None:
    """The median distance of two measurements, which a time to the target is late by at most."""
    gaps = [b - a for s in group.finished if axis in s.curves for a, b in pairwise(s.curves[axis][0])]
    return statistics.median(gaps) if gaps else None
