"""Layers × steps of two runs: γ_k and M_k in colour, on one logarithmic scale for both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..safety.texts import printable
from ..trainer.callbacks.layer_statistics import STATISTICS
from .runs import ComparedRun
from .summaries import Comparison

DRAWN = ("gamma", "variance_factor")
_MOST_COLUMNS = 200


@dataclass(frozen=True)
class HeatMap:
    """One statistic of one run.

    Attributes:
        layers: names, from input to output where the run's records know that.
        steps: of the columns, equally spaced.
        values: `[layers, steps]`; NaN where there is none, or none that has a logarithm.
    """

    run: ComparedRun
    statistic: str
    layers: Sequence[str]
    steps: np.ndarray
    values: np.ndarray

    @property
    def symbol(self) -> str:
        return STATISTICS[self.statistic]


def runs_with_layers(comparison: Comparison, wanted: Sequence[str] | None = None) -> list[ComparedRun]:
    """The runs to draw: those wanted, by name or source; otherwise the best run of each of the two best groups of which
    a run has layer records.

    Raises:
        UserError: a run that is not there, a name that several runs have, or a run without layer records.
    """
    if wanted:
        return [_the_run(comparison, name) for name in wanted]
    sign = 1 if comparison.question.lower_is_better else -1
    best = []
    for group in comparison.groups:
        having = [summary for summary in group.finished or group.runs if summary.run.layers]
        if having:
            best.append(min(having, key=lambda s: sign * s.measures.get("final", math.nan)).run)
    return best[:2]


def heat_map(run: ComparedRun, statistic: str) -> HeatMap | None:
    """None where the run has no such records. At most 200 columns, each the record nearest to its step."""
    records = [r for r in run.layers if any(statistic in entry for entry in r["layers"].values())]
    if not records:
        return None
    having = {name for r in records for name, entry in r["layers"].items() if statistic in entry}
    layers = [name for name in dict.fromkeys(name for r in run.layers for name in r["layers"]) if name in having]
    found = np.asarray([r["step"] for r in records], float)
    order = np.argsort(found, kind="stable")
    found = found[order]
    steps = np.linspace(found[0], found[-1], min(len(found), _MOST_COLUMNS))
    nearest = [order[np.abs(found - step).argmin()] for step in steps]
    values = np.asarray([[_of(records[i], name, statistic) for i in nearest] for name in layers], float)
    return HeatMap(run, statistic, [printable(short(name)) for name in layers], steps, values)


def heat_maps(runs: Sequence[ComparedRun]) -> list[list[HeatMap]]:
    """A list for each statistic that a run has, of the runs' maps."""
    rows = [[m for run in runs if (m := heat_map(run, statistic)) is not None] for statistic in DRAWN]
    return [row for row in rows if row]


def value_range(maps: Sequence[HeatMap]) -> tuple[float, float]:
    """The smallest and largest value, which the colours of all maps of one statistic span."""
    values = np.concatenate([m.values[np.isfinite(m.values)] for m in maps])
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 10.0)
    return (low, high) if low < high else (low / 2, high * 2)


def layers_figure(rows: Sequence[Sequence[HeatMap]]) -> Any:
    """A row of panels for each statistic, a panel for each run."""
    from matplotlib import pyplot as plt
    from matplotlib.colors import LogNorm

    columns = max(len(row) for row in rows)
    height = max(3.2, 0.13 * max(len(m.layers) for row in rows for m in row) + 1)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(6.4 * columns, height * len(rows)), layout="constrained", squeeze=False
    )
    for panels_, row in zip(axes, rows, strict=True):
        low, high = value_range(row)
        for panel, one in zip(panels_, row, strict=False):
            half = (one.steps[-1] - one.steps[0]) / max(1, len(one.steps) - 1) / 2 or 0.5
            image = panel.imshow(
                one.values,
                norm=LogNorm(low, high),
                cmap="viridis",
                aspect="auto",
                interpolation="nearest",
                extent=(one.steps[0] - half, one.steps[-1] + half, len(one.layers) - 0.5, -0.5),
            )
            every = math.ceil(len(one.layers) / 60)
            panel.set_yticks(range(0, len(one.layers), every), one.layers[::every], fontsize=6, parse_math=False)
            panel.set_title(f"{one.symbol}: {printable(one.run.name)}", fontsize=9, parse_math=False)
            panel.set_xlabel("optimizer step")
            panel.set_facecolor("0.85")  # what was not measured
        for panel in panels_[len(row) :]:
            panel.remove()
        figure.colorbar(image, ax=[*panels_[: len(row)]], label=row[0].symbol)
    return figure


def short(name: str) -> str:
    """A parameter's name without what all have."""
    return name.removeprefix("timm_model.").removeprefix("model.").removesuffix(".weight")


def _of(record: dict[str, Any], name: str, statistic: str) -> float:
    value = record["layers"].get(name, {}).get(statistic, math.nan)
    return value if math.isfinite(value) and value > 0 else math.nan


def _the_run(comparison: Comparison, name: str) -> ComparedRun:
    path = str(Path(name))
    found = [s.run for s in comparison.runs if name == s.run.name or path in (s.run.source, str(Path(s.run.source)))]
    if not found:
        having = [s.run.name for s in comparison.runs if s.run.layers]
        listed = ", ".join(having[:20]) or "none"
        raise UserError(f"--layers {name}: no run has that name or path; those with layer records are {listed}")
    if len(found) > 1:
        raise UserError(f"--layers {name}: {len(found)} runs have that name; say it by path: {found[0].source}, …")
    if not found[0].layers:
        raise UserError(f"--layers {name}: that run has no layer records (layer_statistics_steps)")
    return found[0]
