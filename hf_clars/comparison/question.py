"""What is asked of runs: a metric, a target, an axis; and the measures that answer it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError
from .runs import AXES, ComparedRun

UNITS = {"step": "steps", "epoch": "epochs", "images": "images", "seconds": "seconds"}
"""Axis → its unit, which is also what the measure "how long to the target" over it is called."""

VALUES = ("final", "best", "area")
"""The measures that are values of the metric."""

MEASURES = (*VALUES, *AXES)
"""All measures of a run; those named as an axis are how long it took to the target."""

MEASURE_NAMES = {
    "final": "last value",
    "best": "best value",
    "area": "mean value",
    **{axis: f"{unit} to the target" for axis, unit in UNITS.items()},
}
"""For people."""

_LOWER = frozenset({"loss", "perplexity", "ppl", "error", "err", "nll", "mse", "mae", "rmse", "wer", "cer", "bpc"})


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        metric: W&B's name: `eval/accuracy`.
        target: the value to reach; None where none was given.
        axis: of `AXES`, over which the area is taken and which decides who is first.
        lower_is_better: how the metric is read.
    """

    metric: str = "eval/accuracy"
    target: float | None = None
    axis: str = "epoch"
    lower_is_better: bool = False


def falls(metric: str) -> bool:
    """Lower is better, by the metric's name: one of its words is loss, perplexity, error, …"""
    words = metric.lower().replace("/", " ").replace("_", " ").replace("-", " ").split()
    return not _LOWER.isdisjoint(words)


def the_metric(runs: Sequence[ComparedRun], asked: str) -> str:
    """The metric by the name it has; Trainer's `eval_accuracy` is `eval/accuracy`.

    Raises:
        UserError: no run has it. Lists those that exist.
    """
    having = Counter(metric for run in runs for metric in run.metrics())
    for name in (asked, asked.replace("_", "/", 1), f"train/{asked}"):
        if name in having:
            return name
    names = [name for name, _ in having.most_common() if not name.startswith("layers/")]
    listed = ", ".join(sorted(names[:30])) + (f" and {len(names) - 30} more" if len(names) > 30 else "")
    raise UserError(f"--metric {asked}: no run has it; there is {listed or 'no metric at all'}")


def the_axis(runs: Sequence[ComparedRun], metric: str, asked: str | None) -> str:
    """The axis asked for, or epochs, or optimizer steps where not every run that has the metric knows its epochs.

    Raises:
        UserError: no run has the axis asked for. Lists those that exist.
    """
    having = [run for run in runs if run.points(metric)[0]]
    known = Counter(axis for run in having for axis in AXES if run.points(metric, axis)[0])
    if asked is not None and not known[asked]:
        raise UserError(f"--axis {asked}: no run has {metric} over it; there is {', '.join(sorted(known)) or 'none'}")
    return asked or ("epoch" if known["epoch"] == len(having) else "step")


def target_text(question: Question) -> str:
    """`≥ 0.75`."""
    return "" if question.target is None else f"{'≤' if question.lower_is_better else '≥'} {question.target:g}"
