"""What a picture of curves shows, whichever tool draws it: a line and a band for each group, thin lines for runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .statistics import Curve, mean_curve
from .summaries import Comparison, RunSummary

# Okabe's and Ito's colours, which people with any kind of colour vision tell apart, without the two (yellow, black)
# that vanish on a white or a dark page; with four kinds of line they are enough for 24 groups.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ((), (6, 3), (1.5, 2.5), (8, 3, 1.5, 3))
STYLES = len(COLOURS) * len(DASHES)
MOST_SINGLE_RUNS = 60
"""With more runs than this, single runs are not drawn beside the means."""
_MOST_POINTS = 200


@dataclass(frozen=True)
class Series:
    """A group in a picture.

    Attributes:
        style: its colour and dashes are `COLOURS[style % 6]`, `DASHES[style // 6]`; None: grey, without a label.
        band: x, mean and standard deviation over the finished runs, where they share a range.
        n: finished runs.
        single: finished runs of groups of several, to be drawn thin.
        diverged: to be drawn up to a cross.
    """

    name: str
    style: int | None
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    n: int
    single: Sequence[Curve]
    diverged: Sequence[Curve]


@dataclass(frozen=True)
class Scale:
    """Of the values: the range to show, and whether it is logarithmic."""

    low: float
    high: float
    log: bool


def series_of(comparison: Comparison, axis: str) -> list[Series]:
    """The groups that have the metric over an axis, the leader first."""
    few = draws_single_runs(comparison)
    found = []
    for i, group in enumerate(comparison.groups):
        finished = _curves(group.finished, axis)
        diverged = _curves([s for s in group.runs if s.run.state == "diverged"], axis)
        band = mean_curve(finished)
        if band is not None or finished or (diverged and few):
            single = finished if len(finished) > 1 or band is None else []
            found.append(
                Series(
                    group.name,
                    i if i < STYLES else None,
                    None if band is None else _thin_band(band),
                    len(finished),
                    [_thinned(curve) for curve in single] if few else [],
                    [_thinned(curve) for curve in diverged] if few else [],
                )
            )
    return found


def draws_single_runs(comparison: Comparison) -> bool:
    """Whether runs have lines of their own: few do, and those that diverged where there is nothing else to draw."""
    return len(comparison.runs) <= MOST_SINGLE_RUNS or not any(group.finished for group in comparison.groups)


def scale_of(comparison: Comparison, series: Sequence[Series]) -> Scale:
    """Shows all that finished runs measured; what diverged may leave the picture. Logarithmic where lower is better
    and the values are positive and a factor of 20 apart."""
    values = [array for s in series if s.band is not None for array in (s.band[1] - s.band[2], s.band[1] + s.band[2])]
    values += [np.asarray(ys) for s in series for _, ys in s.single]
    values = values or [np.asarray(ys) for s in series for _, ys in s.diverged]
    if comparison.question.target is not None:
        values.append(np.asarray([comparison.question.target]))
    middle = np.concatenate([s.band[1] for s in series if s.band is not None] or values)
    low, high = float(min(v.min() for v in values)), float(max(v.max() for v in values))
    log = comparison.question.lower_is_better and middle.min() > 0 and middle.max() > 20 * middle.min()
    if log:
        low = min(float(middle.min()), low) if low > 0 else float(middle.min()) / 2
        return Scale(low / 1.1, high * 1.1, True)
    margin = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    return Scale(low - margin, high + margin, False)


def _curves(summaries: Sequence[RunSummary], axis: str) -> list[Curve]:
    return [summary.curves[axis] for summary in summaries if axis in summary.curves]


def _thinned(curve: Curve) -> Curve:
    kept = _kept(len(curve[0]))
    return [curve[0][i] for i in kept], [curve[1][i] for i in kept]


def _thin_band(band: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kept = _kept(len(band[0]))
    return band[0][kept], band[1][kept], band[2][kept]


def _kept(points: int) -> list[int]:
    """Indices of at most `_MOST_POINTS` points, first and last among them: a picture has no more columns."""
    return np.unique(np.linspace(0, points - 1, min(points, _MOST_POINTS)).round().astype(int)).tolist()
