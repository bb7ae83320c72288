"""A comparison: runs in, everything that tables, pictures and reports show out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from ..errors import UserError
from .groups import Group, group_runs, remarks
from .question import MEASURES, UNITS, Question, target_text
from .runs import AXES, ComparedRun
from .statistics import Curve, area, best_of, difference, first_reaching, mean_of, shared_range
from .summaries import DRAWN_STATES, Comparison, Difference, GroupSummary, RunSummary, distance, ranked
from .words import number

_INFINITE = 3.4e38  # float32 ends here: what is beyond has no square in float64, and no meaning


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
        [axis for axis in AXES if any(axis in c for run, c in kept if run.state in DRAWN_STATES)],
        range_,
        differences,
        [*remarks([g.group for g in groups]), *_remarks(groups, question, range_)],
        left_out,
        list(skipped),
        [summary for group in groups for summary in group.runs],
    )


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
            f"the mean value is that up to {number(range_[1])} {UNITS[axis]}, where the shortest finished run ends; "
            f"the longest ends at {number(max(ends))}"
        )
    distances = {group.name: d for group in groups if (d := distance(group, axis)) is not None}
    if question.target is not None and distances and max(distances.values()) > 1.5 * min(distances.values()):
        fine, coarse = min(distances, key=distances.__getitem__), max(distances, key=distances.__getitem__)
        lines.append(
            f"{UNITS[axis]} to the target are known to the distance of two measurements: {distances[coarse]:.3g} for "
            f"{coarse}, {distances[fine]:.3g} for {fine}"
        )
    return lines
