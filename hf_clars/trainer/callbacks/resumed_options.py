"""What plain `Trainer` does not say when it resumes: that an optimizer's options are those of its checkpoint."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback

from ...errors import UserError
from ..measuring import layerwise
from ..seams import resumed_from


class RefuseOtherOptions(TrainerCallback):
    """Refuses to go on where `optim` or `optim_args` are others than the checkpoint's; `ClarsTrainer` takes them.

    torch's `load_state_dict` puts a group's options back, and so do all optimizers with transformers' Trainer.
    """

    @classmethod
    def add_to(cls, trainer: Trainer) -> None:
        """The Trainer gets one, if it has none."""
        if not any(isinstance(callback, cls) for callback in trainer.callback_handler.callbacks):
            trainer.add_callback(cls())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer, checkpoint = layerwise(kwargs["optimizer"]), resumed_from()
        if optimizer is None or checkpoint is None:
            return
        groups = optimizer.param_groups
        names = ("uniform", "decay_in_denominator", "bias_and_norm", "eta", "momentum")
        told = {name: groups[0][name] for name in names}
        if any(weight.ndim >= 2 for group in groups for weight in group["params"]):  # which is decayed in one group
            told["weight_decay"] = max(group["weight_decay"] for group in groups)
        for name, value in told.items():
            if value != optimizer.defaults[name]:
                raise UserError(
                    f"{checkpoint} is of an optimizer with {name}={value!r}, not {optimizer.defaults[name]!r}, and "
                    "transformers.Trainer goes on with what is there: leave optim and optim_args as they were, or take "
                    "ClarsTrainer, in which changed options count from there on"
                )
