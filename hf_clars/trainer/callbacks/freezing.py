"""Freezing fully-connected layers at first (Gotmare et al. 2018), which the paper's Fig. 3 compares with warmup."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback


class FreezeFullyConnected(TrainerCallback):
    """Leaves the parameters of every `nn.Linear` as they are during the first epochs.

    Their gradients are computed and thrown away before the optimizer looks at them, so that momentum, weight decay
    and other processes know nothing of it.

    Args:
        trainer: whose steps. Its arguments say E, `freeze_fc_epochs`: the layers move from step `round(E × steps per
            epoch)` on.

    Raises:
        UserError: when the training begins: the data have no length.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._until = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epochs = args.freeze_fc_epochs
        self._until = self._trainer.steps_in("freeze_fc_epochs", epochs) if epochs else 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self._until:
            return
        for module in self._trainer.model.modules():
            if isinstance(module, nn.Linear):
                for parameter in module.parameters():
                    parameter.grad = None
