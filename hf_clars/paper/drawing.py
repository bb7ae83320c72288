"""The paper's figures from results: a function for each, of (run, result) pairs to a matplotlib figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import UserError
from ..experiments.drawing import Results, colour, draw_mean, groups_of, panels, values_of

_NAMES = {
    "loss": "training loss",
    "eval_accuracy": "test accuracy (top 1)",
    "learning_rate": "γ_scale",
}
_METHODS = {  # colour, line
    "mnag": ("tab:orange", "--"),
    "lars": ("tab:blue", "-"),
    "clars": ("tab:red", "-"),
    "clars_eta_0.1": ("tab:purple", "-"),
    "warmup": ("tab:blue", "-"),
    "fc_freeze": ("tab:green", "-"),
    "none": ("tab:gray", "--"),
}


def figure1(results: Results) -> Any:
    """A row for each network: training loss, test accuracy and γ_scale over the epochs, a colour for each B."""
    networks = values_of(results, "network")
    sizes = sorted(values_of(results, "B"))
    colours = {size: colour(i / max(1, len(sizes) - 1) * 0.9) for i, size in enumerate(sizes)}
    figure, axes = panels(len(networks), 3)
    for row, network in zip(axes, networks, strict=True):
        for (size, method), group in groups_of(results, "B", "method", network=network):
            style = {"color": colours[size], "linestyle": _METHODS[method][1], "label": f"{method}, B = {size}"}
            for axis, key in zip(row, ("loss", "eval_accuracy", "learning_rate"), strict=True):
                draw_mean(axis, group, key, **style)
        for axis, key in zip(row, ("loss", "eval_accuracy", "learning_rate"), strict=True):
            axis.set(title=f"{network}: {_NAMES[key]}", xlabel="epoch", yscale="log" if key == "loss" else "linear")
        row[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def figure2(results: Results) -> Any:
    """A panel for each network: M_k of its layers over the epochs, from the input (dark) to the output (light)."""
    measured = [(run, result) for run, result in results if result.variances]
    if not measured:
        raise UserError("no result has M_k: its runs need gradient_variance=eval or train")
    figure, (axes,) = panels(1, len(measured), width=5.2)
    for axis, (run, result) in zip(axes, measured, strict=True):
        names = list(result.variances[-1]["layers"])
        for k, name in enumerate(names):
            points = [
                (r["epoch"], r["layers"][name]["variance_factor"]) for r in result.variances if name in r["layers"]
            ]
            label = name.removeprefix("timm_model.").removesuffix(".weight")
            axis.plot(*zip(*points, strict=True), color=colour(k / max(1, len(names) - 1) * 0.9), label=label)
        axis.set(title=f"{run.place['network']}: M_k", xlabel="epoch", yscale="log")
        axis.legend(fontsize=7, title="input → output", title_fontsize=7)
    return figure


def figure3(results: Results) -> Any:
    """A panel for each network: test accuracy over the epochs, a line for each method."""
    networks = values_of(results, "network")
    figure, (axes,) = panels(1, len(networks))
    for axis, network in zip(axes, networks, strict=True):
        _methods(axis, results, network, "eval_accuracy")
    return figure


def figure4(results: Results) -> Any:
    """A column for each network: training loss above, test accuracy below."""
    networks = values_of(results, "network")
    figure, axes = panels(2, len(networks))
    for row, key in zip(axes, ("loss", "eval_accuracy"), strict=True):
        for axis, network in zip(row, networks, strict=True):
            _methods(axis, results, network, key)
    return figure


DRAWINGS: dict[int, Callable[[Results], Any]] = {1: figure1, 2: figure2, 3: figure3, 4: figure4}


def _methods(axis: Any, results: Results, network: str, key: str) -> None:
    for (method,), group in groups_of(results, "method", network=network):
        shade, line = _METHODS[method]
        draw_mean(axis, group, key, color=shade, linestyle=line, label=method)
    axis.set(title=f"{network}: {_NAMES[key]}", xlabel="epoch", yscale="log" if key == "loss" else "linear")
    axis.legend(fontsize=8)
