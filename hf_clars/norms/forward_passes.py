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
        if not any(life.samples for life in recorder.lives):
            # FSDP keeps unsharded gradients aside, so an empty `grad` says nothing about the gradient's life.
            recorder.follows_gradient = not any(isinstance(m, FSDPModule) for m in self._members)
        if torch.compiler.is_compiling():
            recorder.check.decided = False  # its backward pass decides
            return
        if not recorder.follows_gradient or self.measurement.mode == "micro_batch":
            return
        if torch._C._current_graph_task_id() == -1:  # not in a backward pass, where checkpointing calls again
            recorder.check.begin_pass(recorder.parameters)

    def enter(self, tensors: list[Tensor], whole: bool, takes_one: Callable[[list[Tensor]], bool]) -> None:
        """A watched module is called from outside any other: its arguments are where samples come in.

        Args:
            whole: it is the model itself.
            takes_one: whether it takes these for one sample without a batch dimension.
        """
        carried = self.inputs.carried(tensors, self.measurement.recorder, whole)
        if carried:
            self.measurement.batch = self.inputs.go_on(tensors, carried, self.measurement.batch)
        else:
            self.begin_pass()
            self.measurement.batch = self.inputs.begin(tensors, len(self._members) == 1 and takes_one(tensors))

    def leave(self, out: Any) -> None:
        """Such a call has ended, with these results."""
        if not torch.compiler.is_compiling():
            remember_results(tensors_in((out,)), self.measurement.recorder)

    def settle_check(self) -> None:
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() == -1:
            self.measurement.recorder.settle_check()
