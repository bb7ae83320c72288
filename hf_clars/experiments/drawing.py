"""What is shown of results: a table, and a picture of curves over the epochs and of layers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..errors import UserError
from ..image_classification.panels import (
    colours,
    draw_layers,
    has_statistic,
    logarithmic,
    name_layers,
    panels,
    percent,
    say_why_empty,
    whole_numbers,
    width_of_names,
)
from ..safety.texts import in_markdown
from ..trainer.callbacks.layer_statistics import STATISTICS
from .grid import Run
from .results import Result, grouped
from .schema import Drawing

_DASHES = ("-", "--", ":", "-.")
_NAMES = {  # of what is drawn; {} is the split that was evaluated on
    "loss": "training loss", "eval_loss": "{} loss", "eval_accuracy": "{} accuracy",
    "eval_top5_accuracy": "{} accuracy, top 5", "learning_rate": "γ_scale", "grad_norm": "‖g‖",
    "skipped_steps": "skipped steps",
}  # fmt: skip


def table(results: Sequence[tuple[Run, Result]]) -> str:
    """Markdown, a row for each group of runs that differ in their seed alone: mean ± standard deviation over seeds."""
    axes = [axis for axis in results[0][0].place if axis != "seed"]
    head = [
        *axes,
        "seeds",
        f"final {evaluated_split(results)} accuracy",
        "best",
        "training loss",
        "diverged",
        "s a run",
        "commit",
    ]
    rows = [[*map(in_markdown, head)], ["---"] * len(head)]
    for place, group in grouped(results, *axes).items():
        seeds = [result for _, result in group]
        done = [result for result in seeds if result.state == "finished"]
        final = [100 * r.final.get("eval_accuracy", math.nan) for r in done]
        best = [100 * max(r.points("eval_accuracy")[1], default=math.nan) for r in done]
        losses = [r.points("loss")[1][-1] for r in done if r.points("loss")[1]]
        cells = [
            *(in_markdown(str(value)) for value in place),
            str(len(seeds)),
            mean_and_deviation(final, 1, " %"),
            mean_and_deviation(best, 1, " %"),
            mean_and_deviation(losses, 3),
            str(len(seeds) - len(done)),
            f"{statistics.mean(r.seconds for r in seeds):.0f}",
            in_markdown(", ".join(sorted({r.commit for r in seeds}))),
        ]
        rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def mean_and_deviation(values: Sequence[float], digits: int, unit: str = "") -> str:
    """`86.8 ± 0.2 %`, or without the deviation for a single value; `–` for none."""
    numbers = [statistics.mean(values)] if values else []
    numbers += [statistics.stdev(values)] if len(values) > 1 else []
    texts = [f"{n:.{digits}f}" if n < 1e6 else f"{n:.2g}" for n in numbers]  # a loss may grow without bound
    return " ± ".join(texts) + unit if texts else "–"


def draw(drawing: Drawing, results: Sequence[tuple[Run, Result]]) -> Any:
    """A matplotlib figure; raises `UserError` where no result has records of layers that are to be drawn."""
    columns = grouped(results, *drawing.columns)
    if of_layers := [row for row in drawing.rows if row in STATISTICS]:
        columns = {key: group for key, group in columns.items() if any(r.records for _, r in group)}
        if not columns:
            raise UserError(f"no result has {STATISTICS[of_layers[0]]}: its runs need gradient_variance=eval or train")
    lines = list(grouped(results, *drawing.lines))
    split = evaluated_split(results)
    drawn = [r.records for group in columns.values() for _, r in group if of_layers and r.records]
    figure, axes = panels(len(drawing.rows), len(columns), 4.6 + width_of_names(drawn))
    labels: dict[str, Any] = {}
    for (place, group), column in zip(columns.items(), axes.T, strict=True):
        for row, axis in zip(drawing.rows, column, strict=True):
            name = STATISTICS[row] if row in STATISTICS else _NAMES[row].format(split)
            title = f"{_named(drawing.columns, place)}: {name}"
            if row in STATISTICS:
                recorded = [(run, result) for run, result in group if result.records]
                first = next((each for each in recorded if has_statistic(each[1].records, row)), recorded[0])
                draw_layers(axis, first[1].records, row, "epoch")
                name_layers(axis, first[1].records)
                title = ", ".join(
                    [title, *(_named(drawing.lines, line) for line in grouped([first], *drawing.lines) if line)]
                )
            else:
                for line, seeds in grouped(group, *drawing.lines).items():
                    style = {"label": _named(drawing.lines, line), **_style(lines, line)}
                    labels[style["label"]] = _draw_mean(axis, [r for _, r in seeds], row, **style)
                if not any(len(line.get_xdata()) for line in axis.lines):
                    say_why_empty(axis, f"no {'evaluation' if row.startswith('eval_') else name} was logged")
                elif row in ("loss", "eval_loss"):
                    logarithmic(axis)
                elif row.endswith("accuracy"):
                    percent(axis)
            if len(epochs := {x for line in axis.lines for x in line.get_xdata()}) == 1:
                axis.set_xticks([*epochs])
            elif epochs:
                whole_numbers(axis)
            axis.set_xlabel("epoch")
            axis.set_title(title, fontsize=9, parse_math=False)
    if drawing.lines and labels:
        for text in figure.legend(labels.values(), labels, loc="outside right upper", fontsize=7).get_texts():
            text.set_parse_math(False)
    return figure


def evaluated_split(results: Sequence[tuple[Run, Result]]) -> str:
    """What all of them say that they were evaluated on; `evaluation` where they do not, or differ."""
    splits = {run.settings.get("eval_split") for run, _ in results}
    return str(splits.pop()) if len(splits) == 1 and None not in splits else "evaluation"


def _named(axes: Sequence[str], values: tuple[Any, ...]) -> str:
    return ", ".join(v if isinstance(v, str) else f"{axis} = {v}" for axis, v in zip(axes, values, strict=True))


def _style(lines: Sequence[tuple[Any, ...]], line: tuple[Any, ...]) -> dict[str, Any]:
    """Colours are of the first axis' values, dashes of the second one's."""
    values = [list(dict.fromkeys(of_axis)) for of_axis in zip(*lines, strict=True)]
    colour, dash, *_ = *(of_axis.index(value) for of_axis, value in zip(values, line, strict=True)), 0, 0
    shades = colours(len(values[0]) if values else 1)
    return {"color": shades[colour], "linestyle": _DASHES[dash % len(_DASHES)]}


def _draw_mean(axis: Any, group: Sequence[Result], key: str, **style: Any) -> Any:
    """The mean over seeds, with a band of one standard deviation; a cross where a run diverged."""
    points = pd.DataFrame([p for r in group for p in zip(*r.points(key), strict=True)], columns=["x", "y"], dtype=float)
    values = points.groupby("x")["y"]
    mean, deviation = values.mean(), values.std(ddof=0)
    (line,) = axis.plot(mean.index, mean, marker="." if len(mean) == 1 else None, **style)
    if len(group) > 1:
        axis.fill_between(mean.index, mean - deviation, mean + deviation, color=style["color"], alpha=0.15)
    for xs, ys in (result.points(key) for result in group if result.state == "diverged"):
        axis.plot(xs[-1:], ys[-1:], marker="x", markersize=8, color=style["color"])
    return line
