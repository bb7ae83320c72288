"""What stands in a module's `forward` while it is watched."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .fast_path import Layer
from .forward_passes import ForwardPasses
from .inputs import why_untold
from .regions import Region
from .sample_axis.tags import tensors_in
from .tracked import PARAMETER, TrackedParameter, is_input, parameters_behind


class WatchedForward:
    """Stands in for `module.forward`: runs it under the tracer, unless an outer module's forward already does.

    Every module has one, because activation checkpointing calls any of them again, in the middle of the backward pass.
    A module that surely does nothing of interest (`parameters` empty, and see `is_plain`) runs without the tracer, and
    so does one of which it is known what it does (`layer`).
    """

    def __init__(
        self,
        passes: ForwardPasses,
        module: nn.Module,
        parameters: list[tuple[str, TrackedParameter]],
        layer: Layer | None,
    ) -> None:
        self.passes: ForwardPasses | None = passes
        self.module = module
        self.parameters = parameters
        self.plain = not parameters and is_plain(module)
        self.pools = type(module).__module__ == "torch.nn.modules.pooling"
        self.parts = [part for part in module.modules() if part is not module] if self.plain else []
        self.own = module.__dict__.get("forward")  # somebody else's wrapper
        self.layer = layer if self.own is None else None
        self.forward = module.forward
        self.__signature__ = inspect.signature(self.forward)  # Trainer reads which columns a model wants

    def __reduce__(self) -> Any:
        # A copy of the model (an EMA), or a pickled one, has its forward back.
        return getattr, (self.module, "forward") if self.own is None else (_Holder(self.own), "held")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        passes = self.passes
        if passes is None or passes.paused:
            return self.forward(*args, **kwargs)
        measurement, tracer = passes.measurement, passes.tracer
        for attribute, tracked in self.parameters:
            parameter = self.module._parameters.get(attribute)
            if parameter is None or getattr(parameter, PARAMETER, None) is tracked:
                continue
            if is_input(parameter):  # FSDP has exchanged it; what functional_call() puts there may be computed from it
                measurement.recorder.tag(tracked, parameter)
        eager = not torch.compiler.is_compiling()
        looks = eager and (not tracer.active or tracer.may_be_in_region())
        if looks:
            region = measurement.regions.entered(tracer.may_be_reentrant())
            if region is not None:
                return self._in_region(passes, region, args, kwargs)
        if tracer.active:
            if eager and not tracer.passing_by and self._is_alone():
                if self.plain:
                    return tracer.pass_by(self.forward, args, kwargs, self.pools)
                if self.layer is not None and not looks and len(args) == 1 and not kwargs:
                    y = self.layer.run(measurement, args[0])
                    if y is not None:
                        return y
            return self.forward(*args, **kwargs)
        if not measurement.regions.repeats() and not self._enter(passes, args, kwargs):
            return passes.pass_by(self.forward, args, kwargs)
        if measurement.batch == 0:  # no samples, no contributions
            return self.forward(*args, **kwargs)
        tracer.begin()
        try:
            with tracer:
                out = self.forward(*args, **kwargs)
        finally:
            tracer.leave()
            passes.inputs.leave(measurement)
        passes.leave(out)
        return out

    def _enter(self, passes: ForwardPasses, args: Any, kwargs: Any) -> bool:
        untold = why_untold(args, kwargs, passes.inputs.is_told) if torch.is_grad_enabled() else None
        if untold is not None:
            return passes.enter_untold(untold)
        return passes.enter(tensors_in((*args, *kwargs.values())), self.module is passes.model, self._takes_one)

    def _in_region(self, passes: ForwardPasses, region: Region, args: Any, kwargs: Any) -> Any:
        """A checkpointed function calls it, outside of any other: so it does once more in the backward pass."""
        measurement, tracer, given = passes.measurement, passes.tracer, (*args, *kwargs.values())
        regions, batch = measurement.regions, measurement.batch
        outer, regions.current = regions.current, region
        try:
            if region.run is None:
                if not tracer.active and not self._enter(passes, args, kwargs):
                    return passes.pass_by(self.forward, args, kwargs)
                regions.note(region, self.module, measurement.batch, given)
                out = self(*args, **kwargs)
                if region.reentrant:
                    cut = parameters_behind(tensors_in(given)) + parameters_behind(tensors_in((out,)))
                    measurement.exclude(cut, "what is computed from it crosses the border of reentrant checkpointing")
                return out
            if region.reentrant:
                measurement.recorder.passes.hold_others()
            known = regions.given(region, self.module, given)
            if known is None:  # measuring began after the first run
                return tracer.look_away(self.forward, args, kwargs)
            measurement.batch = known.batch
            return self(*args, **kwargs)
        finally:
            regions.current = outer
            if region.run is not None:
                measurement.batch = batch

    def _takes_one(self, tensors: list[Tensor]) -> bool:
        """Whether the module is one layer and its input has no batch dimension, but is one sample."""
        operator = None if self.layer is None or not tensors else self.layer.operator(tensors[0])
        return operator is not None and tensors[0].ndim == operator.sampler.unbatched_ndim

    def _is_alone(self) -> bool:
        """Whether nobody else looks into the module: no hooks on its parts, no other mode."""
        if torch._C._len_torch_function_stack() != 1:
            return False
        return not self.parts or not any(part._forward_hooks or part._forward_pre_hooks for part in self.parts)

    def restore(self) -> None:
        """Give the module its forward back; one that was wrapped since stays wrapped, without effect."""
        self.passes = None
        if self.module.__dict__.get("forward") is not self:
            return
        if self.own is None:
            del self.module.forward
        else:
            self.module.forward = self.own


_PLAIN = {f"torch.nn.modules.{name}" for name in ("activation", "dropout", "batchnorm", "instancenorm", "normalization",
                                                  "pooling")}  # fmt: skip


def is_plain(module: nn.Module) -> bool:
    """Whether a module of which nothing is measured leaves dimensions as they are, or, as pools do, the first one.

    So do torch's own activations and dropouts, and norms of any origin, with or without an activation.
    """
    if any(p.ndim >= 2 for p in module.parameters()):
        return False
    if type(module).__module__ in _PLAIN and next(module.children(), None) is None:
        return type(module) not in (nn.GLU, nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d)
    return isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))


class _Holder:
    def __init__(self, held: Any) -> None:
        self.held = held


class BeginPass:
    """The hook on the model's forward pass where none is watched; without effect in a copy of the model."""

    def __init__(self, passes: ForwardPasses | None) -> None:
        self.passes = passes

    def __reduce__(self) -> Any:
        return BeginPass, (None,)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # In the middle of a backward pass the model is not called for a new batch, but again by checkpointing.
        if self.passes is None or self.passes.paused:
            return
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            self.passes.begin_pass()


def passes_of(model: nn.Module) -> set[ForwardPasses]:
    """Everything that watches forward passes of the model or of part of it."""
    found = set()
    for module in model.modules():
        for part in (module.__dict__.get("forward"), *module._forward_pre_hooks.values()):
            if isinstance(part, (WatchedForward, BeginPass)) and part.passes is not None:
                found.add(part.passes)
    return found
