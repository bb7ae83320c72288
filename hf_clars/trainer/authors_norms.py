"""`mode="authors"`: the extra passes of the code that the paper's authors released, in `ClarsTrainer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback

from ..errors import UserError
from ..norms.extra_passes import mean_gradient_norms
from ..optimizers import AuthorsCLARS, is_adapted
from .measuring import bare

PASSES, IMAGES = 64, 8  # theirs: so many passes of so many images


class AuthorsNorms(TrainerCallback):
    """Measures what `AuthorsCLARS` divides by; does nothing for other optimizers.

    After each optimizer step, 64 forward and backward passes of 8 samples each (fewer where the step had fewer than 512
    samples). For each parameter the mean of the norms of their gradients is the denominator of the next step; before
    the first step it is measured once at the initial weights.

    Differs from their code in two points: the samples are the step's own, spread evenly over its micro-batches and
    ranks, not others; and BatchNorm's running statistics are left alone.

    Args:
        trainer: whose steps.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._optimizer: AuthorsCLARS | None = None  # while there is something to measure
        self._kept: list[Mapping[str, Any]] = []
        self._micro_batch = 0

    def keep(self, inputs: Mapping[str, Any]) -> None:
        """Copy this micro-batch's share of the samples."""
        if self._optimizer is None:
            return
        size = _size(inputs)
        count = self._trainer.current_gradient_accumulation_steps
        wanted = samples_to_keep(self._micro_batch, count, size, self._trainer.args.world_size)
        self._micro_batch += 1
        if wanted:
            stride = size // wanted
            rows = slice(0, wanted * stride, stride)
            self._kept.append({k: v[rows].clone() if _by_sample(v, size) else v for k, v in inputs.items()})

    # --- callbacks -----------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if _authors(kwargs.get("optimizer")) is not None and self._trainer.is_fsdp_enabled:
            raise UserError("mode='authors' has passes of its own, which FSDP does not allow: use DDP")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = _authors(kwargs.get("optimizer"))
        self._optimizer = optimizer if optimizer is not None and optimizer.adapts else None
        self._kept, self._micro_batch = [], 0  # of a step that a data set's end cut short

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._optimizer is not None and not self._optimizer.denominators():
            self._measure(self._optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._optimizer is not None:
            self._measure(self._optimizer)
        self._optimizer, self._kept = None, []

    # --- measuring -----------------------------------------------------------------------------------------------

    def _measure(self, optimizer: AuthorsCLARS) -> None:
        adapted = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad and is_adapted(g, p)]
        self._trainer.model.train()  # as for a training step, whoever has evaluated since
        norms = mean_gradient_norms(self._trainer.model, adapted, [self._loss_of(b) for b in self._small_batches()])
        norms = reduce(norms, "mean")  # over processes
        optimizer.measured(dict(zip(adapted, norms.unbind(), strict=True)))

    def _small_batches(self) -> list[dict[str, Any]]:
        first = self._kept[0]
        sizes = [_size(part) for part in self._kept]
        joined = {
            key: torch.cat([part[key] for part in self._kept]) if _by_sample(value, sizes[0]) else value
            for key, value in first.items()
        }
        total = sum(sizes)
        small = min(IMAGES, total)
        return [
            {k: v[i : i + small] if _by_sample(v, total) else v for k, v in joined.items()}
            for i in range(0, total - small + 1, small)
        ]

    def _loss_of(self, batch: dict[str, Any]) -> Callable[[], Tensor]:
        trainer = self._trainer

        def loss() -> Tensor:
            inputs = trainer._prepare_inputs(batch)
            items = trainer._get_num_items_in_batch([inputs], trainer.args.device)
            with trainer.compute_loss_context_manager():
                value: Tensor = trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=items)
            return value

        return loss


def samples_to_keep(micro_batch: int, count: int, size: int, world_size: int) -> int:
    """How many samples of micro-batch number `micro_batch` (of `count`, of `size` samples each) are measured.

    All in all a rank's share of 512, in whole groups of 8, or all there is if that is less than one group.
    """
    groups = min(max(1, PASSES // world_size), max(1, count * size // IMAGES))
    wanted = min(groups * IMAGES, count * size)
    return min(size, (micro_batch + 1) * wanted // count - micro_batch * wanted // count)


def _authors(optimizer: Any) -> AuthorsCLARS | None:
    optimizer = bare(optimizer)
    return optimizer if isinstance(optimizer, AuthorsCLARS) else None


def _size(inputs: Mapping[str, Any]) -> int:
    return next(int(v.shape[0]) for v in inputs.values() if isinstance(v, Tensor) and v.ndim)


def _by_sample(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
