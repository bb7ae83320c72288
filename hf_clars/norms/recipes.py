"""How a tensor is computed from parameters, written down while torch.compile traces, to be done again in its backward.

A compiled pass leaves no graph from `u = g(w)` back to `w`. What it can leave is `g` itself: nested tuples of functions
of torch, numbers and places of constant tensors, which compare and hash by value.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .marks import ENTRY, RECIPE

if TYPE_CHECKING:
    from .ledger import Ledger


@dataclass(frozen=True)
class Recipe:
    """`steps`: of kind "call", "parameter" (by index in the ledger), "constant" (by place), "sequence" or "value"."""

    steps: tuple[Any, ...]
    constants: tuple[Tensor, ...]


def recipe(func: Any, args: Any, kwargs: Any) -> Recipe | None:
    """Of a function call whose tensors are parameters, results of recipes, and constants; None if there is none."""
    if func not in FUNCTIONS:
        return None
    constants: list[Tensor] = []
    steps = _steps(args, constants)
    named = _steps(tuple(kwargs.values()), constants)
    if steps is None or named is None:
        return None
    return Recipe(("call", func, steps, tuple(kwargs), named), tuple(constants))


def _steps(value: Any, constants: list[Tensor]) -> tuple[Any, ...] | None:
    if isinstance(value, Tensor):
        entry = getattr(value, ENTRY, None)
        if entry is not None:
            return ("parameter", entry.index)
        if not value.requires_grad:
            constants.append(value)
            return ("constant", len(constants) - 1)
        known = getattr(value, RECIPE, None)
        if known is None:
            return None
        shifted = _shifted(known.steps, len(constants))
        constants += known.constants
        return shifted
    if isinstance(value, (tuple, list)):
        each = [_steps(v, constants) for v in value]
        return None if None in each else ("sequence", isinstance(value, list), tuple(each))
    return ("value", value)


def _shifted(steps: Any, by: int) -> Any:
    """The same steps with their constants in places `by` further on."""
    if steps[0] == "constant":
        return ("constant", steps[1] + by)
    if steps[0] == "sequence":
        return ("sequence", steps[1], tuple([_shifted(s, by) for s in steps[2]]))
    if steps[0] == "call":
        return ("call", steps[1], _shifted(steps[2], by), steps[3], _shifted(steps[4], by))
    return steps


def cook(steps: Any, constants: tuple[Tensor, ...], ledger: Ledger, index: int, parameter: Tensor) -> Any:
    """Do the steps, with `parameter` in place of the one with this index."""
    kind = steps[0]
    if kind == "parameter":
        return parameter if steps[1] == index else ledger.entries[steps[1]].parameter.detach()
    if kind == "constant":
        return constants[steps[1]]
    if kind == "value":
        return steps[1]
    if kind == "sequence":
        values = [cook(s, constants, ledger, index, parameter) for s in steps[2]]
        return values if steps[1] else tuple(values)
    _, func, args, names, named = steps
    values = cook(named, constants, ledger, index, parameter)
    return func(*cook(args, constants, ledger, index, parameter), **dict(zip(names, values, strict=True)))


# What weights and tables are computed with; all of it gives the same when it is done again. Dynamo does not recognise
# methods that are written in Python.
NAMES = """
    add sub mul div true_divide neg pow exp log sqrt rsqrt square abs reciprocal sigmoid tanh relu softmax
    softplus clamp mean sum var std norm matmul mm bmm addmm rsub where
    __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __neg__ __pow__ __matmul__ __getitem__
    view view_as reshape reshape_as flatten unflatten permute transpose t movedim squeeze unsqueeze expand expand_as
    repeat contiguous to float type_as cat stack chunk split index_select gather embedding batch_norm layer_norm conv2d
"""
FUNCTIONS = {
    function
    for space in (torch, Tensor)
    for name in NAMES.split()
    if (function := getattr(space, name, None)) is not None
    and not (space is Tensor and isinstance(function, types.FunctionType))
} | {F.linear, F.gelu, F.silu, F.interpolate, F.normalize}
