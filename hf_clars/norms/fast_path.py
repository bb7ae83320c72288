"""Layers whose `forward` is torch's own, one operator: measured without looking at what they call.

Asking a mode about each function costs the host more time than launching it. Of these layers the answer is known: what
the table of operators says of the function their `forward` calls, once for each kind of input.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import conv, linear

from .measurement import Measurement
from .ops import OPERATORS, Operator
from .plan import Plan, decide
from .sample_axis.axis import SampleAxis
from .sample_axis.tags import axis_of
from .tracked import is_tracked

_KINDS = 64
_CONVOLUTIONS: dict[type[nn.Module], Any] = {
    nn.Conv1d: torch.conv1d,
    nn.Conv2d: torch.conv2d,
    nn.Conv3d: torch.conv3d,
}


class Layer:
    """A module whose `forward` is one operator on its own weight and bias."""

    def __init__(self, module: nn.Module, operator: Callable[[Tensor], Operator | None]) -> None:
        self._module, self.operator = module, operator
        self.kinds: dict[Any, Plan] = {}  # what was decided about inputs of each kind

    @classmethod
    def of(cls, module: nn.Module) -> Layer | None:
        """None for a module that does something else."""
        operator = _operator_of(module)
        return None if operator is None else cls(module, operator)

    def run(self, measurement: Measurement, x: Any) -> Tensor | None:
        """The layer's result, where gradients are taken and nobody hooks what is saved for them; None where it takes
        looking at what the layer calls."""
        if not _is_as_built(self._module):
            return None
        weight, bias = _parameters(self._module)
        if type(x) is not Tensor or type(weight) is not nn.Parameter:
            return None
        axis = axis_of(x)
        if axis is None or axis.pick is not None:
            return None
        with torch._C.DisableTorchFunction():
            if not (is_tracked(weight) or is_tracked(bias)):
                return None
            plan = self._plan(measurement, x, weight, bias, axis)
            if plan is None:
                return None
            y = plan.run(measurement, axis, x, weight, bias)
            measurement.bearers.place(y, axis)  # a layer leaves it where it is, or `decide` has refused
            return y

    def _plan(
        self, measurement: Measurement, x: Tensor, weight: nn.Parameter, bias: Any, axis: SampleAxis
    ) -> Plan | None:
        kind = axis.dim, axis.inner, axis.batch, measurement.period, _kind(self._module, x, weight, bias)
        try:
            plan = self.kinds.get(kind)
        except TypeError:  # strides in a list
            return None
        if plan is None:
            operator = self.operator(x)
            plan = None if operator is None or operator.x is not x else decide(measurement, operator)
            if plan is not None:
                if len(self.kinds) >= _KINDS:  # of sequences, each may have its length
                    self.kinds.clear()
                self.kinds[kind] = plan
        return plan


def _operator_of(module: nn.Module) -> Callable[[Tensor], Operator | None] | None:
    """From a layer's input to its operator; None for modules that do something else."""
    if not _is_as_built(module):
        return None
    if isinstance(module, nn.Linear):
        if not _calls_torchs(module, nn.Linear, linear, "forward"):
            return None
        return lambda x: OPERATORS[F.linear](x, *_parameters(module))
    for kind, function in _CONVOLUTIONS.items():
        if isinstance(module, kind) and _calls_torchs(module, kind, conv, "forward", "_conv_forward"):
            return lambda x: OPERATORS[function](x, *_parameters(module), *_geometry(module))
    return None


def _calls_torchs(module: nn.Module, kind: type[nn.Module], origin: ModuleType, *methods: str) -> bool:
    """Whether its class has these from torch's class `kind`, and nobody exchanged them there."""
    both = [(getattr(type(module), name), getattr(kind, name)) for name in methods]
    return all(own is torchs and getattr(torchs, "__globals__", None) is vars(origin) for own, torchs in both)


def _is_as_built(module: nn.Module) -> bool:
    """Whether weight and bias, if there, are parameters: after pruning and the like they are not; and whether a
    convolution pads with zeros, and calls what its class does."""
    values = module.__dict__
    own = values["_parameters"]
    if "weight" not in own or "bias" not in own:
        return False
    return values.get("padding_mode", "zeros") == "zeros" and "_conv_forward" not in values


def _kind(module: nn.Module, x: Tensor, weight: nn.Parameter, bias: Any) -> tuple[Any, ...]:
    """All that the operator depends on, and what is decided about measuring it."""
    where = x.device
    device = where.type
    return (
        x.shape,
        x.dtype,
        where,
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None,
        weight.shape,
        weight.requires_grad,
        bias is not None and bias.requires_grad,
        None if isinstance(module, nn.Linear) else _geometry(module),
    )


def _parameters(module: nn.Module) -> tuple[Any, Any]:
    """Weight and bias; None for what is absent."""
    return module._parameters.get("weight"), module._parameters.get("bias")


def _geometry(module: nn.Module) -> tuple[Any, ...]:
    values = module.__dict__
    return values["stride"], values["padding"], values["dilation"], values["groups"]
