"""Layer-wise learning rates as a warmup alone (Fig. 3 of the paper): then one learning rate for all layers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from ...errors import UserError
from ...optimizers import LayerwiseOptimizer


class LayerwiseWarmup(TrainerCallback):
    """After the first epochs the optimizer goes on as mNAG (Eq. 2): `γ_k = γ_scale` for all parameters.

    Momentum is carried over. Per-sample norms are not measured any more, so that the steps that follow cost nothing
    extra. (`mode="authors"` keeps its own kind of momentum, and has no extra passes any more.)

    Args:
        trainer: whose optimizer. Its arguments say E, `layerwise_epochs`: the switch is at step `round(E × steps per
            epoch)`. None for no switch, also where the training goes on from a checkpoint that was made after one.

    Raises:
        UserError: when the training begins: the data have no length, or the optimizer no layer-wise learning rates.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._epochs: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._epochs = args.layerwise_epochs
        optimizer = layerwise(kwargs["optimizer"])
        if self._epochs is None:
            if optimizer is not None:
                for group in optimizer.param_groups:
                    group["uniform"] = optimizer.defaults["uniform"]
            return
        self._until = self._trainer.steps_in("layerwise_epochs", self._epochs)
        if optimizer is None:
            raise UserError(f"layerwise_epochs={self._epochs} is for CLARS and LARS, not {kwargs['optimizer']}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._epochs is None:
            return
        # In every step anew, whichever side of the switch a checkpoint is of.
        optimizer = layerwise(kwargs["optimizer"])
        over = state.global_step >= self._until
        for group in optimizer.param_groups if optimizer is not None else ():
            group["uniform"] = over
        if over and self._trainer.norms is not None:
            self._trainer.norms.detach()


def layerwise(optimizer: Any) -> LayerwiseOptimizer | None:
    """The optimizer itself if it is one of ours, bare or as accelerate wraps it."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    return optimizer if isinstance(optimizer, LayerwiseOptimizer) else None
