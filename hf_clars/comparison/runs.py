"""Runs as a comparison sees them, wherever they were read, and what is asked of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pandas import DataFrame, Series

from ..errors import UserError
from .axes import AXES

AXIS = "axis."  # before the name of an axis of a grid that is no setting, but stands for some: `axis.method`
STATES = ("finished", "diverged", "failed", "running")

VALUES = {"final": "last", "best": "best", "area": "mean"}  # measures that are values of the metric, and their names
TO_TARGET = {axis: f"{unit}_to_target" for axis, unit in AXES.items()}  # axis → measure: how long the target took
MEASURES = (*VALUES, *TO_TARGET.values())

_LARGEST = 3.4e38  # float32 ends here: what is beyond has no square in float64, and no meaning
_LOWER = frozenset({"loss", "perplexity", "ppl", "error", "err", "nll", "mse", "mae", "rmse", "wer", "cer", "bpc"})
_SHARES = frozenset({"accuracy", "acc", "acc1", "acc5", "top1", "top5"})


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """One run.

    Attributes:
        name, source: for people (its W&B name, or its folder), and where it was read: a path, or `wandb:entity/…`.
        config: setting → value, flat, under the names of the recipe and of `TrainingArguments`.
        history: a row for each optimizer step. Columns are `step`, those of `AXES` that are known, and metrics under
            W&B's names: `train/loss`, `eval/accuracy`. Values may be NaN (also: none) or infinite.
        state: one of `STATES`. `diverged`: it says so, or its last loss was not finite. `failed`: it ended before its
            time, for another reason. `running`: it has not ended, or was cut off without a word.
        layers: statistic (`gamma`, …) → its values, a row for each step, a column for each layer from input to output,
            or by name where the source does not know the order.
    """

    name: str
    source: str
    config: Mapping[str, Any]
    history: DataFrame
    state: str = "finished"
    layers: Mapping[str, DataFrame] = field(default_factory=dict)

    def curve(self, metric: str, axis: str = "step") -> Series:
        """The finite values of a metric by those of an axis, which increase; of several at one place the last one."""
        if not {metric, axis} <= set(self.history):
            return Series(dtype=float)
        xs, ys = self.history[axis].to_numpy(), self.history[metric].to_numpy()
        finite = np.isfinite(xs) & (np.abs(ys) <= _LARGEST)
        values = Series(ys[finite], xs[finite])
        return values[~values.index.duplicated(keep="last")].sort_index()


@dataclass(frozen=True)
class Question:
    """The metric (`eval/accuracy`), the value to reach if there is one, the axis over which the area is taken and which
    decides who is first, and how the metric is read: what is better, and whether it is a share of 1, which people are
    shown in percent. Numbers in the question and in the answer are as they were measured."""

    metric: str = "eval/accuracy"
    target: float | None = None
    axis: str = "epoch"
    lower_is_better: bool = False
    percent: bool = False

    @property
    def scale(self) -> int:
        """Values times it are what people are shown."""
        return 100 if self.percent else 1

    @property
    def unit(self) -> str:
        """Behind a value that people are shown."""
        return " %" if self.percent else ""

    @property
    def sign(self) -> int:
        """Values times it are better where they are smaller."""
        return 1 if self.lower_is_better else -1

    @property
    def target_text(self) -> str:
        """`≥ 0.75`, or `≥ 75 %`."""
        if self.target is None:
            return ""
        return f"{'≤' if self.lower_is_better else '≥'} {self.target * self.scale:g}{self.unit}"


def falls(metric: str) -> bool:
    """Lower is better, by the metric's name: one of its words is loss, perplexity, error, …"""
    return not _LOWER.isdisjoint(_words_of(metric))


def is_share(metric: str, runs: Sequence[ComparedRun]) -> bool:
    """Of 1, and not of 100: an accuracy by the metric's name, and of no run above 1."""
    return not _SHARES.isdisjoint(_words_of(metric)) and all(run.curve(metric).between(0, 1).all() for run in runs)


def _words_of(metric: str) -> list[str]:
    return metric.lower().replace("/", " ").replace("_", " ").replace("-", " ").split()


def the_metric(runs: Sequence[ComparedRun], asked: str) -> str:
    """The metric by the name it has (Trainer's `eval_accuracy` is `eval/accuracy`); a `UserError` if no run has it."""
    having = sorted({metric for run in runs for metric in run.history if metric not in AXES})
    for name in (asked, asked.replace("_", "/", 1), f"train/{asked}"):
        if name in having:
            return name
    raise UserError(f"--metric {asked}: no run has it; there is {listed(having, 30) or 'no metric at all'}")


def the_axis(runs: Sequence[ComparedRun], metric: str, asked: str | None) -> str:
    """The axis asked for, or epochs, or optimizer steps where not every run that has the metric knows its epochs; a
    `UserError` if no run has the axis."""
    known = Counter(axis for run in runs for axis in AXES if len(run.curve(metric, axis)))
    if asked is not None and not known[asked]:
        raise UserError(f"--axis {asked}: no run has {metric} over it; there is {listed(sorted(known)) or 'none'}")
    return asked or ("epoch" if known["epoch"] == known["step"] else "step")


def listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def words(text: object) -> str:
    """Bytes of a file's name that are no UTF-8, and halves of characters, written out: pandas takes none."""
    return str(text).encode("utf-8", "backslashreplace").decode()
