"""What stands in a module's `forward` while it is watched."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .ledger import Entry
from .marks import ENTRY, tensors_in
from .recomputation import Region, Regions, pages_of

if TYPE_CHECKING:
    from .layers import Layer
    from .per_sample import PerSampleNorms


class WatchedForward:
    """Stands in for `module.forward`: runs it under the interception, unless an outer module's forward already does.

    Every module has one, because activation checkpointing calls any of them again, in the middle of the backward pass.
    A module that surely does nothing of interest (`entries` empty, and see `is_plain`) runs without the interception,
    and so does one of which it is known what it does (`layer`).
    """

    def __init__(
        self, norms: PerSampleNorms, module: nn.Module, entries: list[tuple[str, Entry]], layer: Layer | None
    ) -> None:
        self.norms: PerSampleNorms | None = norms
        self.module = module
        self.entries = entries
        self.plain = not entries and is_plain(module)
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
        norms = self.norms
        if norms is None or norms.paused:
            return self.forward(*args, **kwargs)
        for attribute, entry in self.entries:
            parameter = self.module._parameters.get(attribute)
            if parameter is not None and getattr(parameter, ENTRY, None) is not entry:  # FSDP has exchanged it
                entry.belongs_to(parameter)
        interception = norms.interception
        eager = not torch.compiler.is_compiling()
        if eager and (not interception.active or interception.may_be_in_region()):
            region = interception.regions.entered(_CODE, interception.may_be_reentrant())
            if region is not None:
                return self._in_region(norms, region, args, kwargs)
        if interception.active:
            if eager and not interception.passing_by and self._is_alone():
                if self.plain:
                    return interception.pass_by(self.forward, args, kwargs, self.pools)
                if self.layer is not None and len(args) == 1 and not kwargs:
                    y = self.layer.run(norms, args[0])
                    if y is not None:
                        return y
            return self.forward(*args, **kwargs)
        if not interception.repeats():
            self._enter(norms, args, kwargs)
        if norms.batch == 0:  # no samples, no contributions
            return self.forward(*args, **kwargs)
        interception.begin()
        try:
            with interception:
                out = self.forward(*args, **kwargs)
        finally:
            interception.leave()
        norms.leave(out)
        return out

    def _enter(self, norms: PerSampleNorms, args: Any, kwargs: Any) -> None:
        norms.enter(self.module, tensors_in((*args, *kwargs.values())))

    def _in_region(self, norms: PerSampleNorms, region: Region, args: Any, kwargs: Any) -> Any:
        """A checkpointed function calls it, outside of any other: so it does once more in the backward pass."""
        interception, given = norms.interception, (*args, *kwargs.values())
        regions, batch = interception.regions, norms.batch
        outer, regions.current = regions.current, region
        try:
            if region.run is None:
                if not interception.active:
                    self._enter(norms, args, kwargs)
                regions.note(region, self.module, norms.batch, given)
                out = self(*args, **kwargs)
                if region.reentrant:
                    cut = pages_of(tensors_in(given)) + pages_of(tensors_in((out,)))
                    norms.exclude(cut, "what is computed from it crosses the border of reentrant checkpointing")
                return out
            if region.reentrant:
                norms.ledger.holds_other_passes()
            known = regions.given(region, self.module, given)
            if known is None:  # measuring began after the first run
                return interception.look_away(self.forward, args, kwargs)
            norms.batch = known.batch
            return self(*args, **kwargs)
        finally:
            regions.current = outer
            if region.run is not None:
                norms.batch = batch

    def takes_one(self, tensors: list[Tensor]) -> bool:
        """Whether the module is one layer and its input has no batch dimension, but is one sample."""
        operator = None if self.layer is None or not tensors else self.layer.operator(tensors[0])
        return operator is not None and tensors[0].ndim == operator.rule.unbatched_ndim

    def _is_alone(self) -> bool:
        """Whether nobody else looks into the module: no hooks on its parts, no other mode."""
        if torch._C._len_torch_function_stack() != 1:
            return False
        return not self.parts or not any(part._forward_hooks or part._forward_pre_hooks for part in self.parts)

    def restore(self) -> None:
        """Give the module its forward back; one that was wrapped since stays wrapped, without effect."""
        self.norms = None
        if self.module.__dict__.get("forward") is not self:
            return
        if self.own is None:
            del self.module.forward
        else:
            self.module.forward = self.own


_CODE = WatchedForward.__call__.__code__


def is_unwatched_in_reentrant(regions: Regions) -> bool:
    """Whether the innermost function that reentrant checkpointing will call again is not a module's forward."""
    return regions.is_unwatched(_CODE)


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


def attached_to(model: nn.Module) -> set[PerSampleNorms]:
    """Every `PerSampleNorms` that watches the model or part of it."""
    found = set()
    for module in model.modules():
        for part in (module.__dict__.get("forward"), *module._forward_pre_hooks.values()):
            if isinstance(part, (WatchedForward, BeginPass)) and part.norms is not None:
                found.add(part.norms)
    return found


class BeginPass:
    """The hook on the model's forward pass where none is watched; without effect in a copy of the model."""

    def __init__(self, norms: PerSampleNorms | None) -> None:
        self.norms = norms

    def __reduce__(self) -> Any:
        return BeginPass, (None,)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # In the middle of a backward pass the model is not called for a new batch, but again by checkpointing.
        if self.norms is None or self.norms.paused:
            return
        if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
            self.norms.begin_pass()
