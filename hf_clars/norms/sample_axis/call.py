"""A function call of a forward pass, as the rules see it."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .axis import SampleAxis


@dataclass
class Call:
    """A function call and one of its results.

    Args:
        out, number: the result, and which of several it is.
        outs: all results, for functions that return several.
    """

    func: Any
    args: Any
    kwargs: Any
    tensors: list[Tensor]
    out: Tensor
    number: int = 0
    outs: Any = ()

    def argument(self, position: int, names: tuple[str, ...], default: Any = None) -> Any:
        if len(self.args) > position:
            return self.args[position]
        for name in names:
            if name in self.kwargs:
                return self.kwargs[name]
        return default

    @property
    def x(self) -> Any:
        return first_of(self.args, self.kwargs)


def first_of(args: Any, kwargs: Any) -> Any:
    """The first argument, which may be given by name."""
    return args[0] if args else kwargs.get("input", kwargs.get("self"))


# From a call to where samples stand in its result; None where that is not known.
Rule = Callable[[Call], SampleAxis | None]

SPACES: tuple[Any, ...] = (
    torch, Tensor, F, torch._C._nn, torch.special, torch.linalg, torch.fft, torch.functional,
    torch._C._VariableFunctions,
)  # fmt: skip


def functions_named(name: str) -> list[Any]:
    """All that go by this name: functions, methods, what works in place, and properties' getters."""
    found = []
    for space in SPACES:
        for each in (name, f"{name}_"):
            value = getattr(space, each, None)
            if isinstance(value, (types.GetSetDescriptorType, property)):
                value = value.__get__
            if callable(value):
                found.append(value)
    packet = getattr(torch.ops.aten, name, None)  # what dynamo calls in place of properties' getters
    return found if packet is None else [*found, packet]


def name_of(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    return str(name)


@torch.compiler.assume_constant_result
def works_in_place(func: Any) -> bool:
    """Whether torch's name for it says so."""
    return name_of(func).endswith("_")
