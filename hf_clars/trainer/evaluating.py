"""Evaluating and predicting beside a training that does not notice, with the model that a checkpoint would hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import Trainer

from ..norms.agreement import is_distributed
from ..norms.extra_passes import buffers_restored
from ..norms.restored import modes_restored, randomness_restored
from ..norms.watch import watches_of
from .records.progress import TrainingClock


class Evaluations(Trainer):
    """A mix-in for `Trainer`: `evaluate` and `predict` may be called from anywhere, by whom ever.

    They take the buffers of the first process on every one, as a checkpoint does. A training in whose course they are
    called goes on as if they had not been: weights, gradients and what is measured of them, buffers, modes, random
    numbers, and what is due to be logged or evaluated. An evaluation that is due, and was made at this step, is not
    made again.
    """

    clock: TrainingClock
    evaluated: dict[str, Any] | None = None  # {"step": …, "metrics": …} of the last evaluation that was due
    _is_due = False

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`, without influence on a training under way."""
        with self._aside():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.predict`, without influence on a training under way."""
        with self._aside():
            return super().predict(*args, **kwargs)

    def _evaluate(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        step, done = self.state.global_step, self.evaluated
        if done is not None and done["step"] == step:  # by the checkpoint's training, say
            self.control.should_evaluate = False
            return dict(done["metrics"])
        self._is_due = True
        try:
            metrics = super()._evaluate(trial, *args, **kwargs)
        finally:
            self._is_due = False
        self.evaluated = {"step": step, "metrics": dict(metrics)}
        return metrics

    @contextmanager
    def _aside(self) -> Iterator[None]:
        model: Any = self.model
        control = self.control
        was_due = control.should_log, control.should_evaluate
        with ExitStack() as afterwards:
            afterwards.enter_context(randomness_restored())
            afterwards.enter_context(self.clock.paused())
            if self.is_in_train:
                if model.training and callable(train := getattr(self.optimizer, "train", None)):
                    afterwards.callback(train)  # of an optimizer that knows the difference
                afterwards.enter_context(modes_restored(model))
                afterwards.enter_context(buffers_restored(model))
                for watch in watches_of(model):
                    if not watch.paused:
                        watch.paused = True  # takes no notice of forward passes
                        afterwards.callback(setattr, watch, "paused", False)
            share_buffers(model, self.args.device)
            yield
        if self.is_in_train and not self._is_due:  # a callback's, which stands for none of the training's own
            self.control.should_log |= was_due[0]
            self.control.should_evaluate |= was_due[1]


@torch.no_grad()
def share_buffers(model: Any, device: torch.device) -> None:
    """Give all processes the buffers of the first one, which are those that a checkpoint holds. Collective.

    DistributedDataParallel does it before the first forward pass of each step. After that, each process has running
    statistics of its own samples.
    """
    for buffer in model.buffers() if is_distributed() else ():
        if buffer.numel() and not isinstance(buffer, DTensor):  # shards are a process's own
            values = buffer.detach().to(device).contiguous()
            dist.broadcast(values.view(-1).view(torch.uint8), 0)  # bytes: not every backend knows every dtype
            buffer.copy_(values)
