"""From when to when a Trainer measures: nothing is left on the model after `train()`, however that ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from torch import nn
from transformers import Trainer, TrainerCallback

from ..norms import PerSampleNorms
from ..optimizers import LayerwiseOptimizer
from ..runtime import users_line
from .seams import at_end_of_training, calling_trainer


class MeasureWhileTraining(TrainerCallback):
    """Attaches the `PerSampleNorms` of the Trainer's CLARS for the steps that have a use for it.

    `optim="clars"` adds it, to every Trainer. Whichever optimizer the Trainer has when a training begins counts: the
    same as in the one before, or that of a new model (`model_init`).
    """

    @classmethod
    def add_to(cls, trainer: Trainer) -> None:
        """The Trainer gets one, if it has none."""
        if not any(isinstance(callback, cls) for callback in trainer.callback_handler.callbacks):
            trainer.add_callback(cls())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = calling_trainer()
        norms = norms_of(trainer.optimizer)
        if norms is not None:
            at_end_of_training(trainer, norms.detach)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Not before: what fails until now, fails where `at_end_of_training` does not see it.
        norms, optimizer = norms_of(kwargs["optimizer"]), layerwise(kwargs["optimizer"])
        if norms is not None and optimizer is not None and optimizer.adapts != norms.watch.attached:
            (norms.attach if optimizer.adapts else norms.detach)()


def bare(optimizer: Any) -> Any:
    """An optimizer itself, bare or as accelerate wraps it."""
    return getattr(optimizer, "optimizer", optimizer)


def layerwise(optimizer: Any) -> LayerwiseOptimizer | None:
    """The optimizer itself if it is one of ours."""
    optimizer = bare(optimizer)
    return optimizer if isinstance(optimizer, LayerwiseOptimizer) else None


def norms_of(optimizer: Any) -> PerSampleNorms | None:
    """What measures for an optimizer; None where nothing does."""
    norms: Any = getattr(bare(optimizer), "norms", None)
    norms = getattr(norms, "__self__", norms)  # of CLARS(norms=norms.denominators)
    return norms if isinstance(norms, PerSampleNorms) else None


class OwnNorms(PerSampleNorms):
    """For callbacks that measure in a Trainer whose optimizer has none.

    Shared by all callbacks of a Trainer, and attached while any of them holds it.

    Attached time and again, it says once what it cannot measure, and what that means here.
    """

    _by_trainer: ClassVar[WeakKeyDictionary[Trainer, OwnNorms]] = WeakKeyDictionary()

    def __init__(self, model: nn.Module) -> None:
        self._holders: set[object] = set()
        self._warned: set[str] = set()
        super().__init__(model)

    @classmethod
    def of(cls, trainer: Trainer) -> OwnNorms:
        """That of the Trainer and the model it has now; detached, unless somebody holds it."""
        norms, model = cls._by_trainer.get(trainer), trainer.model
        if norms is None or norms.model is not model:
            assert isinstance(model, nn.Module)
            norms = cls._by_trainer[trainer] = cls(model)
            norms.detach()
        return norms

    def hold(self, callback: object) -> None:
        """Be attached until `callback`, and whoever else does so, releases it."""
        self._holders.add(callback)
        self.attach()

    def release(self, callback: object) -> None:
        """Undo `hold`; harmless when called again."""
        self._holders.discard(callback)
        if not self._holders:
            self.detach()

    def warn_of(self, reasons: Mapping[str, str]) -> None:
        new = {name: reason for name, reason in reasons.items() if name not in self._warned}
        if not new:
            return
        hint = (
            ""
            if self._warned
            else ". hf_clars.verify_norms(model, batch, loss_fn) shows what is measured, and how well"
        )
        self._warned |= new.keys()
        name, reason = next(iter(new.items()))
        users_line.warn(
            f"GradientStatisticsCallback leaves out {len(new)} parameter(s) that cannot be measured, such as "
            f"{name}: {reason}{hint}"
        )
