"""A comparison: runs in, everything that tables, pictures and reports show out."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ..errors import UserError
from .groups import Group, group_runs, remarks, seed_of
from .runs import AXES, ComparedRun
from .statistics import (
    Curve,
    Interval,
    Mean,
    area,
    best_of,
    difference,
    first_reaching,
    mean_of,
    shared_range,
)

UNITS = {"step": "steps", "epoch": "epochs", "images": "images", "seconds": "seconds"}
"""Axis → its unit, which is also what the measure "how long to the target" over it is called."""

VALUES = ("final", "best", "area")
"""The measures that are values of the metric."""

MEASURES = (*VALUES, *AXES)
"""All measures of a run; those named as an axis are how long it took to the target."""

MEASURE_NAMES = {
    "final": "last value",
    "best": "best value",
    "area": "mean value",
    **{axis: f"{unit} to the target" for axis, unit in UNITS.items()},
}
"""For people."""

_INFINITE = 3.4e38  # float32 ends here: what is beyond has no square in float64, and no meaning
_LOWER = frozenset({"loss", "perplexity", "ppl", "error", "err", "nll", "mse", "mae", "rmse", "wer", "cer", "bpc"})


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        metric: W&B's name: `eval/accuracy`.
        target: the value to reach; None where none was given.
        axis: of `AXES`, over which the area is taken and which decides who is first.
        lower_is_better: how the metric is read.
    """

    metric: str = "eval/accuracy"
    target: float | None = None
    axis: str = "epoch"
    lower_is_better: bool = False


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
        return self.count("finished", "diverged")

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
        axes: those that have points of the metric.
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


def falls(metric: str) -> bool:
    """Lower is better, by the metric's name: one of its words is loss, perplexity, error, …"""
    words = metric.lower().replace("/", " ").replace("_", " ").replace("-", " ").split()
    return not _LOWER.isdisjoint(words)


def the_metric(runs: Sequence[ComparedRun], asked: str) -> str:
    """The metric by the name it has; Trainer's `eval_accuracy` is `eval/accuracy`.

    Raises:
        UserError: no run has it. Lists those that exist.
    """
    having = Counter(metric for run in runs for metric in run.metrics())
    for name in (asked, asked.replace("_", "/", 1), f"train/{asked}"):
        if name in having:
            return name
    names = [name for name, _ in having.most_common() if not name.startswith("layers/")]
    listed = ", ".join(sorted(names[:30])) + (f" and {len(names) - 30} more" if len(names) > 30 else "")
    raise UserError(f"--metric {asked}: no run has it; there is {listed or 'no metric at all'}")


def the_axis(runs: Sequence[ComparedRun], metric: str, asked: str | None) -> str:
    """The axis asked for, or epochs, or optimizer steps where not every run that has the metric knows its epochs.

    Raises:
        UserError: no run has the axis asked for. Lists those that exist.
    """
    having = [run for run in runs if run.points(metric)[0]]
    known = Counter(axis for run in having for axis in AXES if run.points(metric, axis)[0])
    if asked is not None and not known[asked]:
        raise UserError(f"--axis {asked}: no run has {metric} over it; there is {', '.join(sorted(known)) or 'none'}")
    return asked or ("epoch" if known["epoch"] == len(having) else "step")


def analyse(
    runs: Sequence[ComparedRun],
    question: Question,
    group_by: Sequence[str] | None = None,
    skipped: Sequence[str] = (),
) -> Comparison:
    """Compare runs.

    Raises:
        UserError: no run has a finite value of the metric, or no run has a key of `group_by`.
    """
    metric = question.metric
    curves = [_curves(run, metric) for run in runs]
    if not any(curves):
        raise UserError(f"no run has a finite value of {metric}: all {len(runs)} diverged, or never measured it")
    # A run that diverged before it was first measured still counts as diverged.
    kept = [(run, c) for run, c in zip(runs, curves, strict=True) if c or run.state == "diverged"]
    left_out = [
        f"{run.source}: left out, it has no {'finite value of ' if metric in run.metrics() else ''}{metric}"
        for run, c in zip(runs, curves, strict=True)
        if not c and run.state != "diverged"
    ]
    finished = [c for run, c in kept if run.state == "finished"]
    range_ = shared_range([c[question.axis] for c in finished if question.axis in c])
    summaries = {id(run): RunSummary(run, c, _measures(c, question, range_)) for run, c in kept}
    groups = ranked(
        [
            _summary(group, [summaries[id(run)] for run in group.runs])
            for group in group_runs([run for run, _ in kept], group_by)
        ],
        question,
    )
    leader, *others = groups
    differences = [
        Difference(group.name, leader.name, measure, interval)
        for group in others
        for measure in MEASURES
        if (interval := difference(group.by_seed(measure), leader.by_seed(measure))) is not None
    ]
    return Comparison(
        question,
        groups,
        [axis for axis in AXES if any(axis in c for c in curves)],
        range_,
        differences,
        [*remarks([g.group for g in groups]), *_remarks(groups, question, range_)],
        left_out,
        list(skipped),
        [summary for group in groups for summary in group.runs],
    )


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


def _curves(run: ComparedRun, metric: str) -> dict[str, Curve]:
    """The metric over every axis that the run knows, x strictly increasing: of points at the same x the last counts.
    Values that float32 could not hold are no finite numbers."""
    curves: dict[str, Curve] = {}
    for axis in AXES:
        xs, ys = run.points(metric, axis)
        if ys and max(map(abs, ys)) > _INFINITE:
            kept = [i for i, y in enumerate(ys) if abs(y) <= _INFINITE]
            xs, ys = [xs[i] for i in kept], [ys[i] for i in kept]
        if any(b <= a for a, b in pairwise(xs)):
            at = dict(zip(xs, ys, strict=True))
            xs = sorted(at)
            ys = [at[x] for x in xs]
        if xs:
            curves[axis] = (xs, ys)
    return curves


def _measures(curves: Mapping[str, Curve], question: Question, range_: tuple[float, float] | None) -> dict[str, float]:
    if not curves:
        return {}
    values = next(iter(curves.values()))[1]
    measures = {"final": values[-1], "best": best_of(values, question.lower_is_better)}
    if range_ is not None and question.axis in curves:
        mean_value = area(curves[question.axis], *range_)
        if mean_value is not None:
            measures["area"] = mean_value
    if question.target is not None:
        for axis, curve in curves.items():
            x = first_reaching(curve, question.target, question.lower_is_better)
            if x is not None:
                measures[axis] = x
    return measures


def _summary(group: Group, runs: Sequence[RunSummary]) -> GroupSummary:
    finished = [summary for summary in runs if summary.run.state == "finished"]
    means = {m: mean_of([s.measures[m] for s in finished if m in s.measures]) for m in MEASURES}
    return GroupSummary(group, runs, {m: mean for m, mean in means.items() if mean is not None})


def _remarks(groups: Sequence[GroupSummary], question: Question, range_: tuple[float, float] | None) -> list[str]:
    lines = []
    if open_ := sum(group.count("running", "failed") for group in groups):
        lines.append(f"did not end as meant (failed, cut off or still running), and are in no mean: {open_} runs")
    if question.target is not None and not any(group.reached for group in groups):
        best = ranked(groups, question, "best")[0]
        nearest = best.means.get("best")
        reached = "" if nearest is None else f"; the best mean is {nearest.mean:.4g}, of {best.name}"
        lines.append(f"no finished run reached {question.metric} {target_text(question)}{reached}")
    axis = question.axis
    ends = [s.curves[axis][0][-1] for g in groups for s in g.finished if axis in s.curves]
    if range_ is None and ends:
        lines.append(f"no mean value of the curves: the finished runs share no range of {UNITS[axis]}")
    elif range_ is not None and range_[1] < max(ends) / 2:
        lines.append(
            f"the mean value is that up to {range_[1]:g} {UNITS[axis]}, where the shortest finished run ends; "
            f"the longest ends at {max(ends):g}"
        )
    distances = {group.name: d for group in groups if (d := distance(group, axis)) is not None}
    if question.target is not None and distances and max(distances.values()) > 1.5 * min(distances.values()):
        fine, coarse = min(distances, key=distances.__getitem__), max(distances, key=distances.__getitem__)
        lines.append(
            f"{UNITS[axis]} to the target are known to the distance of two measurements: {distances[coarse]:.3g} for "
            f"{coarse}, {distances[fine]:.3g} for {fine}"
        )
    return lines


def distance(group: GroupSummary, axis: str) -> float | None:
    """The median distance of two measurements, which a time to the target is late by at most."""
    gaps = [b - a for s in group.finished if axis in s.curves for a, b in pairwise(s.curves[axis][0])]
    return statistics.median(gaps) if gaps else None


def target_text(question: Question) -> str:
    """`≥ 0.75`."""
    return "" if question.target is None else f"{'≤' if question.lower_is_better else '≥'} {question.target:g}"
