"""A run as a comparison sees it, wherever it was read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

AXES = ("step", "epoch", "images", "seconds")
"""What a curve can be drawn over. `images` are those trained on so far, `seconds` those of training so far."""

AXIS = "axis."
"""Before the name of an axis of a grid that is no setting, but stands for some: `axis.method`."""

STATES = ("finished", "diverged", "failed", "running")


@dataclass(frozen=True)
class ComparedRun:
    """One run.

    Attributes:
        name: for people: its W&B name, or its folder.
        source: where it was read, as a user would name it: a path, or `wandb:entity/project/id`.
        config: setting → value, flat, under the names of the recipe and of `TrainingArguments` (`optim`, `seed`,
            `total_batch_size`, `model_name`, …).
        history: rows in order of their step. Each has `step` and those of `AXES` that are known for it, and metrics
            under W&B's names: `train/loss`, `eval/accuracy`. Values are numbers, and may be NaN or infinite.
        state: one of `STATES`. `diverged`: its losses or gradients were not finite for so long that it ended, or it
            ended with a loss that was not finite. `failed`: it ended before its time, for another reason. `running`:
            it has not ended, or was cut off without a word.
        layers: records of layer statistics, `{"step", "epoch", "layers": {name: {statistic: value}}}`, with the
            statistics of `layer_statistics.jsonl` (`gamma`, `variance_factor`, …); empty where the source has none.
    """

    name: str
    source: str
    config: Mapping[str, Any]
    history: list[dict[str, float]]
    state: str = "finished"
    layers: list[dict[str, Any]] = field(default_factory=list)

    def metrics(self) -> list[str]:
        """All there are, sorted."""
        return sorted({key for row in self.history for key in row} - set(AXES))

    def points(self, metric: str, axis: str = "step") -> tuple[list[float], list[float]]:
        """The curve of one metric over one axis, as two lists; rows where one of them is no finite number, or
        is not there, are left out."""
        nan, finite = math.nan, math.isfinite
        rows = [row for row in self.history if finite(row.get(metric, nan)) and finite(row.get(axis, nan))]
        return [row[axis] for row in rows], [row[metric] for row in rows]
