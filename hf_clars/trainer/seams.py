"""Where a `TrainerCallback` must reach for what transformers does not hand it: the Trainer, and how a training ends.

tests/test_gradient_statistics.py and tests/test_no_trace.py fail when these seams move.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import FrameType
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
    trainer = trainer_on_the_stack()
    if trainer is None:
        raise UserError("this callback works in a transformers.Trainer only: for other loops see PerSampleNorms")
    return trainer


def trainer_on_the_stack() -> Trainer | None:
    """The innermost Trainer one of whose methods is under way; None where there is none."""
    return next((trainer for _, trainer in _methods_under_way()), None)


def resumed_from() -> str | None:
    """The checkpoint that the Trainer on the stack goes on from; its state says that it does, but not from which."""
    for frame, _ in _methods_under_way():
        if frame.f_code.co_name == "train":
            found = frame.f_locals.get("resume_from_checkpoint")
            return found if isinstance(found, str) else None
    return None


def _methods_under_way() -> Iterator[tuple[FrameType, Trainer]]:
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(owner := frame.f_locals.get("self"), Trainer):
            yield frame, owner
        frame = frame.f_back


def before_clipping(trainer: Trainer, observe: Callable[[], None]) -> None:
    """Call `observe()` in each step of the training that begins, before gradients are unscaled and clipped.

    All gradients of the step are there. Trainer calls accelerate's `clip_grad_norm_` in every step, without a bound
    when it only wants the norm; its own `on_pre_optimizer_step` comes after that. (It has a way of its own for
    gradients on several device meshes, which are then not observed.)
    """

    def clip(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        observe()
        return method(*args, **kwargs)

    at_end_of_training(trainer, _StandIn(trainer.accelerator, "clip_grad_norm_", clip).restore)


def at_end_of_training(trainer: Trainer, undo: Callable[[], None]) -> None:
    """Call `undo()` when the training that begins is over: after `on_train_end`, or before an error leaves `train()`.

    To be called in `on_train_begin`; what was asked for last is undone first. Trainer tells callbacks of a training
    that ends well alone, so what it calls from then on is guarded on this very object, until the end: `_run_epoch`,
    `_finalize_training`, and all events.
    """
    handler = trainer.callback_handler
    ending: ExitStack | None = getattr(vars(handler).get("call_event"), "ending", None)
    if ending is None:
        ending = _guarded(trainer)
    ending.callback(undo)


def _guarded(trainer: Trainer) -> ExitStack:
    """What is to be undone at the end of the training that begins; harmless when it is closed again."""
    ending = ExitStack()

    def guard(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            result = method(*args, **kwargs)
        except BaseException:
            ending.close()
            raise
        if args[:1] == ("on_train_end",):  # of `call_event`, and all callbacks had it
            ending.close()
        return result

    handler = trainer.callback_handler
    for owner, name in ((trainer, "_run_epoch"), (trainer, "_finalize_training"), (handler, "call_event")):
        ending.callback(_StandIn(owner, name, guard, ending).restore)
    return ending


class _StandIn:
    """A method of this very object is `around(method, …)` until `restore()`."""

    def __init__(self, owner: Any, name: str, around: Callable[..., Any], ending: ExitStack | None = None) -> None:
        self.ending = ending
        self._owner, self._name, self._around = owner, name, around
        self._others = vars(owner).get(name)  # somebody else's, on this very object; None for that of the class
        self._method = getattr(owner, name)
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._around(self._method, *args, **kwargs)

    def restore(self) -> None:
        """Give the method back; one that was wrapped since stays wrapped."""
        if vars(self._owner).get(self._name) is not self:
            return
        if self._others is None:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._others)
