"""What a run leaves for later: a JSON file with its settings, its curve, and where it was made."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from ..safety.files import write_whole
from ..validation.schema import read_as
from .grid import Run

CURVES = (
    "loss", "learning_rate", "grad_norm", "eval_loss", "eval_accuracy", "eval_top5_accuracy", "skipped_steps",
)  # fmt: skip


@dataclass
class Result:
    """One run's file in a folder of results.

    Attributes:
        place, settings: those of the `Run`.
        state: `diverged` when its gradients were not finite for so long that the training ended.
        seconds: from start to end of the process, loading the data included; of its last part where it was cut off.
        commit: of this package; `+changes` where files were changed since; its version where it is not a checkout.
        hardware: device, threads, torch.
        curve: `{"step", "epoch", "images_seen", "seconds"}` and what was logged of `CURVES`; earlier results lack the
            images and seconds, which are those of training so far.
        final: the last evaluation and the mean training loss.
        variances, layers: `{"epoch", "layers": {name: {statistic: value}}}`: M_k over all training data; of steps.
        gradients: likewise, what `GradientStatisticsCallback` wrote.
    """

    place: dict[str, Any]
    settings: dict[str, Any]
    state: Literal["finished", "diverged"]
    seconds: float
    commit: str
    hardware: dict[str, Any]
    curve: list[dict[str, int | float]]
    final: dict[str, int | float]
    variances: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    gradients: list[dict[str, Any]] = field(default_factory=list)

    @property
    def records(self) -> list[dict[str, Any]]:
        """Of layers: over all training data where these were measured, else of steps."""
        return self.variances or self.layers

    def points(self, key: str) -> tuple[list[float], list[float]]:
        """The epochs of one quantity's curve, and its values."""
        rows = [row for row in self.curve if key in row]
        return [row["epoch"] for row in rows], [row[key] for row in rows]


def grouped(results: Sequence[tuple[Run, Result]], *axes: str) -> dict[tuple[Any, ...], list[tuple[Run, Result]]]:
    """Results by their values of some axes; what is one for all runs is a setting."""
    groups: dict[tuple[Any, ...], list[tuple[Run, Result]]] = {}
    for run, result in results:
        groups.setdefault(tuple(run.place.get(a, run.settings.get(a)) for a in axes), []).append((run, result))
    return groups


def read_result(folder: Path, run: Run) -> Result | None:
    """The run's result if it has one, whatever its file is called apart from the key."""
    files = sorted(folder.glob(f"*-{run.key}.json"))
    if not files:
        return None
    try:
        value = json.loads(files[0].read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{files[0]} cannot be read ({error}): mend or remove it") from None
    result: Result = read_as(Result, value, str(files[0]))
    return result


def write_result(folder: Path, run: Run, result: Result) -> Path:
    """Whole or not at all."""
    path = folder / f"{run.file_name}.json"
    write_whole(path, json.dumps(asdict(result), indent=1, allow_nan=False) + "\n")
    return path


def left_in(folder: Path, diverged: bool) -> dict[str, Any]:
    """What a run has left in its output folder."""
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    metrics = {} if diverged else json.loads((folder / "all_results.json").read_text(encoding="utf-8"))
    wanted = [k for k in ("train_loss", "eval_loss", "eval_accuracy") if math.isfinite(metrics.get(k, math.nan))]
    files = {"variances": "gradient_variance", "layers": "layer_statistics", "gradients": "gradient_statistics"}
    found = {k: folder / f"{name}.jsonl" for k, name in files.items()}
    records = {
        k: [json.loads(row) for row in f.read_text(encoding="utf-8").splitlines()]
        for k, f in found.items()
        if f.exists()
    }
    return {"curve": curve_of(history), "final": {k: metrics[k] for k in wanted}, **records}


def curve_of(history: list[dict[str, Any]]) -> list[dict[str, int | float]]:
    """Trainer's log as one row for each step; JSON knows neither NaN nor infinity."""
    rows: dict[int, dict[str, int | float]] = {}
    for entry in history:
        if not entry.keys().isdisjoint(CURVES):
            known = {k: entry[k] for k in ("step", "epoch", "images_seen", "seconds", *CURVES) if k in entry}
            finite = {k: v for k, v in known.items() if isinstance(v, int | float) and math.isfinite(v)}
            rows[entry["step"]] = finite | rows.get(entry["step"], {})
    return [rows[step] for step in sorted(rows)]
