"""Two pictures of a run, from the files that it left: curves.png and layers.png."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, field_validator

from ..errors import UserError
from ..safety.links import is_within, own_folders
from ..trainer.callbacks.layer_statistics import FILE_NAME, STATISTICS, read_layer_statistics

_PANELS = (
    ("loss", {"loss": "training", "eval_loss": "validation"}),
    ("accuracy", {"eval_accuracy": "top 1", "eval_top5_accuracy": "top 5"}),
    ("γ_scale", {"learning_rate": "γ_scale"}),
)
_DRAWN = {key for _, series in _PANELS for key in series}


class _State(BaseModel):
    """What is read of `trainer_state.json`."""

    log_history: list[dict[str, Any]]

    @field_validator("log_history")
    @classmethod
    def _numbers(cls, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for entry in history:
            for key in {"step", *_DRAWN} & entry.keys():
                if not isinstance(entry[key], int | float):
                    raise ValueError(f"{key} is {entry[key]!r:.40}, not a number")
            if "step" not in entry:
                raise ValueError("an entry without step")
        return history


def plot_run(output_dir: str | Path) -> list[Path]:
    """Draw what is known of the run in `output_dir`; returns the files written.

    `curves.png`: loss, accuracy and γ_scale over the steps, from `trainer_state.json`. `layers.png`: γ_k and M_k of
    every layer over the steps, from `layer_statistics.jsonl`, if it has records.

    Raises:
        UserError: no such run, or matplotlib is not installed.
    """
    folder = Path(output_dir)
    state = folder / "trainer_state.json"
    for file in (state, folder / FILE_NAME):
        if not is_within(file, own_folders(folder)):
            raise UserError(f"{file} is a link that leads out of the run's folder")
    if not state.is_file():
        raise UserError(f"{folder} has no trainer_state.json: it is not the output folder of a finished run")
    try:
        import matplotlib
    except ImportError:
        raise UserError("plots need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")

    try:
        history = _State.model_validate_json(state.read_bytes()).log_history
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"{state} is damaged: {where or 'it'} is no log of a Trainer ({problem['msg']})") from None
    except OSError as error:
        raise UserError(f"{state} cannot be read: {error.strerror or error}") from None
    written = [_curves(history, folder / "curves.png")]
    records = read_layer_statistics(folder)
    if records and (layers := _layers(records, folder / "layers.png")) is not None:
        written.append(layers)
    return written


def _curves(history: list[dict[str, Any]], path: Path) -> Path:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(_PANELS), figsize=(13, 3.6), layout="constrained")
    for axis, (title, series) in zip(axes, _PANELS, strict=True):
        for key, label in series.items():
            points = [(entry["step"], entry[key]) for entry in history if key in entry]
            if points:
                axis.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 40 else None)
        axis.set(title=title, xlabel="optimizer step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    return _save(figure, path)


def _layers(records: list[dict[str, Any]], path: Path) -> Path | None:
    from matplotlib import pyplot as plt

    names = list(records[-1]["layers"])
    shown: list[str] = [
        s for s in ("gamma", "variance_factor") if any(s in entry for entry in records[-1]["layers"].values())
    ]
    if not shown:
        return None
    height = min(200.0, max(3.6, 0.16 * len(names)))
    figure, axes = plt.subplots(1, len(shown), figsize=(6.5 * len(shown), height), layout="constrained", squeeze=False)
    colours = plt.get_cmap("viridis")
    for axis, statistic in zip(axes[0], shown, strict=True):
        for k, name in enumerate(names):
            points = [
                (r["step"], r["layers"][name][statistic]) for r in records if statistic in r["layers"].get(name, {})
            ]
            if points:
                axis.plot(
                    *zip(*points, strict=True), color=colours(k / max(1, len(names) - 1)), label=name, linewidth=1.2
                )
        axis.set(title=f"{STATISTICS[statistic]} per layer", xlabel="optimizer step", yscale="log")
        axis.grid(alpha=0.3)
    legend = axes[0, -1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), title="input → output")
    for text in legend.get_texts():
        text.set_parse_math(False)  # names of layers, whoever wrote the file
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot as plt

    if path.is_symlink():  # to something else, which is not to be written over
        path.unlink()
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path} cannot be drawn: {' '.join(str(error).split())}") from error
    finally:
        plt.close(figure)
    return path
