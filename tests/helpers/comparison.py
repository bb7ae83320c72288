"""Runs to compare, as a source would read them."""

from __future__ import annotations

import math
import random
from typing import Any

import pandas as pd

from hf_clars.comparison.runs import ComparedRun


def run(
    optim: str | None = "clars",
    seed: int | None = 0,
    accuracies: list[float] | None = None,
    *,
    state: str = "finished",
    name: str | None = None,
    layers: bool = False,
    **config: Any,
) -> ComparedRun:
    """A run that was evaluated after every epoch of 10 steps of 1,000 images, each taking 5 seconds."""
    settings = {"optim": optim, "total_batch_size": 1000, **({} if seed is None else {"seed": seed}), **config}
    history = [
        {"step": 10 * e, "epoch": float(e), "images": 10_000 * e, "seconds": 5.0 * e, "eval/accuracy": accuracy}
        | {"train/loss": 1 - accuracy}
        for e, accuracy in enumerate([0.3, 0.6, 0.8] if accuracies is None else accuracies, 1)
    ]
    name = name or f"{optim}-{seed}"
    frame = pd.DataFrame(history, dtype=float)
    return ComparedRun(name, f"outputs/{name}", settings, frame, state, _layers(optim) if layers else {})


def learning(top: float, speed: float, seed: int, epochs: int = 8) -> list[float]:
    """Accuracies that rise towards `top`, with noise that the seed decides."""
    noise = random.Random(seed)
    return [top * (1 - math.exp(-speed * e)) + noise.gauss(0, 0.004) for e in range(1, epochs + 1)]


def _layers(optim: str | None) -> dict[str, pd.DataFrame]:
    statistics = {"gamma": 0.5, "weight_norm": 1.0} | ({"variance_factor": 30.0} if optim == "clars" else {})
    steps = range(0, 80, 10)
    return {
        statistic: pd.DataFrame(
            {f"layer{k}.weight": [value * (k + 1) * (1 + step / 10) for step in steps] for k in range(4)}, steps
        )
        for statistic, value in statistics.items()
    }


def points(run: ComparedRun, metric: str, axis: str = "step") -> tuple[list[float], list[float]]:
    """The run's curve as two lists."""
    curve = run.curve(metric, axis)
    return list(curve.index), list(curve)
