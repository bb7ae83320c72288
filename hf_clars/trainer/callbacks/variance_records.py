"""Fig. 2 during a training: M_k over all training data, before the first epoch and after each one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback

from ...norms.extra_passes import buffers_restored
from ...norms.watched_forward import attached_to
from ...statistics.variance import gradient_variance
from ..evaluating import same_randomness_afterwards, share_buffers
from ..records.layer_records import LayerRecords

FILE_NAME = "gradient_variance.jsonl"
MODES = ("none", "eval", "train")


class GradientVarianceCallback(TrainerCallback):
    """Writes each layer's M_k over a data set to `output_dir/gradient_variance.jsonl`, and to W&B.

    The training does not notice: parameters, gradients, running statistics and random numbers stay as they were.

    Args:
        trainer: a `ClarsTrainer`, whose model it is.
        batches: iterated for each measurement; `{"pixel_values", "labels"}`.
        mode: `"eval"` for `∇f_i` alone; `"train"` normalises each batch by itself, and couples its samples.
    """

    def __init__(self, trainer: Any, batches: Iterable[dict[str, Tensor]], mode: str) -> None:
        self._trainer, self._batches, self._mode = trainer, batches, mode
        self._records = LayerRecords(FILE_NAME, {"variance_factor": "M_k over all data"})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._records.begin(args, state)
        if state.global_step == 0:
            self._measure(args, state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._trainer.steps_per_epoch or state.global_step % self._trainer.steps_per_epoch == 0:
            self._measure(args, state)  # not where a stop cut the epoch short

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._records.end(args, state)

    def _measure(self, args: Any, state: Any) -> None:
        with same_randomness_afterwards(), buffers_restored(self._trainer.model):
            share_buffers(self._trainer.model, args.device)
            factors = self._factors()  # on every process: sums of norms are a collective operation
        layers = {n: {"variance_factor": m} for n, m in factors.items() if math.isfinite(m)}  # JSON knows no NaN
        self._records.add(args, state, layers, mode=self._mode)

    def _factors(self) -> dict[str, float]:
        model = self._trainer.model
        attached = list(attached_to(model))
        training = model.training
        for norms in attached:
            norms.detach()
        model.train(self._mode == "train")
        try:
            return gradient_variance(model, self._batches, _cross_entropy)
        finally:
            model.train(training)
            for norms in attached:
                norms.attach()


def _cross_entropy(outputs: Any, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.logits, labels.to(outputs.logits.device))
