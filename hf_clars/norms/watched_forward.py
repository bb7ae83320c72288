"""What stands in a module's `forward` while it is watched."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from .ledger import Entry
from .inputs import Recalled
from .marks import ENTRY, tensors_in

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
        self.recalled = Recalled()
        self.forward = module.forward
        self.__signature__ = inspect.signature(self.forward)  # Trainer reads which columns a model wants

    def __reduce__(self) -> Any:
        # A copy of the model (an EMA), or a pickled one, has its forward back.
        return getattr, (self.module, "forward") if self.own is None else (_Holder(self.own), "held")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        norms = self.norms
        if norms is None:
            return self.forward(*args, **kwargs)
        for attribute, entry in self.entries:
            parameter = self.module._parameters.get(attribute)
            if parameter is not None and getattr(parameter, ENTRY, None) is not entry:  # FSDP has exchanged it
                entry.belongs_to(parameter)
        interception = norms.interception
        if interception.active:
            if not torch.compiler.is_compiling() and _may_be_called_again():
                self.recalled.remember(tensors_in((*args, *kwargs.values())))
            if not torch.compiler.is_compiling() and not interception.passing_by and self._is_alone():
                if self.plain:
                    return interception.pass_by(self.forward, args, kwargs, self.pools)
                if self.layer is not None and len(args) == 1 and not kwargs:
                    y = self.layer.run(norms, args[0])
                    if y is not None:
                        return y
            return self.forward(*args, **kwargs)
        tensors = tensors_in((*args, *kwargs.values()))
        norms.enter(self.module, tensors, self.recalled)
        if not torch.compiler.is_compiling() and _may_be_called_again():
            self.recalled.remember(tensors)
        if norms.batch == 0:  # no samples, no contributions
            return self.forward(*args, **kwargs)
        interception.active = True
        try:
            with interception:
                return self.forward(*args, **kwargs)
        finally:
            interception.leave()

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


def _may_be_called_again() -> bool:
    """Whether activation checkpointing may call a module again: reentrant, it first calls without gradients."""
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def is_recomputed_unwatched() -> bool:
    """Whether the innermost function that activation checkpointing will call again is not a module's forward.

    Nothing can be measured in its second call, and what is saved in the first must be what is saved in the second.
    Reentrant checkpointing does not keep the first call's graph and is not of interest.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is None or getattr(hooks[0], "__module__", "") != torch.utils.checkpoint.__name__:
        return False
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not WatchedForward.__call__.__code__:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


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
        if self.norms is not None and (torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1):
            self.norms.begin_pass()
