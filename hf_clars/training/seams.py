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
    `on_pre_optimizer_step` comes after that.

    Returns:
        A function that undoes it; harmless when called again.
    """
    accelerator: Any = trainer.accelerator
    own = vars(accelerator).get("clip_grad_norm_")  # someone else's, on this very object
    clip = accelerator.clip_grad_norm_

    def observed(*args: Any, **kwargs: Any) -> Any:
        observe()
        return clip(*args, **kwargs)

    def undo() -> None:
        if vars(accelerator).get("clip_grad_norm_") is observed:
            if own is None:
                del accelerator.clip_grad_norm_
            else:
                accelerator.clip_grad_norm_ = own

    accelerator.clip_grad_norm_ = observed
    return undo
