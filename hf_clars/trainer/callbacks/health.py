"""What all processes of a training must agree on once in every optimizer step, and what follows from it."""

from __future__ import annotations

import logging
import math
import signal
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from transformers import TrainerCallback

from ...data.batches import SKIP_REASONS
from ...errors import DIVERGED, TrainingFailedError
from ..signals import SIGNALS, StopRequest

logger = logging.getLogger(__name__)
_LOSS = 2**32  # what counts losses, in the number that counts gradients


class StepHealth(TrainerCallback):
    """Is the gradient finite, does a process want to end, how many examples were skipped?

    One all-reduce of a few numbers and one wait for the device in every optimizer step, before the update.

    - A gradient that is not finite is thrown away, with what the step did to the running statistics of normalisation
      layers. The step counts as one (its examples are gone) but changes no weight. So many of them in a row end the
      training. Under a `GradScaler`, whose business it is, such steps are only counted.
    - A process that got SIGTERM or SIGUSR1 makes all of them write a checkpoint and end.
    - Too large a share of skipped examples in an epoch ends the training.

    Args:
        trainer: whose steps; its arguments say how many, `max_nonfinite_steps` and `max_skipped_share`.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.stop_request = StopRequest()
        self._begin()

    def _begin(self) -> None:
        self._max_nonfinite: int = self._trainer.args.max_nonfinite_steps
        self._max_share: float = self._trainer.args.max_skipped_share
        self.stopped_by: signal.Signals | None = None
        self.skipped_examples = dict.fromkeys(SKIP_REASONS, 0)  # of the whole run and all processes
        self.skipped_steps = 0
        self.logged_at = self.unlogged_skipped_steps = 0
        self.in_a_row = 0  # steps up to now whose gradient was not finite
        self.lost_in_a_row = 0  # of these, and up to now, the ones that no loss scale explains
        self._in_epoch = 0
        self._gradient_norm: Tensor | None = None
        self._skipped: Tensor | None = None
        self._before: _BeforeStep | None = None

    # --- what is observed during a step --------------------------------------------------------------------------

    def observe_gradient(self, norm: Any) -> None:
        self._gradient_norm = norm if isinstance(norm, Tensor) else torch.tensor(float(norm))

    def observe_skipped(self, counts: Tensor) -> None:
        self._skipped = counts if self._skipped is None else self._skipped + counts

    # --- callbacks -----------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._in_epoch = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._max_nonfinite:
            self._before = self._before or _BeforeStep(self._trainer)
            self._before.remember()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        nonfinite, lost, stop, skipped = self._agree(args.device)
        self.lost_in_a_row = self.lost_in_a_row + 1 if lost else 0
        if nonfinite:
            self._skip_step(state)
        else:
            self.in_a_row = 0
        if stop is not None:
            self.stopped_by = stop
        self._count(skipped)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopped_by is not None:
            control.should_save = control.should_training_stop = True

    # --- consequences --------------------------------------------------------------------------------------------

    def _agree(self, device: torch.device) -> tuple[bool, bool, signal.Signals | None, list[int]]:
        norm, self._gradient_norm = self._gradient_norm, None
        skipped, self._skipped = self._skipped, None
        values = torch.tensor([0, *(self.stop_request.signal == s for s in SIGNALS), *(0 for _ in SKIP_REASONS)])
        values = values.to(device, non_blocking=True)
        if norm is not None and self._max_nonfinite:
            values[0] = ~norm.isfinite() + _LOSS * ~self._trainer._tr_loss.isfinite()
        if skipped is not None:
            values[-len(SKIP_REASONS) :] = skipped
        both, *rest = reduce(values, "sum").tolist()  # over processes
        losses, gradients = divmod(both, _LOSS)
        lost = bool(gradients) and (bool(losses) or not self._has_loss_scale())
        wishes, counts = rest[: len(SIGNALS)], rest[len(SIGNALS) :]
        stop = next((s for s, wish in zip(SIGNALS, wishes, strict=True) if wish), None)
        return bool(gradients), lost, stop, counts

    def _has_loss_scale(self) -> bool:
        scaler = self._trainer.accelerator.scaler
        return scaler is not None and scaler.is_enabled()

    def _skip_step(self, state: Any) -> None:
        self.skipped_steps += 1
        self.unlogged_skipped_steps += 1
        self.in_a_row += 1
        if self._before is not None:
            self._before.restore()
        if not self._has_loss_scale():
            self._trainer.model_wrapped.zero_grad()
        if self.in_a_row >= self._max_nonfinite:
            raise TrainingFailedError(
                f"the gradients of {self.in_a_row} steps in a row, up to step {state.global_step + 1}, were not "
                f"finite: {DIVERGED}. Lower learning_rate (γ_scale) or eta, and resume from a checkpoint "
                "before it"
            )

    def _count(self, skipped: list[int]) -> None:
        for reason, count in zip(SKIP_REASONS, skipped, strict=True):
            self.skipped_examples[reason] += count
        self._in_epoch += sum(skipped)
        length = self._trainer.examples_per_epoch
        if length and self._in_epoch > self._max_share * length:
            raise TrainingFailedError(
                f"{self._in_epoch} of {length} examples of an epoch were skipped ({self.skipped_text()}), more than "
                f"max_skipped_share={self._max_share:g} allows: mend the data, or allow more"
            )

    def report(self, logs: dict[str, float], step: int) -> None:
        """Complete what is logged: counts of what was skipped so far, and the mean loss of the steps that were not."""
        steps, done = step - self.logged_at, step - self.logged_at - self.unlogged_skipped_steps
        if self.unlogged_skipped_steps:
            logs["loss"] = logs["loss"] * steps / done if done else math.nan
        if self.skipped_steps:
            logs["skipped_steps"] = self.skipped_steps
        logs.update({f"skipped_{reason}": count for reason, count in self.skipped_examples.items() if count})
        self.logged_at, self.unlogged_skipped_steps = step, 0

    def divergence(self) -> str | None:
        """Why a training that has come to its end did not end well; None if it did. The same on all processes.

        One last step without a finite gradient may be due to a sample; a second one before it tells that it is not.
        """
        state = self._trainer.state
        if self.lost_in_a_row >= min(2, state.global_step) > 0:
            steps = f"the last {self.lost_in_a_row} step(s), up to step {state.global_step}"
            return f"the gradients of {steps}, were not finite"
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        if not self.skipped_steps and losses and not math.isfinite(losses[-1]):
            return f"the last loss, up to step {state.global_step}, is {losses[-1]}"
        return None

    def skipped_text(self) -> str:
        return ", ".join(f"{reason} {count}" for reason, count in self.skipped_examples.items() if count)


class _BeforeStep:
    """Running statistics and the loss to be logged as they were before a step."""

    def __init__(self, trainer: Any) -> None:
        values = [b for m in trainer.model.modules() for b in _running_statistics(m)] + [trainer._tr_loss]
        kinds = {(value.dtype, value.device) for value in values}
        self._values = [[v for v in values if (v.dtype, v.device) == kind] for kind in kinds]
        self._copies = [[torch.empty_like(v) for v in alike] for alike in self._values]

    @torch.no_grad()
    def remember(self) -> None:
        for copies, values in zip(self._copies, self._values, strict=True):
            torch._foreach_copy_(copies, values)

    @torch.no_grad()
    def restore(self) -> None:
        for copies, values in zip(self._copies, self._values, strict=True):
            torch._foreach_copy_(values, copies)


def _running_statistics(module: nn.Module) -> list[Tensor]:
    names = ("running_mean", "running_var", "num_batches_tracked")
    return [value for name in names if isinstance(value := getattr(module, name, None), Tensor)]
