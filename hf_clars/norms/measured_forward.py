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
        return types.MethodType, (type(self.module).forward, self.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        entries = [e for e in (self.weight, self.bias) if e is not None and e.parameter.requires_grad]
        inputs = (*args, *kwargs.values())  # the input may be given by name
        if not entries or len(inputs) != 1 or not torch.is_grad_enabled():
            return type(self.module).forward(self.module, *args, **kwargs)
        (x,) = inputs
        rule = self.rule
        unbatched = x.ndim == rule.unbatched_ndim
        batch = 1 if unbatched else self.norms.samples_in(x.shape[0] if x.ndim else 0, entries)
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
    forwards = [module.__dict__.get("forward") for module in model.modules()]
    return {forward.norms for forward in forwards if isinstance(forward, MeasuredForward)}
