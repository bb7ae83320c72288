"""The picture of a sweep's results: curves over the epochs, with seeds as a band, and lines of layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .. import plots
from ..errors import UserError
from ..plots import draw_layers, panels
from ..training.statistics import STATISTICS
from .grid import Run
from .results import Result, grouped
from .schema import Drawing

_DASHES = ("-", "--", ":", "-.")


def draw(drawing: Drawing, results: Sequence[tuple[Run, Result]]) -> Any:
    """A matplotlib figure; raises `UserError` where no result has records of layers that are to be drawn."""
    columns = grouped(results, *drawing.columns)
    if of_layers := [row for row in drawing.rows if row in STATISTICS]:
        columns = {key: group for key, group in columns.items() if any(r.records for _, r in group)}
        if not columns:
            raise UserError(f"no result has {STATISTICS[of_layers[0]]}: its runs need gradient_variance=eval or train")
    lines = list(grouped(results, *drawing.lines))
    figure, axes = panels(len(drawing.rows), len(columns))
    labels: dict[str, Any] = {}
    for (place, group), column in zip(columns.items(), axes.T, strict=True):
        for row, axis in zip(drawing.rows, column, strict=True):
            title = f"{_named(drawing.columns, place)}: {STATISTICS.get(row, row)}"
            if row in STATISTICS:
                first = next((run, result) for run, result in group if result.records)
                draw_layers(axis, first[1].records, row, "epoch")
                axis.legend(fontsize=7, title="input → output", title_fontsize=7)
                title = ", ".join(
                    [title, *(_named(drawing.lines, line) for line in grouped([first], *drawing.lines) if line)]
                )
            else:
                for line, seeds in grouped(group, *drawing.lines).items():
                    style = {"label": _named(drawing.lines, line), **_style(lines, line)}
                    labels[style["label"]] = _draw_mean(axis, [r for _, r in seeds], row, **style)
            logarithmic = row in ("loss", "eval_loss", *STATISTICS) and axis.lines
            axis.set(xlabel="epoch", yscale="log" if logarithmic else "linear")
            axis.set_title(title, fontsize=9, parse_math=False)
    if drawing.lines:
        figure.legend(labels.values(), labels, loc="outside right upper", fontsize=7)
    return figure


def _named(axes: Sequence[str], values: tuple[Any, ...]) -> str:
    return ", ".join(v if isinstance(v, str) else f"{axis} = {v}" for axis, v in zip(axes, values, strict=True))


def _style(lines: Sequence[tuple[Any, ...]], line: tuple[Any, ...]) -> dict[str, Any]:
    """Colours are of the first axis' values, dashes of the second one's."""
    values = [list(dict.fromkeys(of_axis)) for of_axis in zip(*lines, strict=True)]
    colour, dash, *_ = *(of_axis.index(value) for of_axis, value in zip(values, line, strict=True)), 0, 0
    return {"color": f"C{colour % 10}", "linestyle": _DASHES[dash % len(_DASHES)]}


def _draw_mean(axis: Any, group: Sequence[Result], key: str, **style: Any) -> Any:
    """The mean over seeds, with a band of one standard deviation; a cross where a run diverged."""
    points = pd.DataFrame([p for r in group for p in zip(*r.points(key), strict=True)], columns=["x", "y"])
    values = points.groupby("x")["y"]
    mean, deviation = values.mean(), values.std(ddof=0)
    (line,) = axis.plot(mean.index, mean, **style)
    if len(group) > 1:
        axis.fill_between(mean.index, mean - deviation, mean + deviation, color=style["color"], alpha=0.15)
    for xs, ys in (result.points(key) for result in group if result.state == "diverged"):
        axis.plot(xs[-1:], ys[-1:], marker="x", markersize=8, color=style["color"])
    return line


def save(figure: Any, stem: Path) -> list[Path]:
    """As PNG and SVG; closes the figure."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    return [plots.save(figure, stem.with_suffix(kind)) for kind in (".png", ".svg")]
