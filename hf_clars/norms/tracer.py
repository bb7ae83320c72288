"""What watches a forward pass: a mode that is asked about each torch function it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .measurement import Measurement
from .meeting import Meeting
from .placing import SORTS, note_index, placed
from .python_functions import opened, recognised
from .recorded_calls import is_writing
from .sample_axis.axis import Lost
from .sample_axis.table import LEAVING, OF_FIRST, RULES
from .sample_axis.tags import INDEX, axis_of, place_of, tagged, tensors_in
from .tracked import CUT, is_input, is_tracked, parameters_behind, tracked_tensor
from .weight_recipes import note_change


class Tracer(TorchFunctionMode):
    """Keeps track of what depends on samples, and of where they stand in it (`sample_axis/`); and of what depends on
    parameters alone (`u = g(w)`: a standardised weight, a table of relative positions). Where the two meet, it hands
    over to `Meeting`.

    Attributes:
        active: an outermost forward is under way.
        passing_by: a module that does nothing of interest is.
    """

    def __init__(self, measurement: Measurement) -> None:
        super().__init__()
        self.measurement = measurement
        self.bearers = measurement.bearers
        self.meeting = Meeting(measurement)
        self.active = False
        self.passing_by = False
        self._trains = False  # the outermost forward takes gradients, or will in reentrant checkpointing's second run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            func = recognised(func)
        if func in OF_FIRST:
            tensors = [args[0]]
        else:
            tensors = tensors_in(args)
            if kwargs:
                tensors += tensors_in(kwargs.values())
        samples = tracked = indices = False
        alike = None  # what all tensors with samples are like, if they are
        for tensor in tensors:
            place = place_of(tensor)
            if place is not None:
                if not samples:
                    alike = tensor, place
                elif alike is not None and (place is not alike[1] or tensor.shape != alike[0].shape):
                    alike = None
                samples = True
                indices = indices or hasattr(tensor, INDEX)
            elif is_tracked(tensor):
                tracked = True
            elif hasattr(tensor, INDEX):
                indices = True
            elif tensor.requires_grad and not is_input(tensor):
                self.bearers.place(tensor, Lost("its input comes from a function that is not watched"))
                samples, alike = True, None
        rule = RULES.get(func) if samples else None
        opens = opened(func) if samples and rule is None else None
        if opens is None and tracked and torch.is_grad_enabled():
            opens = opened(func)
        if opens is not None:
            return self._inside(opens, args, kwargs)
        if not torch.is_grad_enabled():
            cut = self._cut(tensors) if self._trains else ()
            out = func(*args, **kwargs)
            if cut and not samples:
                tagged(out, CUT, cut)
            if tracked and torch.compiler.is_compiling() and is_writing(func):
                note_change(args[0])
        elif tracked:
            if not samples:
                of = [t for t in map(tracked_tensor, tensors) if t is not None]
                return self.meeting.compute(func, args, kwargs, of)
            out = self.meeting.meet(func, args, kwargs, tensors)
        else:
            out = func(*args, **kwargs)
        if samples:
            in_place = len(args) > 0 and out is args[0]
            moved = in_place or alike is None or not isinstance(out, Tensor) or out.shape != alike[0].shape
            if not moved and not indices and alike is not None and rule in LEAVING:
                self.bearers.place(out, alike[1])  # nothing moved
                return out
            out = placed(func, args, kwargs, tensors, out, rule, self.bearers)
        if indices or (samples and func in SORTS) or func is torch.arange:
            note_index(func, args, kwargs, tensors, out)
        return out

    def begin(self) -> None:
        """An outermost forward begins."""
        self.active = True
        self._trains = not torch.compiler.is_compiling() and (
            torch.is_grad_enabled() or self.measurement.regions.current is not None
        )

    def leave(self) -> None:
        """The outermost forward is over."""
        self.active = self._trains = False
        self.meeting.leave()

    def may_be_in_region(self) -> bool:
        """Whether it is worth a look for activation checkpointing, amid a forward pass."""
        return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None

    def may_be_reentrant(self) -> bool:
        """Whether it is worth a look at the stack: of reentrant checkpointing, the first run takes no gradients, and
        the second is in a backward pass."""
        if torch.is_grad_enabled():
            return not self.active and torch._C._current_graph_task_id() != -1
        return self._trains or not self.active

    def look_away(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module, and all that it calls, without watching."""
        outer = self.active, self.passing_by
        self.active = self.passing_by = True
        try:
            with torch._C.DisableTorchFunction():
                return forward(*args, **kwargs)
        finally:
            self.active, self.passing_by = outer

    def pass_by(self, forward: Callable[..., Any], args: Any, kwargs: Any, pools: bool) -> Any:
        """Run a module that uses no parameter and leaves dimensions as they are, without watching it.

        Args:
            pools: all but the first dimension, that is.
        """
        if len(args) != 1 or kwargs:
            return forward(*args, **kwargs)
        axis = axis_of(args[0])
        if axis is None or (pools and axis.dim > 0):
            return forward(*args, **kwargs)
        self.passing_by = True
        try:
            with torch._C.DisableTorchFunction():
                out = forward(*args)
        finally:
            self.passing_by = False
        for each in tensors_in((out,)):
            self.bearers.place(each, axis)
        return out

    def _cut(self, tensors: list[Tensor]) -> tuple[Any, ...]:
        """Parameters behind what a function uses where no gradients are taken, as in reentrant checkpointing's first
        run."""
        parameters = parameters_behind(tensors)
        if parameters and self.measurement.regions.is_unwatched_reentrant():
            self.measurement.exclude(parameters, "it is used in a checkpointed function that is not a module")
            return ()
        return tuple(parameters)

    def _inside(self, inside: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a function that is written in Python, and see what it calls."""
        with self:
            return inside(*args, **kwargs)
