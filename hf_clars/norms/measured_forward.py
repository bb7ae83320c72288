"""What stands in a measured module's `forward`."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .ledger import Entry
from .rule import Rule
from .tap import Call, Tap

if TYPE_CHECKING:
    from .per_sample import PerSampleNorms


class MeasuredForward:
    """Stands in for `module.forward`: the same output, with a tap on its gradient."""

    def __init__(
        self, norms: PerSampleNorms, module: nn.Module, rule: Rule, weight: Entry | None, bias: Entry | None
    ) -> None:
        self.norms, self.module, self.rule, self.weight, self.bias = norms, module, rule, weight, bias

    def __reduce__(self) -> Any:
        # A copy of the model (an EMA), or a pickled one, has its plain forward back.
        return getattr, (self.module, "forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        entries = [e for e in (self.weight, self.bias) if e is not None and e.parameter.requires_grad]
        inputs = (*args, *kwargs.values())  # the input may be given by name
        if not entries or len(inputs) != 1 or not torch.is_grad_enabled():
            return type(self.module).forward(self.module, *args, **kwargs)
        (x,) = inputs
        rule = self.rule
        unbatched = x.ndim == rule.unbatched_ndim
        batch = self.norms.samples_in(x, rule, entries)
        if batch is None:
            return type(self.module).forward(self.module, x)

        weight = self.module._parameters["weight"]
        assert weight is not None
        measured_weight = self.weight if self.weight in entries else None
        measured_bias = self.bias if self.bias in entries else None
        subset = self.norms.subset_of(batch)
        x = rule.prepare(x)
        fused = measured_weight is not None and subset is None and rule.fused(x.unsqueeze(0) if unbatched else x, batch)
        y = rule.call(x, weight.detach() if fused else weight, self.module._parameters.get("bias"))
        call = Call(rule, measured_weight, measured_bias, batch, subset, fused, unbatched)
        return rule.finish(Tap.apply(y, x.detach(), weight if fused else None, call))


def attached_to(model: nn.Module) -> set[PerSampleNorms]:
    """Every `PerSampleNorms` that measures the model or part of it."""
    found = set()
    for module in model.modules():
        for part in (module.__dict__.get("forward"), *module._forward_pre_hooks.values()):
            if isinstance(part, (MeasuredForward, BeginPass)) and part.norms is not None:
                found.add(part.norms)
    return found


def is_own_forward(module: nn.Module) -> bool:
    """Whether the instance's `forward` is the class's: what a copy of a measured module has."""
    forward = module.__dict__["forward"]
    own = isinstance(forward, types.MethodType) and forward.__self__ is module
    return own and forward.__func__ is type(module).forward


class BeginPass:
    """The hook on the model's forward pass; without effect in a copy of the model."""

    def __init__(self, norms: PerSampleNorms | None) -> None:
        self.norms = norms

    def __reduce__(self) -> Any:
        return BeginPass, (None,)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.norms is not None:
            self.norms.begin_pass(args, kwargs)
