"""Why a step was large or small: each layer's ‖w‖, ‖g‖, denominator, γ_k and M_k, every few optimizer steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...formulas import gradient_variance_factor
from ...norms import PerSampleNorms
from ...optimizers import CLARS, AuthorsCLARS, LayerwiseOptimizer, sharded
from ...optimizers.loss_scale import loss_scale
from ..measuring import layerwise
from ..records.layer_records import read_records
from .measured_steps import MeasuredSteps

STATISTICS = {
    "weight_norm": "‖w‖",
    "gradient_norm": "‖g‖",
    "denominator": "Σ‖c_i‖",
    "gamma": "γ_k",
    "variance_factor": "M_k",
}
FILE_NAME = "layer_statistics.jsonl"


class LayerStatisticsCallback(MeasuredSteps):
    """Writes the five statistics of every adapted layer to `output_dir/layer_statistics.jsonl`, and to W&B.

    ‖g‖, the denominator and M_k are those before clipping, without the loss scale. Statistics that a run has no notion
    of are left out (LARS, mNAG, and CLARS after `layerwise_epochs`: the denominator and M_k; `mode="micro_batch"` and
    `"authors"`: M_k). From one record to the next there are `layer_statistics_steps` optimizer steps, an argument of
    the Trainer; 0 is for no records.
    """

    def __init__(self) -> None:
        super().__init__(FILE_NAME, STATISTICS, "layer")
        self._optimizer: LayerwiseOptimizer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.layer_statistics_steps > 0:
            super().on_train_begin(args, state, control, **kwargs)

    def is_due(self, args: Any, state: Any, optimizer: Any) -> bool:
        self._optimizer = layerwise(optimizer)
        every = args.layer_statistics_steps
        return self._optimizer is not None and every > 0 and state.global_step % every == 0

    def measure(self) -> dict[str, dict[str, Tensor]] | None:
        optimizer, scaler = self._optimizer, self.trainer.accelerator.scaler
        layers = {} if optimizer is None else _layers(optimizer)
        if not layers:
            return None
        weight_norms = sharded.norms(list(layers.values()))
        gradient_norms = sharded.norms([w.grad for w in layers.values() if w.grad is not None])
        scale = loss_scale(scaler, gradient_norms.device)
        values = {
            name: {"weight_norm": w, "gradient_norm": g / scale}
            for name, w, g in zip(layers, weight_norms, gradient_norms, strict=True)
        }
        if isinstance(optimizer, CLARS) and optimizer.adapts and isinstance(optimizer.norms, PerSampleNorms):
            for name, (total, squares, samples) in optimizer.norms.gradient_statistics().items():
                if name in values:
                    scale = loss_scale(scaler, total.device)
                    values[name]["denominator"] = total / scale
                    if optimizer.norms.mode != "micro_batch":  # whose samples are micro-batches
                        values[name]["variance_factor"] = gradient_variance_factor(
                            squares / scale**2, values[name]["gradient_norm"].to(total.device), samples
                        )
        return values

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = self._optimizer
        if self.pending is None or optimizer is None:
            return
        rates = optimizer.layer_rates()
        used = optimizer.denominators() if isinstance(optimizer, AuthorsCLARS) and optimizer.adapts else {}
        for name, parameter in _layers(optimizer).items():
            if parameter in rates and name in self.pending:
                self.pending[name]["gamma"] = rates[parameter]
                if parameter in used:
                    self.pending[name]["denominator"] = used[parameter]

    def record(self, pending: dict[str, dict[str, Tensor]], args: Any, state: Any, control: Any) -> None:
        if not state.is_world_process_zero:
            return
        values = [value for entry in pending.values() for value in entry.values()]
        device = values[0].device
        on_host = torch.stack([v.to(device, non_blocking=True) for v in values]).to("cpu", torch.float64).tolist()
        numbers = iter(on_host)
        finite = {  # a layer whose gradient is zero has no M_k, and JSON no NaN
            name: {statistic: x for statistic in entry if math.isfinite(x := next(numbers))}
            for name, entry in pending.items()
        }
        self.add(args, state, {name: entry for name, entry in finite.items() if entry})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.layer_statistics_steps > 0:
            super().on_train_end(args, state, control, **kwargs)


def read_layer_statistics(output_dir: str | Path) -> list[dict[str, Any]]:
    """The records of a run's `layer_statistics.jsonl`; none if it has no such file."""
    return read_records(Path(output_dir) / FILE_NAME)


def _layers(optimizer: LayerwiseOptimizer) -> dict[str, Tensor]:
    """Name → parameter of the layers that are adapted and have a gradient."""
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group.get("param_names", ()), group["params"], strict=False)
        if parameter.grad is not None and (group["layer_adaptation"] or group["bias_and_norm"] == "paper")
    }
