"""Operators of users' own: a function becomes measurable by what says which sampler serves it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .ops import OPERATORS, Operator
from .sample_axis.axis import SampleAxis
from .sample_axis.call import Call, Rule
from .sample_axis.table import RULES
from .sample_axis.tags import axis_of, place_of, tensors_in

TakeApart = Callable[..., Operator | None]


def measured_by(take_apart: TakeApart) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """A decorator: `PerSampleNorms` measures the parameters of a function of yours by a sampler.

    It is for what is not seen otherwise, or has a shorter way to per-sample gradients: a kernel of your own, a
    `torch.autograd.Function`. `verify_norms` checks the sampler on a batch of yours.

    Args:
        take_apart: a function of the same arguments. It returns an `Operator`, or None for a call that is to be
            measured by what the function itself calls. The function returns one tensor, whose samples stand where those
            of `Operator.x` stand.

    Under `torch.compile` parameters that only the function's own kernel uses are named, not measured.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Tensor:
            tensors = tuple(tensors_in((*args, *kwargs.values())))
            if has_torch_function(tensors):
                operator = take_apart(*args, **kwargs)
                if operator is not None and place_of(operator.x) is not None:
                    return handle_torch_function(call, tensors, *args, **kwargs)
            return function(*args, **kwargs)

        OPERATORS[call] = take_apart
        RULES[call] = _in_place_of_input(take_apart)
        return call

    return decorate


def _in_place_of_input(take_apart: TakeApart) -> Rule:
    def where(call: Call) -> SampleAxis | None:
        with torch._C.DisableTorchFunction():
            operator = take_apart(*call.args, **call.kwargs)
        axis = None if operator is None else axis_of(operator.x)
        if operator is None or axis is None or axis.dim >= operator.sampler.sample_dims(operator.x.ndim):
            return None
        return axis if call.out.shape[axis.dim : axis.dim + 1] == operator.x.shape[axis.dim : axis.dim + 1] else None

    return where
