"""One way to pictures: figures of matplotlib, saved as files or written into the report's page."""

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pandas import DataFrame, Series

from ..errors import UserError
from ..image_classification.panels import (
    COLOURS,
    WHY_EMPTY,
    percent,
    plain_powers,
    say_why_empty,
    short_name,
    spans_magnitudes,
    whole_numbers,
)
from ..safety.texts import printable
from ..trainer.callbacks.layer_statistics import STATISTICS
from .analysis import Comparison
from .axes import AXES
from .runs import ComparedRun, listed
from .statistics import mean_curve

_DASHES = ((), (6, 3), (1.5, 2.5), (8, 3, 1.5, 3))
STYLES = len(COLOURS) * len(_DASHES)
_REST, _INK, _LINES = "#b4bac1", "#010203", "#040506"
_VARIABLES = {colour: f"var(--c-{i})" for i, colour in enumerate(COLOURS)}  # the page's own, others in the dark
_VARIABLES |= {_REST: "var(--c-rest)", _INK: "var(--text)", _LINES: "var(--line)"}
_ON_A_PAGE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    "grid.color": _LINES, "svg.fonttype": "none", "svg.hashsalt": "hf_clars",
}  # fmt: skip

_LONGEST_NAME = 70
_MOST_POINTS = 200  # of a line, and columns of layers: a picture has no more
_MOST_SINGLE_RUNS = 60
_LAYERS = ("gamma", "variance_factor")


def save(figure: Any | None, stem: Path) -> list[Path]:
    """As PNG and SVG; the same figure makes the same files. For none, removes those of an earlier one."""
    from matplotlib import rc_context

    paths = [stem.with_suffix(kind) for kind in (".png", ".svg")]
    for path in paths:
        if figure is None:
            path.unlink(missing_ok=True)
        else:
            with rc_context({"svg.hashsalt": "hf_clars"}):
                figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    return [] if figure is None else paths


def on_page(draw: Callable[[], Any], name: str) -> str:
    """The figure's SVG as a part of a page; "" for none. Words stay words, in escaped text. Ids begin with `name`, so
    that those of several figures are apart."""
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context(_ON_A_PAGE):
        figure = draw()
        if figure is None:
            return ""
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    head, svg = re.split(r"(?<=>)", file.getvalue()[file.getvalue().index("<svg") :], maxsplit=1)
    (view,) = re.findall(r'viewBox="[\d. ]+"', head)
    svg = re.sub(r' id="image\w+"', "", svg)  # which equal pictures have in common
    svg = re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>{name}-", svg).replace("xlink:href", "href")
    svg = re.sub("|".join(_VARIABLES), lambda found: _VARIABLES[found[0]], svg)
    return f'<svg {view} aria-hidden="true">{svg}'


def curves_figure(comparison: Comparison, axis: str) -> Any:
    """A line for each group, the mean over its finished seeds, in a band of one standard deviation; single runs thin
    where there are few, a cross where a run diverged, the target dotted.

    The picture shows all that finished runs measured; what diverged may leave it. It is logarithmic where lower is
    better and the means are positive and a factor of 20 apart.
    """
    from matplotlib.figure import Figure

    question, finished = comparison.question, comparison.groups["finished"]
    figure = Figure(layout="constrained")
    panel = figure.subplots()
    few = len(comparison.runs) <= _MOST_SINGLE_RUNS or not finished.any()
    curves = {group: comparison.curves(group, axis) for group in finished.index}
    bands = {group: band for group, of_group in curves.items() if (band := mean_curve(of_group)) is not None}
    means = np.concatenate([band["mean"] for band in bands.values()] or [[0.0]])
    log = question.lower_is_better and spans_magnitudes(means)
    colours = {group: COLOURS[place % len(COLOURS)] for place, group in enumerate(finished.index[:STYLES])}
    dashes = {group: _DASHES[place // len(COLOURS)] for place, group in enumerate(colours)}
    lines: dict[str, Any] = {}

    def plot(group: str, curve: Series, **style: Any) -> Any:
        shown = np.unique(np.linspace(0, len(curve) - 1, min(len(curve), _MOST_POINTS)).round().astype(int))
        return panel.plot(curve.index[shown], curve.iloc[shown], color=colours.get(group, _REST), **style)[0]

    for group in reversed(finished.index):  # the leader on top
        for curve in curves[group] if few and (len(curves[group]) > 1 or group not in bands) else []:
            plot(group, curve, linewidth=0.6, alpha=0.45)
        if group in bands:
            mean, std = bands[group]["mean"], bands[group]["std"]
            lines[group] = plot(group, mean, linewidth=1.8, marker="." if len(mean) == 1 else None)
            lines[group].set_dashes(dashes.get(group) or (None, None))
            if std.any() and group in colours:
                low = (mean - std).clip(lower=means.min() / 2) if log else mean - std
                panel.fill_between(mean.index, low, mean + std, color=colours[group], alpha=0.15, linewidth=0)
    short = {g: printable(g if len(g) <= _LONGEST_NAME else f"{g[: _LONGEST_NAME - 1]}…") for g in colours}
    labels = {group: f"{name} ({finished[group]})" for group, name in short.items()}
    if question.target is not None:
        lines[""] = panel.axhline(question.target, color=panel.yaxis.label.get_color(), linestyle=":", linewidth=1.2)
        labels[""] = f"target {question.target_text}"
    panel.set_yscale("log" if log else "linear")
    limits = panel.get_ylim()
    crosses: list[Any] = []
    for group in finished.index if few else []:
        for curve in comparison.curves(group, axis, "diverged"):
            plot(group, curve, linewidth=0.8, linestyle="--", alpha=0.7)
            end = curve.iloc[-1:].clip(*limits) if finished.any() else curve.iloc[-1:]  # at the edge if it left
            crosses.append(plot(group, end, marker="x", markersize=8, markeredgewidth=2, clip_on=False))
            lines.setdefault(group, crosses[-1])
    if finished.any():
        panel.set_ylim(limits)
    panel.grid(alpha=0.5)
    panel.set_xlabel("optimizer step" if axis == "step" else AXES[axis])
    panel.set_ylabel(printable(comparison.metric_text), parse_math=False)
    if axis in ("step", "images"):
        whole_numbers(panel)
    if question.percent:
        percent(panel)
    shown = [(lines[group], f" {text}") for group, text in labels.items() if group in lines]  # a `_` would hide it
    if crosses:
        (cross,) = panel.plot([], [], color=panel.yaxis.label.get_color(), linestyle="--", linewidth=0.8, marker="x")
        shown.append((cross, " diverged"))
    longest = max((len(text) for _, text in shown), default=0)  # inches a letter and a line of the legend take
    figure.set_size_inches(6.3 + 0.075 * longest, max(3.8, 0.6 + 0.165 * len(shown)))
    title = f"best {STYLES} of {len(finished)} groups" if len(finished) > STYLES else "group (finished runs)"
    style = {"title": title, "loc": "outside right upper", "frameon": False, "fontsize": 8, "handlelength": 3.2}
    for text in figure.legend(*map(list, zip(*shown, strict=True)), **style).get_texts() if shown else ():
        text.set_parse_math(False)
    return figure


def runs_with_layers(comparison: Comparison, wanted: Sequence[str] | None = None) -> list[ComparedRun]:
    """The runs to draw: those wanted, by name or source; otherwise the best run of each of the two best groups of which
    a run has layer records. A `UserError` for a run that is not there, or has none, or a name that several have."""
    runs = comparison.runs[comparison.runs["run"].map(lambda run: bool(run.layers)).astype(bool)]
    chosen = []
    for name in wanted or ():
        found = [
            r for r in comparison.runs["run"] if name == r.name or Path(name) == Path(r.source) or name == r.source
        ]
        if not found:
            there = listed(list(runs["name"]), 20) or "none"
            raise UserError(f"--layers {name}: no run has that name or path; those with layer records are {there}")
        if len(found) > 1:
            raise UserError(f"--layers {name}: {len(found)} runs have that name; say it by path: {found[0].source}, …")
        if not found[0].layers:
            raise UserError(f"--layers {name}: that run has no layer records (layer_statistics_steps)")
        chosen += found
    runs = runs.assign(open=runs["state"] != "finished", place=runs["final"] * comparison.question.sign)
    best = runs.sort_values(["open", "place"], kind="stable").groupby("group")["run"].first()
    return chosen or [best[group] for group in comparison.groups.index if group in best][:2]


def layers_figure(runs: Sequence[ComparedRun]) -> Any | None:
    """γ_k and M_k of layers × steps in colour: a row of panels for each of them that a run has, on one logarithmic
    scale, and in it a panel for each run, which says so where the run has none; None where there is nothing to draw."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    drawn = {s: {run: _on_a_grid(run.layers[s]) for run in runs if s in run.layers} for s in _LAYERS}
    rows = {statistic: row for statistic, row in drawn.items() if row}
    if not rows:
        return None
    grids = [values for row in rows.values() for values in row.values()]
    height = max(3.2, 0.13 * max(map(len, grids)) + 1)
    width = 4.4 + 0.06 * max(len(name) for values in grids for name in values.index)  # inches a letter takes
    figure = Figure(figsize=(1 + width * len(runs), height * len(rows)), layout="constrained")
    of_rows = figure.subplots(len(rows), len(runs), squeeze=False)
    for panels, (statistic, row) in zip(of_rows, rows.items(), strict=True):
        measured = np.concatenate([values.to_numpy().ravel() for values in row.values()])
        measured = measured[np.isfinite(measured)]
        low, high = (measured.min(), measured.max()) if len(measured) else (1.0, 10.0)
        norm = LogNorm(low, high) if low < high else LogNorm(low / 2, high * 2)
        for panel, run in zip(panels, runs, strict=True):
            panel.set_title(f"{STATISTICS[statistic]}: {printable(run.name)}", fontsize=9, parse_math=False)
            if (values := row.get(run)) is None:
                say_why_empty(panel, WHY_EMPTY[statistic])
                continue
            layers, steps = values.index, values.columns
            half = (steps[-1] - steps[0]) / max(1, len(steps) - 1) / 2 or 0.5
            extent = (steps[0] - half, steps[-1] + half, len(layers) - 0.5, -0.5)
            image = panel.imshow(values, norm=norm, cmap="viridis", aspect="auto", interpolation="none", extent=extent)
            every = math.ceil(len(layers) / 60)
            panel.set_yticks(range(0, len(layers), every), layers[::every], fontsize=7, parse_math=False)
            panel.set_xlabel("optimizer step")
            whole_numbers(panel)
            panel.set_facecolor("0.85")  # what was not measured
        plain_powers(figure.colorbar(image, ax=[*panels], label=STATISTICS[statistic]).ax)
    return figure


def _on_a_grid(records: DataFrame) -> DataFrame:
    """A row for each layer, without what all names have; a column for the record nearest to each of so many steps."""
    records = records.where(np.isfinite(records) & (records > 0))  # what has a logarithm
    records.columns = [short_name(name) for name in records]
    steps = np.linspace(records.index[0], records.index[-1], min(len(records), _MOST_POINTS))
    return records.reindex(steps, method="nearest").T
