"""Two pictures of a run, from the files that it left: curves.png and layers.png."""

import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, field_validator

from ..errors import UserError
from ..safety.files import read_bounded
from ..safety.links import is_within, own_folders
from ..safety.texts import printable
from ..trainer.callbacks.layer_statistics import FILE_NAME, STATISTICS, read_layer_statistics
from ..trainer.records import run_record
from .panels import (
    COLOURS,
    FEW,
    LARGEST,
    draw_layers,
    has_logarithm,
    logarithmic,
    name_layers,
    need_matplotlib,
    panels,
    percent,
    save,
    say_why_empty,
    spans_magnitudes,
    whole_numbers,
)

_DRAWN = ("loss", "eval_loss", "eval_accuracy", "eval_top5_accuracy", "learning_rate")
_LONGEST_TITLE = 120


class _State(BaseModel):
    """What is read of `trainer_state.json`."""

    log_history: list[dict[str, Any]]

    @field_validator("log_history")
    @classmethod
    def _numbers(cls, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for entry in history:
            for key in {"step", *_DRAWN} & entry.keys():
                value = entry[key]
                drawable = isinstance(value, int | float) and abs(value) <= LARGEST
                diverged = key != "step" and isinstance(value, float) and not math.isfinite(value)
                if not (drawable or diverged):
                    raise ValueError(f"{key} is {value!r:.40}, not a number that can be drawn")
            if "step" not in entry:
                raise ValueError("an entry without step")
        return history


class _Config(BaseModel):
    run_name: str | None = None
    eval_split: str = "evaluation"


class _Record(BaseModel):
    """What is read of `run.json`, which plain Trainers do not leave."""

    name: str | None = None
    config: _Config = _Config()


def plot_run(output_dir: str | Path) -> list[Path]:
    """Draw what is known of the run in `output_dir`; returns the files written.

    `curves.png`: loss, accuracy and γ_scale over the steps, from `trainer_state.json`. `layers.png`: γ_k and M_k of
    every layer over the steps, from `layer_statistics.jsonl`, if it has records. What the run is called and evaluated
    on is in `run.json`; where that does not say, it is called as its folder is, and evaluated on `evaluation`.

    Raises:
        UserError: no such run, a damaged file, or matplotlib is not installed.
    """
    folder = Path(output_dir)
    state, about = folder / "trainer_state.json", folder / run_record.FILE_NAME
    for file in (state, about, folder / FILE_NAME):
        if not is_within(file, own_folders(folder)):
            raise UserError(f"{file} is a link that leads out of the run's folder")
    if not state.is_file():
        raise UserError(f"{folder} has no trainer_state.json: it is not the output folder of a finished run")
    need_matplotlib()
    history = _read(_State, state, "log of a Trainer").log_history
    record = _read(_Record, about, "record of a run") if about.is_file() else _Record()
    title = ": ".join(filter(None, (record.config.run_name or folder.resolve().name, record.name)))
    title = printable(title if len(title) <= _LONGEST_TITLE else f"{title[: _LONGEST_TITLE - 1]}…")
    written = [save(curves_figure(history, title, record.config.eval_split), folder / "curves.png")]
    if (layers := layers_figure(read_layer_statistics(folder), title)) is not None:
        written.append(save(layers, folder / "layers.png"))
    return written


def _read(kind: Any, file: Path, what: str) -> Any:
    try:
        return kind.model_validate_json(read_bounded(file))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"{file} is damaged: {where or 'it'} is no {what} ({problem['msg']})") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None


def curves_figure(history: list[dict[str, Any]], title: str, split: str) -> Any:
    """Top 5 has a panel of its own where it was measured: it lies so high that top 1 would be flat beside it."""
    evaluated = any("eval_loss" in entry for entry in history)
    no_accuracy = "no evaluation logged an accuracy" if evaluated else "no evaluation was logged"
    drawn = [
        ("loss", {"loss": "training", "eval_loss": split}, "no loss was logged"),
        (f"{split} accuracy", {"eval_accuracy": "top 1"}, no_accuracy),
        ("γ_scale (learning rate)", {"learning_rate": "γ_scale"}, "no learning rate was logged"),
    ]
    if any("eval_top5_accuracy" in entry for entry in history):
        drawn.insert(2, (f"{split} accuracy, top 5", {"eval_top5_accuracy": "top 5"}, no_accuracy))
    figure, axes = panels(1, len(drawn))
    steps = [entry["step"] for entry in history if not entry.keys().isdisjoint(_DRAWN)] or [0]
    margin = 0.03 * (max(steps) - min(steps)) or 0.5
    for axis, (name, series, why_empty) in zip(axes[0], drawn, strict=True):
        found = {key: [(e["step"], e[key]) for e in history if key in e] for key in series}
        points = {key: [(x, y) for x, y in of_key if math.isfinite(y)] for key, of_key in found.items()}
        for (key, label), colour in zip(series.items(), COLOURS, strict=False):
            if points[key]:
                marker = "." if len(points[key]) < FEW else None
                axis.plot(*zip(*points[key], strict=True), label=label, color=colour, marker=marker)
                if not math.isfinite(found[key][-1][1]):
                    style = {"label": f"{label}: not finite afterwards", "linestyle": "none"}
                    axis.plot(*points[key][-1], color=colour, marker="x", markersize=8, markeredgewidth=2, **style)
        axis.set_title(name, parse_math=False)
        axis.set_xlabel("optimizer step")
        if not axis.lines:
            say_why_empty(axis, "no finite value was logged" if any(found.values()) else why_empty)
            continue
        whole_numbers(axis)
        axis.set_xlim(min(steps) - margin, max(steps) + margin)
        if "eval_accuracy" in series or "eval_top5_accuracy" in series:
            percent(axis)
        if "loss" in series:
            if spans_magnitudes(y for of_key in points.values() for _, y in of_key):
                logarithmic(axis)
            for text in axis.legend().get_texts():
                text.set_parse_math(False)
    figure.suptitle(title, parse_math=False)
    return figure


def layers_figure(records: list[dict[str, Any]], title: str) -> Any | None:
    """A panel for each of γ_k and M_k that some record has; None for none."""
    values = [entry for record in records for entry in record["layers"].values()]
    shown = [s for s in ("gamma", "variance_factor") if any(has_logarithm(entry.get(s)) for entry in values)]
    if not shown:
        return None
    figure, axes = panels(1, len(shown), 6.5)
    for axis, statistic in zip(axes[0], shown, strict=True):
        draw_layers(axis, records, statistic, "step")
        whole_numbers(axis)
        axis.set(title=f"{STATISTICS[statistic]} of each layer", xlabel="optimizer step")
    name_layers(axes[0, -1], records)
    figure.suptitle(title, parse_math=False)
    return figure
