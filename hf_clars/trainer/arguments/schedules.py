"""The learning rate over the steps: transformers' schedules, with warmup and decay stated in epochs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import SchedulerType, Trainer, get_scheduler

from ...errors import UserError

logger = logging.getLogger(__name__)


def warmup_factor(step: int, warmup_steps: int, start: float) -> float:
    """`start + (1 − start) · step / warmup_steps` before `warmup_steps`, 1 from there on.

    Gradual warmup (Goyal et al. 2017, section 2.2) begins at the learning rate of the base batch size, so with
    `start = B_base / B`; at 0 it is transformers' warmup.
    """
    return 1.0 if step >= warmup_steps else start + (1 - start) * step / warmup_steps


def milestone_factor(step: int, milestones: Sequence[int], decay: float) -> float:
    """`decay` to the power of how many milestones `step` has reached."""
    return decay ** sum(step >= milestone for milestone in milestones)


class EpochSchedules(Trainer):
    """A mix-in for `Trainer`: `warmup_epochs`, `decay_epochs`, `lr_milestones`, … of its arguments."""

    args: Any
    optimizer: Any
    steps_in: Callable[[str, float], int]

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        try:
            return self._create_scheduler(num_training_steps, optimizer)
        except UserError:
            raise
        except (ValueError, TypeError) as error:  # transformers' and Python's, of lr_scheduler_kwargs
            raise UserError(
                f"lr_scheduler_type={self.args.lr_scheduler_type} with lr_scheduler_kwargs="
                f"{self.args.lr_scheduler_kwargs}: {error}"
            ) from error

    def _create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None) -> LRScheduler:
        args = self.args
        if self.lr_scheduler is not None:
            return self.lr_scheduler
        warmup = args.get_warmup_steps(num_training_steps)
        if args.warmup_epochs is not None:
            warmup = self.steps_in("warmup_epochs", args.warmup_epochs)
        if warmup >= num_training_steps > 0:
            logger.warning("the warmup of %d steps lasts as long as the training, of %d", warmup, num_training_steps)
            num_training_steps = warmup + 1  # transformers divides by the steps that are left for the decay
        if not _is_refined(args):
            return super().create_scheduler(num_training_steps, optimizer)
        kwargs = args.lr_scheduler_kwargs
        if args.decay_epochs is not None:
            decay = min(self.steps_in("decay_epochs", args.decay_epochs), num_training_steps - warmup)
            kwargs = {**(kwargs or {}), "num_decay_steps": decay}
        milestones = [self.steps_in("lr_milestones", epoch) for epoch in args.lr_milestones or ()]
        kind = args.lr_scheduler_type
        self.lr_scheduler = _refined(
            get_scheduler(
                SchedulerType.CONSTANT_WITH_WARMUP if kind == SchedulerType.CONSTANT else kind,
                optimizer=optimizer if optimizer is not None else self.optimizer,
                num_warmup_steps=warmup,
                num_training_steps=num_training_steps,
                scheduler_specific_kwargs=kwargs,
            ),
            lambda step, factor: (
                (warmup_factor(step, warmup, args.warmup_start) if step < warmup else factor)
                * milestone_factor(step, milestones, args.lr_decay)
            ),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler


def check_schedule(args: Any) -> None:
    """Make the schedule of a training of two steps, and walk through it.

    Raises:
        UserError: arguments that the schedule does not take, or a warmup that it does not have.
    """
    kind, kwargs = args.lr_scheduler_type, args.lr_scheduler_kwargs
    refined = _is_refined(args)  # of a constant rate, by one with warmup
    without = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY, *(() if refined else (SchedulerType.CONSTANT,)))
    if kind in without and args.warmup_steps:
        raise UserError(f"warmup_steps={args.warmup_steps}: lr_scheduler_type={kind.value} has no warmup; "
                        "constant_with_warmup has one")  # fmt: skip
    if args.warmup_steps > 1 and not float(args.warmup_steps).is_integer():
        raise UserError(f"warmup_steps={args.warmup_steps} must be a whole number, or a share of all steps below 1")
    if isinstance(kwargs, str):
        raise UserError(f'lr_scheduler_kwargs={kwargs!r} is not JSON: a mapping, such as {{"power": 2}}')
    if kwargs and kind in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP):
        raise UserError(f"lr_scheduler_kwargs={kwargs} are nothing that lr_scheduler_type={kind.value} takes")
    if args.decay_epochs is not None:
        if kind != SchedulerType.WARMUP_STABLE_DECAY:
            raise UserError(f"decay_epochs={args.decay_epochs} is for lr_scheduler_type=warmup_stable_decay, "
                            f"not {kind.value}")  # fmt: skip
        if "num_decay_steps" in (kwargs or {}):
            raise UserError(f"decay_epochs={args.decay_epochs} and num_decay_steps={kwargs['num_decay_steps']}: "
                            "leave one out")  # fmt: skip
        kwargs = {**(kwargs or {}), "num_decay_steps": 1}
    optimizer = SGD([Parameter(torch.zeros(1))], lr=args.learning_rate)
    try:
        scheduler = get_scheduler(kind, optimizer, 1, 2, scheduler_specific_kwargs=kwargs)
        if refined:
            _refined(scheduler, lambda step, factor: factor)
        optimizer.step()
        for _ in range(2 if isinstance(scheduler, LambdaLR) else 0):  # to the end; others want a metric
            scheduler.step()
            rate = scheduler.get_last_lr()[0]
            if isinstance(rate, complex) or not 0 <= rate < float("inf"):
                base = getattr(args, "base_learning_rate", None)
                begins = f"learning_rate={args.learning_rate}" if base is None else f"base_learning_rate={base}"
                raise ValueError(f"{begins} becomes a learning rate of {rate}")
    except UserError:
        raise
    except (ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise UserError(f"lr_scheduler_type={kind.value} with lr_scheduler_kwargs={kwargs}: {error}") from error


def _is_refined(args: Any) -> bool:
    """Whether any of the schedule is stated in epochs, which transformers does not know."""
    return args.warmup_epochs is not None or args.decay_epochs is not None or bool(args.lr_milestones)


def _refined(scheduler: Any, refine: Callable[[int, float], float]) -> LambdaLR:
    """A schedule whose factor at a step is `refine(step, factor)` of another's."""
    if not isinstance(scheduler, LambdaLR):
        raise UserError("warmup_epochs and lr_milestones need a schedule that is a function of the step: not this "
                        f"lr_scheduler_type ({type(scheduler).__name__})")  # fmt: skip

    def refined(given: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: refine(step, given(step))

    return LambdaLR(scheduler.optimizer, [refined(given) for given in scheduler.lr_lambdas])
