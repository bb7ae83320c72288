"""From when to when a Trainer's CLARS measures: nothing is left on the model after `train()`, however that ends."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainerCallback

from ..norms import PerSampleNorms
from .callbacks.layerwise_warmup import layerwise
from .seams import at_end_of_training, calling_trainer


class MeasureWhileTraining(TrainerCallback):
    """Attaches the `PerSampleNorms` of the Trainer's CLARS in the first step that has a use for it, until the end.

    `optim="clars"` adds it, to every Trainer. Whichever optimizer the Trainer has when a training begins counts: the
    same as in the one before, or that of a new model (`model_init`).
    """

    def __init__(self) -> None:
        self._attached = False

    @classmethod
    def add_to(cls, trainer: Trainer) -> None:
        """The Trainer gets one, if it has none."""
        if not any(isinstance(callback, cls) for callback in trainer.callback_handler.callbacks):
            trainer.add_callback(cls())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._attached = False
        trainer = calling_trainer()
        norms = norms_of(trainer.optimizer)
        if norms is not None:
            at_end_of_training(trainer, norms.detach)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Not before: what fails until now, fails where `at_end_of_training` does not see it. And not again: whoever
        # detached since (`LayerwiseWarmup`) had reasons.
        if self._attached:
            return
        optimizer = calling_trainer().optimizer
        norms, ours = norms_of(optimizer), layerwise(optimizer)
        if norms is not None and ours is not None and ours.adapts:
            norms.attach()
            self._attached = True


def norms_of(optimizer: Any) -> PerSampleNorms | None:
    """What measures for an optimizer, bare or as accelerate wraps it; None where nothing does."""
    norms: Any = getattr(getattr(optimizer, "optimizer", optimizer), "norms", None)
    norms = getattr(norms, "__self__", norms)  # of CLARS(norms=norms.denominators)
    return norms if isinstance(norms, PerSampleNorms) else None
