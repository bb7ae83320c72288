"""What a tuned comparison shows: how each method did, and how much the tuning mattered to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..safety.texts import in_markdown
from ..trainer.callbacks.layer_statistics import STATISTICS
from .drawing import colour, draw_mean, mean_and_deviation, panels
from .tuning import Contestant


def contest_table(contestants: Sequence[Contestant]) -> str:
    """A Markdown row for each method at each place, the best mean of a place in bold.

    `trials` are the last accuracies of the search, in the order of the grid; `×` for a trial that diverged, `–` for one
    without a result.
    """
    head = ["where", "method", "trials", "best trial", "test accuracy", "training loss", "seeds", "diverged"]
    rows = [head, ["---"] * len(head)]
    for where, group in _by_place(contestants).items():
        best = max(group, key=_mean_accuracy)
        for contestant in group:
            done = [r for _, r in contestant.finals if r.state == "finished"]
            accuracy = mean_and_deviation([r.final.get("eval_accuracy", math.nan) for r in done], percent=True)
            rows.append(
                [
                    in_markdown(where),
                    in_markdown(str(contestant.place["method"])),
                    " / ".join(
                        "–" if s is None else "×" if math.isnan(s) else f"{100 * s:.1f}" for s in contestant.searched
                    ),
                    in_markdown(", ".join(f"{k} {v}" for k, v in (contestant.winner or {}).items())) or "–",
                    f"**{accuracy}**" if contestant is best and done else accuracy,
                    mean_and_deviation([r.points("loss")[1][-1] for r in done if r.points("loss")[1]]),
                    str(len(contestant.finals)),
                    str(len(contestant.finals) - len(done)),
                ]
            )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def contest_figure(contestants: Sequence[Contestant]) -> Any:
    """A column for each place: training loss and test accuracy of the winners over the epochs, bands over seeds."""
    from matplotlib import pyplot as plt

    places = _by_place(contestants)
    colours = plt.get_cmap("tab10")
    methods = list(dict.fromkeys(c.place["method"] for c in contestants))
    figure, axes = panels(2, len(places))
    for column, (where, group) in enumerate(places.items()):
        for axis, key, name in (
            (axes[0, column], "loss", "training loss"),
            (axes[1, column], "eval_accuracy", "accuracy"),
        ):
            for contestant in group:
                method = contestant.place["method"]
                results = [result for _, result in contestant.finals]
                if results:
                    draw_mean(axis, results, key, color=colours(methods.index(method)), label=method)
            axis.set(title=f"{where}: {name}", xlabel="epoch")
    for axis in axes[0]:
        if axis.lines:
            axis.legend(fontsize=7)
    return figure


def layers_figure(contestants: Sequence[Contestant]) -> Any | None:
    """Why: M_k of the layers under CLARS, and γ_k under CLARS and LARS, over the steps of each winner's first seed.

    A row for each place that has such records; None where there is none.
    """
    columns = (("clars", "variance_factor"), ("clars", "gamma"), ("lars", "gamma"))
    places = {
        where: {str(c.place["method"]): c.finals[0][1].layers for c in group if c.finals and c.finals[0][1].layers}
        for where, group in _by_place(contestants).items()
    }
    places = {where: layers for where, layers in places.items() if {"clars", "lars"} <= layers.keys()}
    if not places:
        return None
    figure, axes = panels(len(places), len(columns))
    for row, (where, records) in zip(axes, places.items(), strict=True):
        for axis, (method, statistic) in zip(row, columns, strict=True):
            names = list(records[method][-1]["layers"])
            for k, name in enumerate(names):
                points = [
                    (record["step"], record["layers"][name][statistic])
                    for record in records[method]
                    if statistic in record["layers"].get(name, {})
                ]
                label = name.removeprefix("timm_model.").removesuffix(".weight")
                if points:
                    axis.plot(*zip(*points, strict=True), color=colour(k / max(1, len(names) - 1) * 0.9), label=label)
            axis.set(title=f"{where}: {STATISTICS[statistic]}, {method}", xlabel="optimizer step", yscale="log")
            axis.title.set_fontsize(8)
    axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), title="input → output")
    return figure


def _by_place(contestants: Sequence[Contestant]) -> dict[str, list[Contestant]]:
    places: dict[str, list[Contestant]] = {}
    for contestant in contestants:
        places.setdefault(_where(contestant.place), []).append(contestant)
    return places


def _where(place: Mapping[str, Any]) -> str:
    return ", ".join(str(v) if isinstance(v, str) else f"{k} = {v}" for k, v in place.items() if k != "method")


def _mean_accuracy(contestant: Contestant) -> float:
    values = [r.final.get("eval_accuracy", -math.inf) for _, r in contestant.finals if r.state == "finished"]
    return sum(values) / len(values) if values else -math.inf
