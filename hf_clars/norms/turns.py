"""Which passes are measured in the mode `subset`: some, of several samples each, and they stand for the others.

Measuring has a cost for each layer and pass, however few the samples. So one pass in `period` is measured, and the
others run as if nobody watched. The first pass of each gradient is measured, so that there is a denominator after any
number of micro-batches.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from .agreement import is_distributed
from .backward_passes import at_end_of_pass
from .recorder import Recorder

MEASURED_PASSES = 8  # of a step on all ranks at least, if it has as many: samples of one batch may be alike


def period_of(norm_samples: int, total: int, batch: int, world_size: int) -> int:
    """How many passes a measured pass stands for, itself included.

    Args:
        norm_samples, total: so many of the samples of a step on all ranks are to be measured.
        batch: samples of a pass.
    """
    passes = total // max(1, batch)
    return max(1, min(total // norm_samples, passes // MEASURED_PASSES, passes // world_size))


def measured_of(norm_samples: int, total: int, batch: int, period: int) -> int:
    """How many of a batch's samples are measured, if the pass stands for `period` passes."""
    if period > 1 and (period + 1) * norm_samples > total:
        return batch  # a longer period would be too long even so
    return min(batch, max(1, round(norm_samples * batch * period / max(total, batch))))


class Turns:
    """Says of each pass whether it is measured.

    A turn ends with a backward pass: several calls of the model before it may belong to one loss, so that all of them
    are measured, or none.

    Attributes:
        measured: whether the calls at hand are.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.measured = True
        self._is_over = True  # a backward pass came to its end since it was decided
        self._left = 0  # passes that may go unmeasured before the next that is measured
        self._always = False
        self._batch: int | None = None  # samples of the unmeasured call at hand
        self._seen = -1  # the last backward pass that went through a result

    def always(self) -> None:
        """Measure each pass from the next turn on: here, backward passes are not seen in the results of calls."""
        self._always = True

    def goes_on(self) -> bool:
        """Whether a backward pass is still to come for an unmeasured call."""
        return not self.measured and not self._is_over

    def begin(self) -> bool:
        """A call with new inputs begins; returns whether it is measured."""
        if self._is_over:
            self._is_over, before = False, self.measured
            self.measured = self._always or self._left < 1 or not self.recorder.may_stand()
            if self.measured:
                self.recorder.sum_up()  # what comes stands for later passes alone
            elif before:
                self.recorder.let_stand()
            self._batch = None
        return self.measured

    def period(self, norm_samples: int, total: int | None, batch: int | None) -> int:
        """How many passes the measured pass that begins stands for."""
        found = 1
        if batch and total is not None and not self._always:
            found = period_of(norm_samples, total, batch, dist.get_world_size() if is_distributed() else 1)
        self._left = found - 1
        return found

    def note_samples(self, tensors: list[Tensor], batch: int | None) -> None:
        """An unmeasured call has `batch` samples if its inputs are new ones, rather than results of an earlier call."""
        if self._batch is None or not any(t.requires_grad and not t.is_leaf for t in tensors):
            self._batch = batch or 0

    def watch(self, results: list[Tensor]) -> None:
        """See the backward pass begin that goes through one of these, which the call at hand returned."""
        unmeasured = None if self.measured else self._batch or 0
        for result in results:
            if result.grad_fn is not None:
                result.register_hook(lambda _: self._reached(unmeasured))

    def _reached(self, unmeasured: int | None) -> None:
        recorder = self.recorder
        if not recorder.computes_gradients():
            return
        if unmeasured is not None and recorder.passes.begin_unmeasured():
            recorder.stand_for(unmeasured)
            self._left -= 1
        backward = recorder.passes.outermost()
        if backward != self._seen:
            self._seen = backward
            if self._is_over:  # a second one through the same calls: one of them would stand for both
                self._always = True
            # Behind what DistributedDataParallel does at the end, which writes to gradients.
            at_end_of_pass(lambda: at_end_of_pass(lambda: self._end(unmeasured is not None)))

    def _end(self, unmeasured: bool) -> None:
        self.recorder.end_backward(unmeasured)
        self._is_over = True
