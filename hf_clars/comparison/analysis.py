"""A comparison: runs in, everything that tables, pictures and reports show out."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pandas import DataFrame, Series

from ..errors import UserError
from .groups import group_names, grouping, remarks, seed_of, shown
from .runs import AXES, MEASURES, STATES, TO_TARGET, VALUES, ComparedRun, Question
from .statistics import Interval, area, difference, first_reaching, number, shared_range, spread_of


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was found.

    Attributes:
        runs: a row for each `run` that was compared, indexed by its group: `name`, `source`, `seed`, `state`, and
            those of `MEASURES` that it has.
        groups: a row for each group, the leader first (see `ranked`): how many `runs`, how many in each of `STATES`;
            how many finished ones `reached` the target, of how many that `tried`, the finished and the diverged;
            `<measure>_mean`, `_std`, `_n` over the finished runs that have it.
        differences: (group, measure) → the group's minus the leader's.
        axes: those over which a finished or diverged run has points; `range` of the axis that the area is taken over.
        keys: the settings that make a group.
        remarks, left_out, skipped: lines about what to know of the numbers, runs without the metric, unreadable ones.
    """

    question: Question
    runs: DataFrame
    groups: DataFrame
    differences: Mapping[tuple[str, str], Interval]
    axes: Sequence[str]
    range: tuple[float, float] | None
    keys: Sequence[str]
    remarks: Sequence[str]
    left_out: Sequence[str]
    skipped: Sequence[str]

    @property
    def leader(self) -> str:
        return self.groups.index[0]

    @property
    def deciding(self) -> str:
        """The measure that ranks the groups: how long to the target if one of them reached it, else the last value."""
        return TO_TARGET[self.question.axis] if self.has(TO_TARGET[self.question.axis]) else "final"

    @property
    def metric_text(self) -> str:
        """The metric, and the split that it was measured on if all runs name the same: `eval/accuracy on test`."""
        metric = self.question.metric
        splits = {shown(run.config.get("eval_split")) for run in self.runs["run"]}
        split = splits.pop() if len(splits) == 1 else None
        return f"{metric} on {split}" if split not in (None, shown(None)) and metric.startswith("eval/") else metric

    def scale(self, measure: str) -> int:
        """Values of a measure times it are what people are shown."""
        return self.question.scale if measure in VALUES else 1

    def has(self, measure: str) -> bool:
        return bool(self.groups[f"{measure}_n"].any())

    def curves(self, group: str, axis: str, state: str = "finished") -> list[Series]:
        """Those of a group's runs in a state."""
        runs = self.runs.loc[[group]]
        curves = (run.curve(self.question.metric, axis) for run in runs[runs["state"] == state]["run"])
        return [curve for curve in curves if len(curve)]


def analyse(
    runs: Sequence[ComparedRun], question: Question, group_by: Sequence[str] | None = None, skipped: Sequence[str] = ()
) -> Comparison:
    """Compare runs; a `UserError` if none has a finite value of the metric, or a key of `group_by`."""
    metric, axis = question.metric, question.axis
    known = {run: [axis for axis in AXES if len(run.curve(metric, axis))] for run in runs}
    if not any(known.values()):
        raise UserError(f"no run has a finite value of {metric}: all {len(runs)} diverged, or never measured it")
    kept = [run for run in runs if known[run] or run.state == "diverged"]  # maybe before it was first measured
    lacks = {run: f"{'finite value of ' if metric in run.history else ''}{metric}" for run in runs if run not in kept}
    left_out = [f"{run.source}: left out, it has no {what}" for run, what in lacks.items()]
    range_ = shared_range([r.curve(metric, axis) for r in kept if r.state == "finished" and axis in known[r]])
    keys = grouping(kept, group_by)
    table = DataFrame([_row(run, question, range_) for run in kept], group_names(kept, keys)).rename_axis("group")
    table["seed"] = Series([run.config.get("seed") for run in kept], table.index, dtype=object)  # whole if some lack it
    over_seeds = {group: _over_seeds(rows) for group, rows in table.groupby("group", sort=False)}
    groups = ranked(DataFrame.from_dict(over_seeds, orient="index").rename_axis("group"), question)
    table = table.loc[groups.index]
    axes = [axis for axis in AXES if any(axis in known[run] for run in kept if run.state in ("finished", "diverged"))]
    of = {group: table.loc[[group], "run"].to_list() for group in groups.index}
    lines = [*remarks(of), *_remarks(groups, table, question, range_)]
    return Comparison(question, table, groups, _differences(table), axes, range_, keys, lines, left_out, skipped)


def _row(run: ComparedRun, question: Question, range_: tuple[float, float] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"run": run, "name": run.name, "source": run.source, "seed": None, "state": run.state}
    row |= dict.fromkeys(MEASURES, math.nan)
    if len(values := run.curve(question.metric)):
        row["final"] = values.iloc[-1]
        row["best"] = values.min() if question.lower_is_better else values.max()
    if range_ is not None:
        row["area"] = area(run.curve(question.metric, question.axis), *range_)
    if question.target is not None:
        for axis, measure in TO_TARGET.items():
            curve = run.curve(question.metric, axis)
            row[measure] = first_reaching(curve, question.target, question.lower_is_better)
    return row


def _over_seeds(runs: DataFrame) -> dict[str, Any]:
    finished = runs[runs["state"] == "finished"]
    row: dict[str, Any] = {"runs": len(runs), **{state: int((runs["state"] == state).sum()) for state in STATES}}
    row["reached"] = int(finished[list(TO_TARGET.values())].notna().any(axis=1).sum())
    row["tried"] = row["finished"] + row["diverged"]
    return row | {f"{m}_{part}": value for m in MEASURES for part, value in spread_of(finished[m]).items()}


def ranked(groups: DataFrame, question: Question, measure: str | None = None) -> DataFrame:
    """The best first. To a target: a larger share of runs that reached it is better, then the smaller mean.

    By `measure`; by default how long to the target, and by their last values those of which no run reached it.
    """

    def place(name: str) -> tuple[float, ...]:
        group = groups.loc[name]
        by = measure or (TO_TARGET[question.axis] if group[f"{TO_TARGET[question.axis]}_n"] else "final")
        mean = group[f"{by}_mean"]
        if math.isnan(mean):
            return (2, 0, 0)
        return (1, 0, question.sign * mean) if by in VALUES else (0, -group["reached"] / group["tried"], mean)

    return groups.loc[sorted(groups.index, key=place)]


def _differences(runs: DataFrame) -> dict[tuple[str, str], Interval]:
    """Of each group to the first one."""
    finished = runs[runs["state"] == "finished"]
    seeds = finished["run"].map(seed_of)
    values = {group: finished.set_index(seeds)[(finished.index == group)] for group in runs.index.unique()}
    leader, *others = values
    found = {(g, m): difference(values[g][m].dropna(), values[leader][m].dropna()) for g in others for m in MEASURES}
    return {key: interval for key, interval in found.items() if interval is not None}


def _remarks(groups: DataFrame, runs: DataFrame, question: Question, range_: tuple[float, float] | None) -> list[str]:
    lines = []
    if unfinished := groups[["failed", "running"]].to_numpy().sum():
        count = f"{unfinished} run{'' if unfinished == 1 else 's'}"
        lines.append(f"did not end as meant (failed, cut off or still running), and are in no mean: {count}")
    if question.target is not None and not groups["reached"].any():
        best = ranked(groups, question, "best").iloc[0]
        mean = f"{best['best_mean'] * question.scale:.4g}{question.unit}"
        nearest = f"; the best mean is {mean}, of {best.name}" if best["best_n"] else ""
        lines.append(f"no finished run reached {question.metric} {question.target_text}{nearest}")
    unit = AXES[question.axis]
    curves = runs[runs["state"] == "finished"]["run"].map(lambda run: run.curve(question.metric, question.axis))
    longest = max((curve.index[-1] for curve in curves if len(curve)), default=None)
    if range_ is None and longest is not None:
        lines.append(f"no mean value of the curves: the finished runs share no range of {unit}")
    elif range_ is not None and longest is not None and range_[1] < longest / 2:
        shortest = f"up to {number(range_[1])} {unit}, where the shortest finished run ends"
        lines.append(f"the mean value is that {shortest}; the longest ends at {number(longest)}")
    warming = runs[(runs["state"] == "finished") & runs["run"].map(_ended_in_warmup)]
    for group in dict.fromkeys(warming.index):
        lines.append(f"{group}: the learning rate rose until the end, so warmup alone was seen of its schedule")
    gaps = {group: gap for group in curves.index.unique() if (gap := distance(curves.loc[[group]]))}
    if question.target is not None and gaps and max(gaps.values()) > 1.5 * min(gaps.values()):
        said = [f"{gap(gaps.values()):.3g} for {gap(gaps, key=gaps.__getitem__)}" for gap in (max, min)]
        lines.append(f"{unit} to the target are known to the distance of two measurements: {', '.join(said)}")
    return lines


def _ended_in_warmup(run: ComparedRun) -> bool:
    rates = run.curve("train/learning_rate")
    return len(rates) > 1 and bool((np.diff(rates) > 0).all())


def distance(curves: Iterable[Series]) -> float:
    """The median distance of two measurements, which a time to the target is late by at most; 0 if it is not known."""
    gaps = [gap for curve in curves for gap in np.diff(curve.index)]
    return float(statistics.median(gaps)) if gaps else 0.0
