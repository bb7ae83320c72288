"""Pictures of the metric over epochs, steps, images and seconds."""

from __future__ import annotations

from typing import Any

from ..experiments.drawing import panels
from ..safety.texts import printable
from .question import UNITS
from .series import COLOURS, DASHES, STYLES, Series, scale_of, series_of
from .summaries import Comparison

_LONGEST_NAME = 70


def curves_figure(comparison: Comparison, axis: str) -> Any:
    """A line for each group, the mean over its finished seeds, in a band of one standard deviation; single runs thin,
    a cross where a run diverged, the target dotted."""
    series = series_of(comparison, axis)
    scale = scale_of(comparison, series)
    figure, axes = panels(1, 1)
    panel = axes[0, 0]
    drawn = [(_draw(panel, one), one) for one in reversed(series)][::-1]  # the leader on top
    labels = [
        (line, f"{_short(one.name)} ({one.n})") for line, one in drawn if line is not None and one.style is not None
    ]
    question = comparison.question
    if question.target is not None:
        line = panel.axhline(question.target, color="0.35", linestyle=":", linewidth=1.2)
        labels.append((line, f"target {question.target:g}"))
    panel.set(
        xlabel="optimizer step" if axis == "step" else UNITS[axis],
        yscale="log" if scale.log else "linear",
        ylim=(scale.low, scale.high),
    )
    panel.set_ylabel(question.metric, parse_math=False)
    longest = max((len(text) for _, text in labels), default=0)  # inches a letter and a line of the legend take
    figure.set_size_inches(6.3 + 0.075 * longest, max(3.8, 0.6 + 0.165 * len(labels)))
    legend = figure.legend(
        [line for line, _ in labels],
        [f" {printable(text)}" for _, text in labels],  # matplotlib hides what begins with an underscore
        title=f"best {STYLES} of {len(series)} groups" if len(series) > STYLES else None,
        fontsize=8,
        handlelength=3.2,
        loc="outside right upper",
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _draw(panel: Any, series: Series) -> Any | None:
    """The group's line, if it has one."""
    colour = "0.75" if series.style is None else COLOURS[series.style % len(COLOURS)]
    dashes = () if series.style is None else DASHES[series.style // len(COLOURS)]
    for curve in series.single:
        panel.plot(*curve, color=colour, linewidth=0.6, alpha=0.45)
    for curve in series.diverged:
        panel.plot(*curve, color=colour, linewidth=0.8, linestyle="--", alpha=0.7)
        panel.plot(curve[0][-1], curve[1][-1], marker="x", markersize=8, markeredgewidth=2, color=colour)
    if series.band is None:
        return None
    xs, mean, spread = series.band
    (line,) = panel.plot(xs, mean, color=colour, linewidth=1.8, marker="." if len(xs) == 1 else None)
    if dashes:
        line.set_dashes(dashes)
    if series.n > 1 and series.style is not None:
        panel.fill_between(xs, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    return line


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
