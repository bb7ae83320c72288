"""Numbers for people."""

from __future__ import annotations

import math

from .statistics import Interval, Mean


def number(value: float, sign: bool = False) -> str:
    """With at most four digits behind the thousands, which are set apart; `+` in front with `sign`."""
    if not math.isfinite(value):
        return str(value)
    text = _fixed(value, _decimals(value, 4), sign)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def spread(mean: Mean | None) -> str:
    """`0.8683 ± 0.0021`: as many decimals as give the deviation two digits. `–` for nothing; a single value alone."""
    if mean is None:
        return "–"
    if not mean.std:  # one value, or all the same
        return number(mean.mean) + ("" if mean.std is None else " ± 0")
    decimals = _decimals(mean.std, 2)
    return f"{_fixed(mean.mean, decimals)} ± {_fixed(mean.std, decimals)}"


def interval_numbers(interval: Interval) -> list[str]:
    """`+1.50`, `+0.91`, `+2.09`: the difference and its bounds; half the width has two digits."""
    if interval.low is None or interval.high is None or interval.low == interval.high:
        return [number(interval.difference, sign=True)]
    decimals = _decimals((interval.high - interval.low) / 2, 2)
    return [_fixed(value, decimals, sign=True) for value in (interval.difference, interval.low, interval.high)]


def short_interval(interval: Interval) -> str:
    """`+1.50 [+0.91, +2.09] n=3`, or `W` in place of n for Welch's."""
    middle, *bounds = interval_numbers(interval)
    of = "W" if interval.pairs is None else f"n={interval.pairs}"
    if bounds:
        return f"{middle} [{', '.join(bounds)}] {of}"
    return middle if interval.low is None else f"{middle} {of}"


def _decimals(value: float, digits: int) -> int:
    """Of a number with so many significant digits; not more than eight."""
    return 0 if value == 0 else max(0, min(8, digits - 1 - math.floor(math.log10(abs(value)))))


def _fixed(value: float, decimals: int, sign: bool = False) -> str:
    text = f"{value:{'+' if sign else ''},.{decimals}f}"
    if decimals and not any(digit in text for digit in "123456789") and value:
        return f"{value:{'+' if sign else ''}.3g}"  # smaller than the decimals show
    return text
