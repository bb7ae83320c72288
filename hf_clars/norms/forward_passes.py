"""The forward passes of a watched model: when one begins, goes on and ends, and how many samples it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from .between import remember_results
from .inputs import Inputs
from .measurement import Measurement
from .sample_axis.tags import tensors_in
from .tracer import Tracer
from .turns import Turns


class ForwardPasses:
    """Of one model.

    Args:
        model: that is watched.
        inputs: where samples come in.

    Attributes:
        paused: forward passes are nobody's business for now.
    """

    def __init__(self, model: nn.Module, measurement: Measurement, inputs: Inputs) -> None:
        self.model = model
        self.measurement = measurement
        self.inputs = inputs
        self.tracer = Tracer(measurement)
        self.paused = False
        self._members: list[nn.Module] = []

    def look_at_members(self) -> None:
        """The model is watched from now on, with the modules it has."""
        self._members = list(self.model.modules())

    def forget_members(self) -> None:
        self._members = []

    def begin_pass(self) -> None:
        """A forward pass begins."""
        recorder = self.measurement.recorder
        self.settle_check()
        recorder.begin_forward()
        # In compiled code a look at the number of samples would be a guard that each micro-batch fails.
        if torch.compiler.is_compiling() or not any(life.samples for life in recorder.lives):
            # FSDP keeps unsharded gradients aside, so an empty `grad` says nothing about the gradient's life.
            recorder.follows_gradient = not any(isinstance(m, FSDPModule) for m in self._members)
        if torch.compiler.is_compiling():
            recorder.check.decided = False  # its backward pass decides
            return
        if not recorder.follows_gradient or self.measurement.mode == "micro_batch":
            return
        if torch._C._current_graph_task_id() == -1:  # not in a backward pass, where checkpointing calls again
            recorder.check.begin_pass(recorder.parameters)

    def enter(self, tensors: list[Tensor], whole: bool, takes_one: Callable[[list[Tensor]], bool]) -> bool:
        """A watched module is called from outside any other: its arguments are where samples come in.

        Args:
            whole: it is the model itself.
            takes_one: whether it takes these for one sample without a batch dimension.

        Returns whether it is measured; if not, `pass_by` is to call it.
        """
        measurement, turns = self.measurement, self._turns()
        if turns is not None and turns.goes_on():  # nobody watched, so nothing is known of what earlier calls returned
            return self._begin_unmeasured(turns, tensors, takes_one)
        carried = self.inputs.carried(tensors, measurement.recorder, whole)
        if carried:
            measurement.batch = self.inputs.go_on(tensors, carried, measurement.batch)
            return True
        trains = turns is not None and (torch.is_grad_enabled() or measurement.regions.current is not None)
        if turns is not None and not (turns.begin() if trains else turns.measured):
            return self._begin_unmeasured(turns, tensors, takes_one)
        self.begin_pass()
        measurement.batch = self.inputs.begin(tensors, self._takes_one(tensors, takes_one))
        if turns is None:
            measurement.period = 1
        elif trains:
            measurement.period = turns.period(measurement.norm_samples, measurement.total_batch_size, measurement.batch)
        return True

    def enter_untold(self, reason: str) -> bool:
        """As `enter`, of arguments in which it is not known where samples stand: what they meet is named."""
        self.settle_check()
        recorder = self.measurement.recorder
        recorder.begin_forward(measured=False)
        rest = [tracked for tracked in recorder.parameters if not tracked.excluded]
        self.measurement.exclude(rest, reason)
        return False

    def _turns(self) -> Turns | None:
        """None where each pass is measured: in compiled code nobody decides anew in each."""
        if self.measurement.mode != "subset" or torch.compiler.is_compiling():
            return None
        if self.measurement.regions.current is not None:
            self.measurement.turns.always()  # a checkpointed function calls it, and may do so where no gradients are
        return self.measurement.turns

    def _begin_unmeasured(self, turns: Turns, tensors: list[Tensor], takes_one: Callable[[list[Tensor]], bool]) -> bool:
        self.settle_check()
        self.measurement.recorder.begin_forward(measured=False)
        turns.note_samples(tensors, self.inputs.samples(tensors, self._takes_one(tensors, takes_one)))
        return False

    def _takes_one(self, tensors: list[Tensor], takes_one: Callable[[list[Tensor]], bool]) -> bool:
        return len(self._members) == 1 and takes_one(tensors)

    def pass_by(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a module that is not measured, and all that it calls, as if nobody watched."""
        self.paused = True
        try:
            out = forward(*args, **kwargs)
        finally:
            self.paused = False
        if self.measurement.mode == "subset":
            self.measurement.turns.watch(tensors_in((out,)))
        return out

    def leave(self, out: Any) -> None:
        """A call that is measured has ended, with these results."""
        if not torch.compiler.is_compiling():
            results = tensors_in((out,))
            remember_results(results, self.measurement.recorder)
            if self.measurement.mode == "subset" and not self.measurement.regions.repeats():
                self.measurement.turns.watch(results)

    def settle_check(self) -> None:
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() == -1:
            self.measurement.recorder.settle_check()
