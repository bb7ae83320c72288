"""Why a step was large or small: each layer's ‖w‖, ‖g‖, denominator, γ_k and M_k, every few optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from ...formulas import gradient_variance_factor
from ...norms import PerSampleNorms
from ...optimizers import CLARS, AuthorsCLARS, LayerwiseOptimizer, sharded
from ...optimizers.loss_scale import loss_scale
from ..records.layer_records import LayerRecords, read_records, to_host
from ..seams import before_clipping, calling_trainer
from .layerwise_warmup import layerwise

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

    ‖g‖, the denominator and M_k are those before clipping, without the loss scale. See `LayerRecords` for the file's
    lines and for W&B's scalars and panels. Statistics that a run has no notion of are left out (LARS, mNAG, and CLARS
    after `layerwise_epochs`: the denominator and M_k; `mode="micro_batch"` and `"authors"`: M_k).
    From one record to the next there are `layer_statistics_steps` optimizer steps, an argument of the Trainer; the
    device is waited for at no others. 0 is for no records.
    """

    def __init__(self) -> None:
        self._pending: dict[str, dict[str, Tensor]] | None = None
        self._records = LayerRecords(FILE_NAME, STATISTICS)
        self._stop: Callable[[], None] = lambda: None  # while a step is recorded

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.layer_statistics_steps > 0:
            self._records.begin(args, state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop()  # of a step that a data set's end cut short
        optimizer = layerwise(kwargs.get("optimizer"))
        every = args.layer_statistics_steps
        if optimizer is not None and every > 0 and state.global_step % every == 0:
            trainer = calling_trainer()
            self._stop = before_clipping(trainer, lambda: self._measure(optimizer, trainer.accelerator.scaler))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop()

    def _measure(self, optimizer: LayerwiseOptimizer, scaler: Any) -> None:
        layers = _layers(optimizer)
        if not layers:
            return
        weight_norms = sharded.norms(list(layers.values()))
        gradient_norms = sharded.norms([w.grad for w in layers.values() if w.grad is not None])
        scale = loss_scale(scaler, gradient_norms.device)
        self._pending = {
            name: {"weight_norm": w, "gradient_norm": g / scale}
            for name, w, g in zip(layers, weight_norms, gradient_norms, strict=True)
        }
        if isinstance(optimizer, CLARS) and optimizer.adapts and isinstance(optimizer.norms, PerSampleNorms):
            for name, (total, squares, samples) in optimizer.norms.gradient_statistics().items():
                if name in self._pending:
                    scale = loss_scale(scaler, total.device)
                    entry = self._pending[name]
                    entry["denominator"] = total / scale
                    if optimizer.norms.mode != "micro_batch":  # whose samples are micro-batches
                        entry["variance_factor"] = gradient_variance_factor(
                            squares / scale**2, entry["gradient_norm"].to(total.device), samples
                        )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = layerwise(kwargs.get("optimizer"))
        if self._pending is None or optimizer is None:
            return
        rates = optimizer.layer_rates()
        used = optimizer.denominators() if isinstance(optimizer, AuthorsCLARS) and optimizer.adapts else {}
        for name, parameter in _layers(optimizer).items():
            if parameter in rates and name in self._pending:
                self._pending[name]["gamma"] = rates[parameter]
                if parameter in used:
                    self._pending[name]["denominator"] = used[parameter]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        if not state.is_world_process_zero:
            return
        keys = [(name, statistic) for name, entry in pending.items() for statistic in entry]
        layers: dict[str, dict[str, float]] = {}
        for (name, statistic), value in zip(keys, to_host([pending[n][s] for n, s in keys]), strict=True):
            if math.isfinite(value):  # a layer whose gradient is zero has no M_k, and JSON no NaN
                layers.setdefault(name, {})[statistic] = value
        self._records.add(args, state, layers)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop()
        if args.layer_statistics_steps > 0:
            self._records.end(args, state)


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
