"""The roofline plot: FLOP/s over FLOPs for each byte, a point for each stage."""

from pathlib import Path
from typing import Any

from roofline_stages import FORWARD, INPUT, OPTIMIZER, WEIGHT

from hf_clars.errors import UserError

_MARKERS = {FORWARD: "o", INPUT: "^", WEIGHT: "s"}


def draw(models: dict[str, Any], limits: dict[str, Any], path: Path, *, measured: bool) -> None:
    """A row for each model; plain on the left, with norms on the right.

    Hollow marks are a stage's matrix products; filled ones all that it does. Where nothing was measured they are what
    the roofline allows, with operators one after the other: so they lie on it or, where a stage has both kinds of
    operators, below.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("the plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (13, 4.8 * len(models))
    figure, axes = plt.subplots(len(models), 2, figsize=size, layout="constrained", squeeze=False, sharey=True)
    colours = plt.get_cmap("viridis")
    seconds_of = "measured_seconds" if measured else "roofline_seconds"
    for (name, model), pair in zip(models.items(), axes, strict=True):
        stages = [s for s in dict.fromkeys(row["stage"] for row in model["rows"]) if s != OPTIMIZER]
        for axis, which in zip(pair, ("plain", "norms"), strict=True):
            _roof(axis, limits)
            for number, stage in enumerate(stages):
                colour = colours(number / max(1, len(stages) - 1) * 0.9)
                rows = [row for row in model["rows"] if row["stage"] == stage]
                for row in rows:
                    _point(axis, [row[which]], seconds_of, _MARKERS.get(row["kind"], ""), colour, "none", None)
                _point(axis, [row[which] for row in rows], seconds_of, "o", colour, colour, stage)
            for kind, marker in _MARKERS.items():
                axis.plot([], [], marker, color="grey", markerfacecolor="none", label=kind)
            title = f"{name}, {'with norms' if which == 'norms' else 'plain'}"
            axis.set(title=title, xlabel="FLOP / byte", ylabel="FLOP / s", xscale="log", yscale="log")
            axis.grid(alpha=0.3)
        pair[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"{limits['gpu']}: {'measured' if measured else 'what its roofline allows; nothing was measured'}")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _roof(axis: Any, limits: dict[str, Any]) -> None:
    ridge = limits["peak"] / limits["bandwidth"]
    at = [ridge / 1e3, ridge, ridge * 30]
    axis.plot(at, [min(limits["peak"], x * limits["bandwidth"]) for x in at], color="black", linewidth=1)


def _point(
    axis: Any, figures: list[dict[str, float]], seconds_of: str, marker: str, colour: Any, face: Any, label: str | None
) -> None:
    flops, moved, seconds = (sum(f[key] or 0 for f in figures) for key in ("flops", "bytes", seconds_of))
    if marker and flops and moved and seconds:
        edge = {"color": colour, "markerfacecolor": face, "label": label}
        axis.plot(flops / moved, flops / seconds, marker, **edge)
