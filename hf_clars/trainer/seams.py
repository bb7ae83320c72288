"""Where a `TrainerCallback` must reach for what transformers does not hand it: the Trainer, and how a training ends.

tests/test_gradient_statistics.py and tests/test_no_trace.py fail when these seams move.
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
    trainer = trainer_on_the_stack()
    if trainer is None:
        raise UserError("this callback works in a transformers.Trainer only: for other loops see PerSampleNorms")
    return trainer


def trainer_on_the_stack() -> Trainer | None:
    """The innermost Trainer one of whose methods is under way; None where there is none."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        frame = frame.f_back
    return None


def resumed_from() -> str | None:
    """The checkpoint that the Trainer on the stack goes on from; its state says that it does, but not from which."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "train" and isinstance(frame.f_locals.get("self"), Trainer):
            found = frame.f_locals.get("resume_from_checkpoint")
            return found if isinstance(found, str) else None
        frame = frame.f_back
    return None


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
        clip = _ObservedClipping(accelerator, "clip_grad_norm_")
    clip.observers.append(observe)

    def undo() -> None:
        if observe in clip.observers:
            clip.observers.remove(observe)
            if not clip.observers:
                clip.restore()

    return undo


def at_end_of_training(trainer: Trainer, undo: Callable[[], None]) -> None:
    """Call `undo()` when the training that begins is over: after `on_train_end`, or before an error leaves `train()`.

    To be called in `on_train_begin`. Trainer tells callbacks of a training that ends well alone, so what it calls from
    then on is guarded on this very object, until the end: `_run_epoch`, `_finalize_training`, and all events.
    """
    handler = trainer.callback_handler
    event = vars(handler).get("call_event")
    if isinstance(event, _Guarded):
        ending = event.ending
    else:
        ending = _Ending()
        for owner, name in ((trainer, "_run_epoch"), (trainer, "_finalize_training"), (handler, "call_event")):
            ending.guards.append(_Guarded(owner, name, ending))
    if undo not in ending.undos:
        ending.undos.append(undo)


class _StandIn:
    """Stands in for a method of this very object, until `restore()`."""

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name
        self._others = vars(owner).get(name)  # somebody else's, on this very object; None for that of the class
        self.method = getattr(owner, name)
        setattr(owner, name, self)

    def restore(self) -> None:
        """Give the method back; one that was wrapped since stays wrapped."""
        if vars(self._owner).get(self._name) is not self:
            return
        if self._others is None:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._others)


class _ObservedClipping(_StandIn):
    """Stands in for `accelerator.clip_grad_norm_` while there are observers."""

    def __init__(self, owner: Any, name: str) -> None:
        super().__init__(owner, name)
        self.observers: list[Callable[[], None]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for observe in list(self.observers):
            observe()
        return self.method(*args, **kwargs)


class _Ending:
    """What is to be undone at the end of a training. Called there; harmless when called again."""

    def __init__(self) -> None:
        self.guards: list[_Guarded] = []
        self.undos: list[Callable[[], None]] = []

    def __call__(self) -> None:
        guards, self.guards = self.guards, []
        undos, self.undos = self.undos, []
        for guard in guards:
            guard.restore()
        for undo in undos:
            undo()


class _Guarded(_StandIn):
    """Stands in for a method that a training goes through: an error that comes out of it ends the training."""

    def __init__(self, owner: Any, name: str, ending: _Ending) -> None:
        super().__init__(owner, name)
        self.ending = ending

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            result = self.method(*args, **kwargs)
        except BaseException:
            self.ending()
            raise
        if args and args[0] == "on_train_end":  # of `call_event`, and all callbacks had it
            self.ending()
        return result
