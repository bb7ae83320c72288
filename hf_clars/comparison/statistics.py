"""What is computed of curves (Series whose index increases) and over seeds, and how such numbers read: pure functions.

Spread over seeds is the sample standard deviation `s = √(Σ (v_i − v̄)² / (n − 1))`; intervals are Student's, two-sided.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pandas import DataFrame, Series

LEVEL = 0.95  # of the intervals


@dataclass(frozen=True)
class Interval:
    """A mean difference, its confidence interval (None where one seed says nothing of the spread), and the seed pairs
    that it is computed over (None where seeds do not pair)."""

    difference: float
    low: float | None
    high: float | None
    pairs: int | None

    def times(self, factor: float) -> "Interval":
        """In another unit."""
        low, high = (bound if bound is None else bound * factor for bound in (self.low, self.high))
        return Interval(self.difference * factor, low, high, self.pairs)


def spread_of(values: Iterable[float]) -> dict[str, float]:
    """NaN where there are none, or is no second one. (pandas' are a rounding error away from 0 where all are alike.)"""
    values = [value for value in values if not math.isnan(value)]
    mean = statistics.fmean(values) if values else math.nan
    return {"mean": mean, "std": statistics.stdev(values) if len(values) > 1 else math.nan, "n": len(values)}


def first_reaching(curve: Series, target: float, lower_is_better: bool) -> float:
    """x of the first point that has reached the target; NaN if none has. It was measured, and is not interpolated:
    what the curve does between evaluations nobody knows."""
    reached = curve.index[(curve <= target) if lower_is_better else (curve >= target)]
    return float(reached[0]) if len(reached) else math.nan


def area(curve: Series, begin: float, end: float) -> float:
    """The curve's mean value from `begin` to `end`: `∫ y dx / (end − begin)`, the curve being straight between points.
    NaN where the curve does not cover that range, or the range is empty."""
    xs = curve.index.to_numpy(float)
    if len(xs) == 0 or begin >= end or xs[0] > begin or xs[-1] < end:
        return math.nan
    grid = np.concatenate([[begin], xs[(xs > begin) & (xs < end)], [end]])
    return float(np.trapezoid(np.interp(grid, xs, curve), grid) / (end - begin))


def shared_range(curves: Sequence[Series]) -> tuple[float, float] | None:
    """From the last beginning to the first end of all curves; None where no range is shared by all."""
    begin = max((curve.index[0] for curve in curves), default=0.0)
    end = min((curve.index[-1] for curve in curves), default=0.0)
    return (float(begin), float(end)) if begin < end else None


def mean_curve(curves: Sequence[Series], points: int = 200) -> DataFrame | None:
    """`mean` and sample standard deviation `std` over curves (0 for one curve), on the range that all of them share: at
    their own points where these are the same, else at so many equally spaced ones, the curves straight in between."""
    if not curves:
        return None
    grid = curves[0].index
    if not all(curve.index.equals(grid) for curve in curves):
        range_ = shared_range(curves)
        if range_ is None:
            return None
        grid = np.linspace(*range_, points)
    values = DataFrame({number: np.interp(grid, c.index, c) for number, c in enumerate(curves)}, index=grid)
    return DataFrame({"mean": values.mean(axis=1), "std": values.std(axis=1) if len(curves) > 1 else 0.0})


def difference(ours: Series, theirs: Series) -> Interval | None:
    """Mean of `ours` minus that of `theirs`, values by seed, with its interval; None where one has no values.

    Paired where at least two seeds are common to both: `d̄ ± t(n − 1) · s_d / √n` over their differences. Otherwise
    Welch's, over all values: `v̄₁ − v̄₂ ± t(ν) · √(s₁²/n₁ + s₂²/n₂)` with Welch's and Satterthwaite's ν. A single value
    on one side has no interval. Seeds that are not known, or not unique, do not pair.
    """
    if ours.empty or theirs.empty:
        return None
    pair = all(side.index.is_unique and side.index.notna().all() for side in (ours, theirs))
    common = ours.index.intersection(theirs.index, sort=False) if pair else []
    if len(common) > 1:
        values = zip(ours[common], theirs[common], strict=True)
        differences = [0.0 if math.isclose(a, b, rel_tol=1e-12) else a - b for a, b in values]
        mean, freedom, pairs = statistics.fmean(differences), len(common) - 1.0, len(common)
        error = statistics.stdev(differences) / math.sqrt(len(common))
    else:
        mean, pairs = statistics.fmean(ours) - statistics.fmean(theirs), None
        if min(len(ours), len(theirs)) < 2:
            return Interval(mean, None, None, None)
        a, b = (statistics.variance(side) / len(side) for side in (ours, theirs))
        error, share = math.sqrt(a + b), a / (a + b) if a + b else 1.0
        freedom = 1 / (share**2 / (len(ours) - 1) + (1 - share) ** 2 / (len(theirs) - 1))
    half = t_quantile(freedom) * error
    return Interval(mean, mean - half, mean + half, pairs)


@lru_cache
def t_quantile(freedom: float, level: float = LEVEL) -> float:
    """The t with `P(|T| ≤ t) = level` for Student's T with `freedom` > 0 degrees of freedom.

    `P(|T| ≤ t) = I_x(1/2, ν/2)` with `x = t² / (ν + t²)`, the regularised incomplete beta function, which rises with
    x: bisected to the last digit. Above ν = 10,000, where mpmath's series gives up, it is that of 10,000, larger by
    less than 0.02 %. (mpmath comes with torch; scipy, which has quantiles, with nothing that training needs.)
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


def number(value: float, sign: str = "") -> str:
    """Four digits, or all before the point, the thousands set apart; `+` in front with that `sign`; `–` for none."""
    if math.isnan(value):
        return "–"
    return f"{value:{sign},.0f}" if 1000 <= abs(value) < 1e15 else f"{value:{sign}.4g}"


def spread(mean: float, std: float) -> str:
    """`0.8683 ± 0.0021`; a single value, which has no deviation, alone."""
    if std == 0 or math.isnan(std):
        return f"{number(mean)} ± 0" if std == 0 else number(mean)
    return " ± ".join(_as_precise([mean, std], std))


def interval_numbers(interval: Interval) -> list[str]:
    """`+1.50`, `+0.91`, `+2.09`: the difference and its bounds, where it has some."""
    if interval.low is None or interval.high is None or interval.low == interval.high:
        return [number(interval.difference, "+")]
    values = [interval.difference, interval.low, interval.high]
    return _as_precise(values, (interval.high - interval.low) / 2, "+")


def short_interval(interval: Interval) -> str:
    """`+1.50 [+0.91, +2.09] n=3`, or `W` in place of n for Welch's."""
    middle, *bounds = interval_numbers(interval)
    between = f" [{', '.join(bounds)}]" if bounds else ""
    of = "" if interval.low is None else " W" if interval.pairs is None else f" n={interval.pairs}"
    return middle + between + of


def _as_precise(values: Iterable[float], precision: float, sign: str = "") -> list[str]:
    """With as many decimals as give `precision` two digits."""
    if precision < 1e-8:
        return [f"{value:{sign}.4g}" for value in values]
    return [f"{value:{sign},.{max(0, 1 - math.floor(math.log10(precision)))}f}" for value in values]
