"""The report's pictures as plain data for its template: positions in per cent, SVG paths, one pixel a cell.

Lines are drawn in a square of 1000 × 1000 that is stretched to the width of the screen; words are HTML beside it, at
positions in per cent, so that they stay readable on a phone and have the page's colours.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .heat_maps import HeatMap, value_range
from .question import UNITS
from .series import COLOURS, DASHES, Scale, Series, scale_of, series_of
from .summaries import Comparison
from .tables import finite
from .words import number

_SIDE = 1000


def chart(comparison: Comparison, axis: str) -> dict[str, Any]:
    """The curves over one axis: ticks, paths, and the values that the page shows where it is pointed at."""
    series = series_of(comparison, axis)
    scale = scale_of(comparison, series)
    ends = [(curve[0][0], curve[0][-1]) for s in series for curve in (*s.single, *s.diverged)]
    ends += [(s.band[0][0], s.band[0][-1]) for s in series if s.band is not None]
    left, right = float(min(end[0] for end in ends)), float(max(end[1] for end in ends))
    if left == right:
        left, right = left - 0.5, right + 0.5
    place = _Place(left, right, scale)
    target = comparison.question.target
    return {
        "axis": axis,
        "unit": "optimizer steps" if axis == "step" else UNITS[axis],
        "x_ticks": [{"at": 100 * (x - left) / (right - left), "text": brief(x)} for x in _ticks(left, right)],
        "y_ticks": [{"at": place.y(y) / _SIDE * 100, "text": brief(y)} for y in _value_ticks(scale)],
        "target": None if target is None else place.y(target) / _SIDE * 100,
        "series": [_drawn(s, place) for s in reversed(series)],  # the leader on top
        "data": {
            "left": left,
            "right": right,
            "unit": UNITS[axis],
            "series": [
                {"name": s.name, "style": s.style, "x": _rounded(s.band[0]), "mean": _rounded(s.band[1])}
                | ({"std": _rounded(s.band[2])} if s.n > 1 else {})
                for s in series
                if s.band is not None and s.style is not None
            ],
        },
    }


def style(index: int | None) -> dict[str, Any]:
    """Of a group's line: the number of its colour in the page's style sheet, and its dashes."""
    if index is None:
        return {"index": -1, "colour": "rest", "dashes": ""}
    dashes = DASHES[index // len(COLOURS)]
    return {"index": index, "colour": index % len(COLOURS), "dashes": " ".join(map(str, dashes))}


def heat(row: Sequence[HeatMap]) -> dict[str, Any]:
    """The maps of one statistic, with the scale of colours that they share."""
    from matplotlib.colors import LogNorm
    from matplotlib.pyplot import get_cmap

    low, high = value_range(row)
    norm, colours = LogNorm(low, high), get_cmap("viridis")
    span = math.log10(high / low)
    ticks = [tick for tick in _log_ticks(low, high) if low <= tick <= high]
    return {
        "symbol": row[0].symbol,
        "gradient": ", ".join(_hex(colours(i / 12)) for i in range(13)),
        "ticks": [{"at": 100 * math.log10(tick / low) / span, "text": brief(tick)} for tick in ticks],
        "maps": [_heat_map(one, norm, colours) for one in row],
    }


def _heat_map(one: HeatMap, norm: Any, colours: Any) -> dict[str, Any]:
    from PIL import Image

    pixels = (colours(norm(np.ma.masked_invalid(one.values))) * 255).round().astype(np.uint8)
    pixels[~np.isfinite(one.values)] = 0  # transparent
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    first, last = float(one.steps[0]), float(one.steps[-1])
    height = max(3.0, min(15.0, 900 / len(one.layers)))  # pixels a layer
    every = math.ceil(13 / height)  # a word is 13 pixels high
    columns = len(one.steps)
    inner = [tick for tick in _ticks(first, last, 4) if first <= tick <= last] if last > first else [first]
    return {
        "run": one.run.name,
        "image": base64.b64encode(file.getvalue()).decode(),
        "height": round(height * len(one.layers)),
        "layers": [
            {"name": name, "at": 100 * (k + 0.5) / len(one.layers)}
            for k, name in enumerate(one.layers)
            if k % every == 0
        ],
        "ticks": [
            {
                "at": 100 * ((tick - first) / (last - first) * (columns - 1) + 0.5) / columns if last > first else 50,
                "text": brief(tick),
            }
            for tick in inner
        ],
        "data": {
            "layers": list(one.layers),
            "steps": [round(float(step)) for step in one.steps],
            "values": [[None if math.isnan(v) else float(f"{v:.3g}") for v in row] for row in one.values],
        },
    }


class _Place:
    """From values to places in the square."""

    def __init__(self, left: float, right: float, scale: Scale) -> None:
        self._left, self._width = left, right - left
        self._log = scale.log
        self._low = math.log10(scale.low) if scale.log else scale.low
        self._height = (math.log10(scale.high) if scale.log else scale.high) - self._low

    def x(self, value: float) -> float:
        return _SIDE * (value - self._left) / self._width

    def y(self, value: float) -> float:
        if self._log:
            value = math.log10(value) if value > 0 else -99.0
        return _SIDE * (1 - (value - self._low) / self._height)

    def path(self, xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray) -> str:
        # Far outside is as good as further: what diverged may be at 1e30.
        points = (
            f"{self.x(float(x)):.4g},{max(-9e3, min(9e3, self.y(float(y)))):.4g}" for x, y in zip(xs, ys, strict=True)
        )
        return "M" + "L".join(points)


def _drawn(series: Series, place: _Place) -> dict[str, Any]:
    drawn: dict[str, Any] = {"style": style(series.style), "name": series.name}
    drawn["single"] = [place.path(*curve) for curve in series.single]
    drawn["diverged"] = [place.path(*curve) for curve in series.diverged]
    drawn["crosses"] = [
        {"x": place.x(xs[-1]) / _SIDE * 100, "y": min(100, max(0, place.y(ys[-1]) / _SIDE * 100))}
        for xs, ys in series.diverged
    ]
    if series.band is not None:
        xs, mean, spread = series.band
        drawn["line"] = place.path(xs, mean)
        if len(xs) == 1:
            drawn["point"] = {"x": place.x(float(xs[0])) / _SIDE * 100, "y": place.y(float(mean[0])) / _SIDE * 100}
        if series.n > 1 and series.style is not None:
            drawn["band"] = f"{place.path(xs, mean + spread)}L{place.path(xs[::-1], (mean - spread)[::-1])[1:]}Z"
    return drawn


def brief(value: float) -> str:
    """`0.75`, `1,200`, `40k`, `1.5M`, `1e-4`: for ticks."""
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    for unit, letter in ((1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / (1e3 if letter == 'k' else unit):.4g}{letter}"
    return number(value)


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in found if low <= tick <= high]


def _value_ticks(scale: Scale) -> list[float]:
    ticks = _log_ticks(scale.low, scale.high) if scale.log else _ticks(scale.low, scale.high)
    return [tick for tick in ticks if scale.low <= tick <= scale.high]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, or also twice and five times these where there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1.0,) if len(exponents) > 4 else (1.0, 2.0, 5.0)
    every = math.ceil(len(exponents) / 8)
    return [float(f"{factor}e{exponent}") for exponent in exponents if exponent % every == 0 for factor in factors]


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour[:3])


def _rounded(values: Any) -> list[float | None]:
    return finite([float(f"{value:.5g}") for value in values])
