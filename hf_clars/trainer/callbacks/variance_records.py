"""Fig. 2 during a training: M_k over all training data, before the first epoch and after each one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ...norms.restored import restored
from ...statistics.variance import gradient_variance
from ..evaluating import share_buffers
from ..records.layer_records import LayerRecords

FILE_NAME = "gradient_variance.jsonl"
MODES = ("none", "eval", "train")


class GradientVarianceCallback(LayerRecords):
    """Writes each layer's M_k over a data set to `output_dir/gradient_variance.jsonl`, and to W&B.

    The training does not notice: parameters, gradients, running statistics and random numbers stay as they were.

    Args:
        trainer: a `ClarsTrainer`, whose model it is.
        batches: iterated for each measurement; `{"pixel_values", "labels"}`.
        mode: `"eval"` for `∇f_i` alone; `"train"` normalises each batch by itself, and couples its samples.
    """

    def __init__(self, trainer: Any, batches: Iterable[dict[str, Tensor]], mode: str) -> None:
        super().__init__(FILE_NAME, {"variance_factor": "M_k over all data"}, "variance")
        self._trainer, self._batches, self._mode = trainer, batches, mode

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if state.global_step == 0:
            self._measure(args, state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._trainer.steps_per_epoch or state.global_step % self._trainer.steps_per_epoch == 0:
            self._measure(args, state)  # not where a stop cut the epoch short

    def _measure(self, args: Any, state: Any) -> None:
        model = self._trainer.model
        with restored(model):
            share_buffers(model, args.device)
            model.train(self._mode == "train")
            factors = gradient_variance(model, self._batches, _cross_entropy)  # collective
        layers = {n: {"variance_factor": m} for n, m in factors.items() if math.isfinite(m)}  # JSON knows no NaN
        self.add(args, state, layers, mode=self._mode)


def _cross_entropy(outputs: Any, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.logits, labels.to(outputs.logits.device))
