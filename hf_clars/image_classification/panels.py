"""What the pictures of runs have in common: panels, colours, axes, and the layers of a model from input to output.

matplotlib is imported where something is drawn: trainings need none.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..safety.texts import printable

# Okabe's and Ito's colours, which people with any kind of colour vision tell apart, without the two (yellow, black)
# that vanish on a white or a dark page.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
WHY_EMPTY = {
    "gamma": "γ_k is recorded with layer_statistics_steps",
    "variance_factor": "M_k is recorded by CLARS with mode per_sample or subset",
}
FEW = 40  # points of a line, which are marked; a single one would be invisible otherwise
MOST_NAMES = 20  # of layers in a legend
_LACKING = 3  # layers without points that are named
_NAMED = 7  # layers at a colour bar
_LONGEST_NAME = 48
LARGEST = 1e100  # no axis has room for more
_LIGHTEST = 0.9  # of viridis, whose yellow end vanishes on white

Records = Sequence[Mapping[str, Any]]


def need_matplotlib() -> None:
    """Without a screen; raises `UserError` where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("pictures need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "hf_clars"  # the same results make the same file


def panels(rows: int, columns: int, width: float = 4.6, height: float = 3.6) -> tuple[Any, Any]:
    """A figure and its axes, `[rows, columns]`."""
    from matplotlib import pyplot as plt

    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    return figure, axes


def save(figure: Any, path: Path) -> Path:
    """PNG or SVG, as the name says; closes the figure."""
    from matplotlib import pyplot as plt

    if path.is_symlink():  # to something else, which is not to be written over
        path.unlink()
    try:
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path} cannot be drawn: {' '.join(str(error).split())}") from error
    finally:
        plt.close(figure)
    return path


# --- colours and axes ------------------------------------------------------------------------------------------------


def colours(count: int) -> list[Any]:
    """So many, for lines on white: of a few, those of `COLOURS` and black; of more, from dark to light."""
    few = [*COLOURS, "#000000"]
    return few[:count] if count <= len(few) else [*_from_dark_to_light()([k / (count - 1) for k in range(count)])]


def whole_numbers(axis: Any) -> None:
    """x counts something: steps, images. Ticks stand at whole numbers, the thousands set apart."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def percent(axis: Any) -> None:
    """y is a share of 1, and is read in percent."""
    from matplotlib.ticker import PercentFormatter

    axis.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def logarithmic(axis: Any) -> None:
    """y in equal factors, see `plain_powers`."""
    axis.set_yscale("log")
    plain_powers(axis)


def plain_powers(axis: Any) -> None:
    """Numbers of a logarithmic y as `0.01` where they are short; between powers of ten, too, where these are few."""
    from matplotlib.ticker import LogFormatterSciNotation

    class Plain(LogFormatterSciNotation):
        def __call__(self, x: float, pos: int | None = None) -> str:
            text = str(super().__call__(x, pos))  # "" for a tick without a number
            return f"{x:g}" if text and 1e-4 < x < 1e5 else text

    axis.yaxis.set_major_formatter(Plain())
    axis.yaxis.set_minor_formatter(Plain(minor_thresholds=(1, 0.4)))
    axis.tick_params(which="minor", labelsize="small")


def spans_magnitudes(values: Iterable[float]) -> bool:
    """Whether they are positive and a factor of 20 apart, so that equal factors show more than equal distances."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > 20 * min(finite)


def say_why_empty(axis: Any, reason: str) -> None:
    """In the place of what a panel would show."""
    style = {"transform": axis.transAxes, "ha": "center", "va": "center", "fontsize": 9, "wrap": True}
    axis.text(0.5, 0.5, reason, color="0.4", parse_math=False, **style)
    axis.set(xticks=[], yticks=[])


# --- layers ----------------------------------------------------------------------------------------------------------


def draw_layers(axis: Any, records: Records, statistic: str, x: str) -> None:
    """A line for each layer, from the input (dark) to the output (light), on a logarithmic axis.

    Named are layers whose value is 0, or lacks in a record that has it of others: M_k of a layer without gradient.
    """
    names = _layers_of(records)
    shades = _from_dark_to_light()
    lacking = []
    known = [r for r in records if has_statistic([r], statistic)]
    for k, name in enumerate(names):
        values = [(r[x], r["layers"][name].get(statistic)) for r in known if name in r["layers"]]
        points = [point for point in values if has_logarithm(point[1])]
        if len(points) < len(values):
            lacking.append(short_name(name))
        if points:
            style = {"color": shades(k / max(1, len(names) - 1)), "marker": "." if len(points) < FEW else None}
            style["linewidth"] = 1.2 if len(names) <= MOST_NAMES else 0.7
            axis.plot(*zip(*points, strict=True), label=short_name(name), **style)
    if axis.lines:
        logarithmic(axis)
    else:
        say_why_empty(axis, "0 or not finite" if lacking else WHY_EMPTY.get(statistic, "it was not recorded"))
    if lacking and axis.lines:
        more = [f"{len(lacking) - _LACKING} more"] if len(lacking) > _LACKING else []
        text = f"not drawn where 0 or not finite: {', '.join([*lacking[:_LACKING], *more])}"
        style = {"transform": axis.transAxes, "va": "bottom", "fontsize": 6, "color": "0.4", "wrap": True}
        axis.text(0.02, 0.02, text, parse_math=False, **style)


def has_statistic(records: Records, statistic: str) -> bool:
    """Whether any of them has it, of any layer."""
    return any(statistic in layer for record in records for layer in record["layers"].values())


def width_of_names(of_runs: Iterable[Records]) -> float:
    """What `name_layers` takes of a panel's width at most, in inches."""
    return 0.055 * max((len(short_name(name)) for records in of_runs for name in _layers_of(records)), default=0)


def name_layers(axis: Any, records: Records) -> None:
    """To the right of a panel that `draw_layers` has filled: a legend, or for many layers a colour bar by depth."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    names = [short_name(name) for name in _layers_of(records)]
    if not axis.lines:
        return
    if len(names) <= MOST_NAMES:
        legend = axis.legend(
            fontsize=7, title_fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), title="input → output"
        )
        for text in legend.get_texts():
            text.set_parse_math(False)  # names of layers, whoever wrote the file
        return
    depths = ScalarMappable(Normalize(1, len(names)), _from_dark_to_light())
    bar = axis.figure.colorbar(depths, ax=axis, label=f"{len(names)} layers, input → output")
    shown = sorted({round(1 + k * (len(names) - 1) / (_NAMED - 1)) for k in range(_NAMED)})
    bar.ax.set_yticks(shown, [f"{n}  {names[n - 1]}" for n in shown], fontsize=7, parse_math=False)
    bar.ax.minorticks_off()
    bar.ax.invert_yaxis()


def has_logarithm(value: Any) -> bool:
    """Whether it has a place on a logarithmic axis."""
    return isinstance(value, int | float) and 1 / LARGEST <= value <= LARGEST


def short_name(name: str) -> str:
    """Of a layer's weight, without what all names have."""
    short = printable(name.removeprefix("timm_model.").removeprefix("model.").removesuffix(".weight"))
    return short if len(short) <= _LONGEST_NAME else f"{short[: _LONGEST_NAME - 1]}…"


def _layers_of(records: Records) -> list[str]:
    """In the order of the model. A layer that was frozen for a while is not in all records."""
    return list(max((record["layers"] for record in records), key=len, default={}))


def _from_dark_to_light() -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap([colormaps["viridis"](_LIGHTEST * k / 255) for k in range(256)])
