"""What a run leaves for later: a JSON file with its settings, its curve, and where it was made."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from .grid import Run

STATES = ("finished", "diverged")


@dataclass
class Result:
    """One run's file in a folder of results.

    Attributes:
        place, settings: those of the `Run`.
        state: `finished`, or `diverged` when its gradients were not finite for so long that the training ended.
        seconds: from start to end of the process, loading the data included; of its last part where it was cut off.
        commit: of this package; `+changes` where files were changed since; its version where it is not a checkout.
        hardware: device, threads, torch.
        curve: `{"step", "epoch", "images_seen", "seconds", "loss", "learning_rate", "eval_loss", "eval_accuracy"}`,
            what was logged of them; earlier results lack the images and seconds, which are those of training so far.
        final: the last evaluation and the mean training loss.
        variances: of Fig. 2: `{"epoch", "layers": {name: M_k}}`, where they were measured.
        layers: of layer statistics: `{"step", "epoch", "layers": {name: {statistic: value}}}`, where they are kept.
    """

    place: dict[str, Any]
    settings: dict[str, Any]
    state: str
    seconds: float
    commit: str
    hardware: dict[str, Any]
    curve: list[dict[str, float]]
    final: dict[str, float]
    variances: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)

    def best(self, key: str = "eval_accuracy") -> float:
        """The largest value on the curve; NaN where there is none."""
        return max((row[key] for row in self.curve if key in row), default=math.nan)

    def points(self, key: str, x: str = "epoch") -> tuple[list[float], list[float]]:
        """The curve of one quantity, as two lists."""
        rows = [row for row in self.curve if row.get(key) is not None]
        return [row[x] for row in rows], [row[key] for row in rows]


def result_file(folder: Path, run: Run) -> Path:
    return folder / f"{run.file_name}.json"


def read_result(folder: Path, run: Run) -> Result | None:
    """The run's result if it has one, whatever its file is called apart from the key."""
    files = sorted(folder.glob(f"*-{run.key}.json"))
    if not files:
        return None
    try:
        return Result(**json.loads(files[0].read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{files[0]} is no result of a run ({error}): mend or remove it") from None


def write_result(folder: Path, run: Run, result: Result) -> Path:
    """Whole or not at all; a row of the curve on each line, so that a change of one shows as one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = result_file(folder, run)
    text = ",\n".join(f'  "{key}": {_dumped(value)}' for key, value in asdict(result).items())
    beside = path.with_suffix(".new")
    beside.write_text(f"{{\n{text}\n}}\n")
    os.replace(beside, path)
    return path


def curve_of(history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Trainer's log as one row for each step."""
    keys = (
        "loss", "learning_rate", "grad_norm", "eval_loss", "eval_accuracy", "eval_top5_accuracy", "skipped_steps",
    )  # fmt: skip
    rows: dict[int, dict[str, float]] = {}
    for entry in history:
        found = {k: _rounded(entry[k]) for k in keys if isinstance(entry.get(k), int | float)}
        if found:
            place = {"step": entry["step"], "epoch": float(f"{entry['epoch']:.6g}")}
            place |= {k: _rounded(entry[k]) for k in ("images_seen", "seconds") if k in entry}
            rows.setdefault(entry["step"], place).update({k: v for k, v in found.items() if v is not None})
    return [rows[step] for step in sorted(rows)]


def _rounded(value: float) -> float | None:
    """Six digits, but for whole numbers; JSON knows neither NaN nor infinity."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _dumped(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"    {json.dumps(row, allow_nan=False)}" for row in value) + "\n  ]"
    return json.dumps(value, allow_nan=False)
