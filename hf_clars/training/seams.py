"""Where a `TrainerCallback` must reach for what transformers does not hand it: the Trainer that calls it.

tests/test_gradient_statistics.py fails when these seams move.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from transformers import Trainer

from ..errors import UserError


def calling_trainer() -> Trainer:
    """The Trainer on whose behalf this code runs.

    A callback is given nothing that leads to its Trainer, and only the Trainer can log to every reporter; but its
    methods are further up the stack.

    Raises:
        UserError: there is none: the callback is used outside `transformers.Trainer`.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        frame = frame.f_back
    raise UserError("this callback works in a transformers.Trainer only: for other loops see PerSampleNorms")


def before_clipping(trainer: Trainer, observe: Callable[[], None]) -> Callable[[], None]:
    """Call `observe()` when all gradients of a step are there, before they are unscaled and clipped.

    Trainer calls accelerate's `clip_grad_norm_` in every step, without a bound when it only wants the norm; its own
    `on_pre_optimizer_step` comes after that. (It has a way of its own for gradients on several device meshes, which
    are then not observed.)

    Returns:
        A function that undoes it; harmless when called again, and whatever others do to the same Trainer.
    """
    accelerator: Any = trainer.accelerator
    clip = vars(accelerator).get("clip_grad_norm_")
    if not isinstance(clip, _ObservedClipping):
        clip = accelerator.clip_grad_norm_ = _ObservedClipping(accelerator, clip)
    clip.observers.append(observe)

    def undo() -> None:
        if observe in clip.observers:
            clip.observers.remove(observe)
            if not clip.observers and vars(accelerator).get("clip_grad_norm_") is clip:
                clip.restore()

    return undo


class _ObservedClipping:
    """Stands in for `accelerator.clip_grad_norm_` while there are observers.

    Args:
        own: somebody else's, on this very object; None for that of the class.
    """

    def __init__(self, accelerator: Any, own: Any) -> None:
        self.accelerator, self.own = accelerator, own
        self.clip = accelerator.clip_grad_norm_
        self.observers: list[Callable[[], None]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for observe in list(self.observers):
            observe()
        return self.clip(*args, **kwargs)

    def restore(self) -> None:
        if self.own is None:
            del self.accelerator.clip_grad_norm_
        else:
            self.accelerator.clip_grad_norm_ = self.own
