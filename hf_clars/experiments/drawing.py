"""What pictures and tables of results have in common: groups of runs, curves with seeds as a band, panels."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..safety.texts import in_markdown
from .grid import Run
from .results import Result

Results = Sequence[tuple[Run, Result]]


_LARGE = 1e6  # a loss that grew without bound, and stayed finite


def table(results: Results) -> str:
    """A Markdown row for each place of the grid but its seeds: accuracies as mean ± standard deviation over seeds."""
    axes = [axis for axis in results[0][0].place if axis != "seed"]
    head = [*axes, "seeds", "final test accuracy", "best", "training loss", "diverged", "s a run", "commit"]
    rows = [[*map(in_markdown, head)], ["---"] * len(head)]
    for place, group in groups_of(results, *axes):
        done = [r for r in group if r.state == "finished"]
        losses = [r.points("loss")[1][-1] for r in done if r.points("loss")[1]]
        rows.append(
            [
                *(in_markdown(str(value)) for value in place),
                str(len(group)),
                mean_and_deviation([r.final.get("eval_accuracy", math.nan) for r in done], percent=True),
                mean_and_deviation([r.best() for r in done], percent=True),
                mean_and_deviation(losses),
                str(len(group) - len(done)),
                f"{statistics.mean(r.seconds for r in group):.0f}",
                in_markdown(", ".join(sorted({r.commit for r in group}))),
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def mean_and_deviation(values: Sequence[float], percent: bool = False) -> str:
    """`86.8 ± 0.2 %`, or without the deviation for a single value; `–` for none."""
    if not values:
        return "–"
    scale, digits, unit = (100, 1, " %") if percent else (1, 3, "")
    numbers = [statistics.mean(values) * scale, *([statistics.stdev(values) * scale] if len(values) > 1 else [])]
    return " ± ".join(f"{n:.{digits}f}" if n < _LARGE else f"{n:.2g}" for n in numbers) + unit


def draw_mean(axis: Any, group: Sequence[Result], key: str, **style: Any) -> None:
    """The mean over seeds, with a band of one standard deviation; a cross where a run diverged."""
    at: dict[float, list[float]] = defaultdict(list)
    for result in group:
        for x, y in zip(*result.points(key), strict=True):
            at[x].append(y)
    xs = sorted(at)
    axis.plot(xs, [statistics.mean(at[x]) for x in xs], **style)
    if len(group) > 1:
        band = [(statistics.mean(at[x]), statistics.pstdev(at[x])) for x in xs]
        axis.fill_between(xs, [m - s for m, s in band], [m + s for m, s in band], color=style["color"], alpha=0.15)
    for result in group:
        points = result.points(key)
        if result.state == "diverged" and points[0]:
            axis.plot(points[0][-1], points[1][-1], marker="x", markersize=8, color=style["color"])


def values_of(results: Results, axis: str) -> list[Any]:
    """The values that an axis takes, in their order."""
    return list(dict.fromkeys(run.place[axis] for run, _ in results))


def groups_of(results: Results, *axes: str, **place: Any) -> Iterable[tuple[tuple[Any, ...], list[Result]]]:
    """Results by their values of `axes`, of those at `place`."""
    groups: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
    for run, result in results:
        if all(run.place[axis] == value for axis, value in place.items()):
            groups[tuple(run.place[axis] for axis in axes)].append(result)
    return groups.items()


def panels(rows: int, columns: int, width: float = 4.6) -> tuple[Any, Any]:
    """A figure and its axes, `[rows, columns]`."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, 3.6 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    return figure, axes


def colour(value: float) -> Any:
    """Of viridis, from 0 (dark) to 1 (light)."""
    from matplotlib import pyplot as plt

    return plt.get_cmap("viridis")(value)


def save(figure: Any, stem: Path) -> list[Path]:
    """As PNG and SVG; closes the figure."""
    from matplotlib import pyplot as plt

    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_suffix(kind) for kind in (".png", ".svg")]
    for path in paths:
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return paths
