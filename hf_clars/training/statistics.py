"""Why a step was large or small: each layer's ‖w‖, ‖g‖, denominator, γ_k and M_k, every few optimizer steps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import wandb
from torch import Tensor
from transformers import TrainerCallback

from ..formulas import gradient_variance_factor
from ..norms import PerSampleNorms
from ..optimizers import CLARS, LayerwiseOptimizer, sharded

STATISTICS = {
    "weight_norm": "‖w‖",
    "gradient_norm": "‖g‖",
    "denominator": "Σ‖c_i‖",
    "gamma": "γ_k",
    "variance_factor": "M_k",
}
FILE_NAME = "layer_statistics.jsonl"


class LayerStatisticsCallback(TrainerCallback):
    """Writes the five statistics of every adapted layer to `output_dir/layer_statistics.jsonl`, and to W&B.

    One line of the file is `{"step": …, "epoch": …, "layers": {name: {statistic: value}}}`. In W&B the values are
    scalars `layers/<statistic>/<name>` without a panel of their own, and five panels draw all layers of a statistic.
    Statistics that a run has no notion of are left out (LARS: the denominator and M_k; `norm_mode="micro_batch"`: M_k).

    Args:
        every: optimizer steps from one record to the next; the only ones at which the device is waited for.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._pending: dict[str, dict[str, Tensor]] | None = None
        self._history: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._history = [r for r in read_layer_statistics(args.output_dir) if r["step"] <= state.global_step]
        if not state.global_step:
            self._history = []
        if state.is_world_process_zero:
            path = Path(args.output_dir) / FILE_NAME
            path.write_text("".join(json.dumps(record) + "\n" for record in self._history))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = _layerwise(kwargs.get("optimizer"))
        if optimizer is None or state.global_step % self._every:
            return
        layers = _layers(optimizer)
        if not layers:
            return
        weight_norms = sharded.norms(list(layers.values()))
        gradient_norms = sharded.norms([w.grad for w in layers.values() if w.grad is not None])
        self._pending = {
            name: {"weight_norm": w, "gradient_norm": g}
            for name, w, g in zip(layers, weight_norms, gradient_norms, strict=True)
        }
        if isinstance(optimizer, CLARS) and isinstance(optimizer.norms, PerSampleNorms):
            scaler = optimizer.grad_scaler
            scale = scaler.scale(torch.ones(())) if scaler is not None and scaler.is_enabled() else torch.ones(())
            for name, (total, squares, samples) in optimizer.norms.gradient_statistics().items():
                if name in self._pending:
                    unscaled = scale.to(total.device)
                    entry = self._pending[name]
                    entry["denominator"] = total / unscaled
                    if optimizer.norms.mode != "micro_batch":  # whose samples are micro-batches
                        entry["variance_factor"] = gradient_variance_factor(
                            squares / unscaled**2, entry["gradient_norm"].to(total.device), samples
                        )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = _layerwise(kwargs.get("optimizer"))
        if self._pending is None or optimizer is None:
            return
        rates = optimizer.layer_rates()
        for name, parameter in _layers(optimizer).items():
            if parameter in rates and name in self._pending:
                self._pending[name]["gamma"] = rates[parameter]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        if not state.is_world_process_zero:
            return
        keys = [(name, statistic) for name, entry in pending.items() for statistic in entry]
        flat = torch.stack(
            [pending[name][statistic].to("cpu", torch.float64, non_blocking=True) for name, statistic in keys]
        )
        layers: dict[str, dict[str, float]] = {}
        for (name, statistic), value in zip(keys, flat.tolist(), strict=True):
            if math.isfinite(value):  # a layer whose gradient is zero has no M_k, and JSON no NaN
                layers.setdefault(name, {})[statistic] = value
        record = {"step": state.global_step, "epoch": state.epoch, "layers": layers}
        self._history.append(record)
        with open(Path(args.output_dir) / FILE_NAME, "a") as file:
            file.write(json.dumps(record) + "\n")
        if "wandb" in args.report_to and wandb.run is not None:
            _log_to_wandb(record)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and "wandb" in args.report_to and wandb.run is not None and self._history:
            wandb.log({**_panels(self._history), "train/global_step": state.global_step})


def read_layer_statistics(output_dir: str | Path) -> list[dict[str, Any]]:
    """The records of a run's `layer_statistics.jsonl`; none if it has no such file."""
    path = Path(output_dir) / FILE_NAME
    lines = path.read_text().splitlines() if path.exists() else []
    if lines and not lines[-1].endswith("}}}"):
        lines.pop()  # a run that was killed while it wrote
    return [json.loads(line) for line in lines]


def _layerwise(optimizer: Any) -> LayerwiseOptimizer | None:
    optimizer = getattr(optimizer, "optimizer", optimizer)
    return optimizer if isinstance(optimizer, LayerwiseOptimizer) else None


def _layers(optimizer: LayerwiseOptimizer) -> dict[str, Tensor]:
    """Name → parameter of the layers that are adapted and have a gradient."""
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group.get("param_names", ()), group["params"], strict=False)
        if parameter.grad is not None and (group["layer_adaptation"] or group["vectors"] == "paper")
    }


def _log_to_wandb(record: dict[str, Any]) -> None:
    for statistic in STATISTICS:
        wandb.define_metric(f"layers/{statistic}/*", step_metric="train/global_step", hidden=True)
    scalars = {
        f"layers/{statistic}/{name}": value
        for name, entry in record["layers"].items()
        for statistic, value in entry.items()
    }
    wandb.log({**scalars, "train/global_step": record["step"]})


def _panels(history: list[dict[str, Any]]) -> dict[str, Any]:
    steps = [record["step"] for record in history]
    panels = {}
    for statistic, symbol in STATISTICS.items():
        names = [n for n, entry in history[-1]["layers"].items() if statistic in entry]
        if names:
            lines = [[r["layers"].get(n, {}).get(statistic) for r in history] for n in names]
            panels[f"layer panels/{symbol}"] = wandb.plot.line_series(
                xs=steps, ys=lines, keys=names, title=f"{symbol} per layer", xname="optimizer step"
            )
    return panels
