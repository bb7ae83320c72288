"""What is otherwise in the first epochs, as in Fig. 3 of the paper."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback

from ...errors import UserError
from ..measuring import layerwise


class FirstEpochs(TrainerCallback):
    """Layer-wise learning rates as a warmup alone, and frozen fully-connected layers (Gotmare et al. 2018).

    Both are stated in epochs, and end at the step `round(epochs × steps per epoch)`.

    After `layerwise_epochs` the optimizer goes on as mNAG (Eq. 2): `γ_k = γ_scale` for all parameters. Momentum is
    carried over. Nothing is measured any more, so that the steps that follow cost nothing extra. (`mode="authors"`
    keeps its own kind of momentum.) None is for no such end, also where the training goes on from a checkpoint that was
    made after one.

    In the first `freeze_fc_epochs` the parameters of every `nn.Linear` stay as they are. Their gradients are computed
    and thrown away before the optimizer looks at them, so that momentum, weight decay and other processes know nothing
    of it.

    Args:
        trainer: whose steps; its arguments say how many epochs.

    Raises:
        UserError: when the training begins: the data have no length, or the optimizer no layer-wise learning rates.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._frozen_until = 0
        self._layerwise_until: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        frozen, adapted, optimizer = args.freeze_fc_epochs, args.layerwise_epochs, layerwise(kwargs["optimizer"])
        self._frozen_until = self._trainer.steps_in("freeze_fc_epochs", frozen) if frozen else 0
        self._layerwise_until = None if adapted is None else self._trainer.steps_in("layerwise_epochs", adapted)
        if adapted is not None and optimizer is None:
            raise UserError(f"layerwise_epochs={adapted} is for CLARS and LARS, not {kwargs['optimizer']}")
        if optimizer is not None:
            for group in optimizer.param_groups:
                group["uniform"] = optimizer.defaults["uniform"]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = layerwise(kwargs["optimizer"])
        if self._layerwise_until is None or optimizer is None:
            return
        for group in optimizer.param_groups:  # in every step anew, whichever side of the end a checkpoint is of
            group["uniform"] = state.global_step >= self._layerwise_until

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self._frozen_until:
            return
        for module in self._trainer.model.modules():
            if isinstance(module, nn.Linear):
                for parameter in module.parameters():
                    parameter.grad = None
