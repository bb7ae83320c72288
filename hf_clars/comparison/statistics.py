"""What is computed of curves and over seeds: pure functions of numbers.

A curve is two lists of the same length, x increasing. Spread over seeds is the sample standard deviation
`s = √(Σ (v_i − v̄)² / (n − 1))`; intervals are Student's, two-sided.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

LEVEL = 0.95
"""Confidence level of the intervals."""

Curve = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Mean:
    """`mean ± std` of `n` values; `std` is None for a single one."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Interval:
    """A mean difference with its confidence interval.

    Attributes:
        difference: the mean difference.
        low, high: the interval; None where one seed is all there is, which says nothing of the spread.
        pairs: seed pairs that it is computed over; None where the seeds do not pair up (Welch).
    """

    difference: float
    low: float | None
    high: float | None
    pairs: int | None

    @property
    def clear(self) -> bool:
        """Zero is outside the interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def mean_of(values: Sequence[float]) -> Mean | None:
    """None for no values."""
    if not values:
        return None
    return Mean(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def best_of(values: Sequence[float], lower_is_better: bool) -> float:
    return min(values) if lower_is_better else max(values)


def reaches(value: float, target: float, lower_is_better: bool) -> bool:
    return value <= target if lower_is_better else value >= target


def first_reaching(curve: Curve, target: float, lower_is_better: bool) -> float | None:
    """x of the first point that has reached the target; None if none has.

    A point that was measured, not one interpolated between two: what the curve does between evaluations nobody knows.
    It is late by at most the distance to the point before.
    """
    return next((x for x, y in zip(*curve, strict=True) if reaches(y, target, lower_is_better)), None)


def area(curve: Curve, begin: float, end: float) -> float | None:
    """The curve's mean value from `begin` to `end`: `∫ y dx / (end − begin)`, the curve being straight between points.

    None where the curve does not cover that range, or the range is empty.
    """
    xs, ys = np.asarray(curve[0], float), np.asarray(curve[1], float)
    if len(xs) == 0 or begin >= end or xs[0] > begin or xs[-1] < end:
        return None
    inside = (xs > begin) & (xs < end)
    grid = np.concatenate([[begin], xs[inside], [end]])
    values = np.concatenate([[np.interp(begin, xs, ys)], ys[inside], [np.interp(end, xs, ys)]])
    return float(np.trapezoid(values, grid) / (end - begin))


def shared_range(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """From the last beginning to the first end of all curves; None where no range is shared by all."""
    if not curves or any(not xs for xs, _ in curves):
        return None
    begin, end = max(xs[0] for xs, _ in curves), min(xs[-1] for xs, _ in curves)
    return (begin, end) if begin < end else None


def mean_curve(curves: Sequence[Curve], points: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """x, mean and sample standard deviation over curves (0 for one curve), on the range that all of them share.

    At the points themselves where all curves have the same, and at `points` equally spaced ones, with the curves
    straight between theirs, otherwise.
    """
    range_ = shared_range(curves)
    if range_ is None:
        if not curves or any(list(xs) != list(curves[0][0]) or len(xs) != 1 for xs, _ in curves):
            return None
        grid = np.asarray(curves[0][0], float)  # one point, the same for all
    elif all(list(xs) == list(curves[0][0]) for xs, _ in curves):
        grid = np.asarray(curves[0][0], float)
    else:
        grid = np.linspace(*range_, points)
    values = np.stack([np.interp(grid, xs, ys) for xs, ys in curves])
    spread = values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros_like(grid)
    return grid, values.mean(axis=0), spread


def difference(ours: Mapping[Hashable, float], theirs: Mapping[Hashable, float]) -> Interval | None:
    """Mean of `ours` minus that of `theirs`, values by seed, with its interval; None where one has no values.

    Paired where at least two seeds are common to both: `d̄ ± t(n − 1) · s_d / √n` over their differences. Otherwise
    Welch's, over all values: `v̄₁ − v̄₂ ± t(ν) · √(s₁²/n₁ + s₂²/n₂)` with Welch's and Satterthwaite's degrees of
    freedom ν. A single value on one side has no interval.
    """
    if not ours or not theirs:
        return None
    common = [seed for seed in ours if seed in theirs]
    if len(common) > 1:
        return paired([ours[seed] for seed in common], [theirs[seed] for seed in common])
    return welch(list(ours.values()), list(theirs.values()))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Over at least two pairs; see `difference`."""
    differences = [0.0 if math.isclose(a, b, rel_tol=1e-12) else a - b for a, b in zip(ours, theirs, strict=True)]
    n, mean = len(differences), statistics.fmean(differences)
    half = t_quantile(n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def welch(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Over values that do not pair; see `difference`."""
    mean = statistics.fmean(ours) - statistics.fmean(theirs)
    if min(len(ours), len(theirs)) < 2:
        return Interval(mean, None, None, None)
    a, b = statistics.variance(ours) / len(ours), statistics.variance(theirs) / len(theirs)
    if a + b == 0:
        return Interval(mean, mean, mean, None)
    share = a / (a + b)
    freedom = 1 / (share**2 / (len(ours) - 1) + (1 - share) ** 2 / (len(theirs) - 1))
    half = t_quantile(freedom) * math.sqrt(a + b)
    return Interval(mean, mean - half, mean + half, None)


@lru_cache
def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """The t with `P(|T| ≤ t) = level` for Student's T with `freedom` > 0 degrees of freedom.

    `P(|T| ≤ t) = I_x(1/2, ν/2)` with `x = t² / (ν + t²)`, the regularised incomplete beta function, which rises with
    x: bisected to the last digit. Above ν = 10,000, where mpmath's series gives up, it is that of 10,000, which is
    larger by less than 0.02 %. (mpmath comes with torch, whose own StudentT has no quantiles.)
    """
    from mpmath import betainc

    freedom = min(freedom, 10_000)
    low, high = 0.0, 1.0
    while (x := (low + high) / 2) not in (low, high):
        if betainc(0.5, freedom / 2, 0, x, regularized=True) < level:
            low = x
        else:
            high = x
    return math.sqrt(freedom * x / (1 - x))
