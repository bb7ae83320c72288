"""Evaluating and predicting beside a training that does not notice, with the model that a checkpoint would hold."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer

from ..norms.extra_passes import buffers_restored
from ..norms.restored import modes_restored
from ..norms.watch import watches_of
from .records.clock import TrainingClock


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
            afterwards.enter_context(same_randomness_afterwards())
            afterwards.enter_context(self.clock.paused())
            if self.is_in_train:
                afterwards.enter_context(_same_modes_afterwards(model, self.optimizer))
                afterwards.enter_context(buffers_restored(model))
                afterwards.enter_context(_looking_away(model))
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
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    buffers = [b for b in model.buffers() if b.numel() and not isinstance(b, DTensor)]  # shards are a process's own
    if not buffers:
        return
    packed = torch.cat([_as_bytes(buffer).to(device) for buffer in buffers])
    dist.broadcast(packed, 0)
    if dist.get_rank() == 0:
        return
    sizes = [buffer.numel() * buffer.element_size() for buffer in buffers]
    for buffer, part in zip(buffers, packed.split(sizes), strict=True):
        buffer.copy_(part.clone().view(buffer.dtype).view(buffer.shape))  # a clone starts where its dtype may


def _as_bytes(buffer: Tensor) -> Tensor:
    return buffer.detach().contiguous().view(-1).view(torch.uint8)


@contextmanager
def same_randomness_afterwards() -> Iterator[None]:
    """Whatever happens inside draws random numbers of its own."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _same_modes_afterwards(model: nn.Module, optimizer: Any) -> Iterator[None]:
    """Every module trains or evaluates as before, and so does an optimizer that knows the difference."""
    try:
        with modes_restored(model):
            yield
    finally:
        if model.training and callable(getattr(optimizer, "train", None)):
            optimizer.train()


@contextmanager
def _looking_away(model: nn.Module) -> Iterator[None]:
    """Whatever measures takes no notice of forward passes inside."""
    watching = [norms for norms in watches_of(model) if not norms.paused]
    for norms in watching:
        norms.paused = True
    try:
        yield
    finally:
        for norms in watching:
            norms.paused = False
