"""Rules of functions that take a tensor apart, or put several together."""

from __future__ import annotations

import torch
from torch import Tensor

from ..marks import axis_of
from .axis import SampleAxis, sliced, without
from .call import Call
from .operands import agreed, broadcast_axis


def selecting(call: Call) -> SampleAxis | None:
    """One entry of a dimension, or all of them apart."""
    axis = axis_of(call.x)
    position = 1
    dim = call.argument(position, ("dim",), 0) % call.x.ndim
    return None if axis is None else without(axis, [dim], keepdim=False)


def narrowing(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    dim, start, length = (call.argument(i + 1, (name,)) for i, name in enumerate(("dim", "start", "length")))
    if axis is None or isinstance(start, Tensor):
        return None
    if dim % call.x.ndim != axis.dim:
        return axis
    size = call.x.shape[axis.dim]
    start = start % size if start < 0 else start
    return sliced(axis, size, start, start + length, 1)


def splitting(call: Call) -> SampleAxis | None:
    """Runs of entries of a dimension, one after the other."""
    axis = axis_of(call.x)
    dim = call.argument(2, ("dim",), 0) % call.x.ndim
    if axis is None or dim != axis.dim:
        return axis
    start = sum([part.shape[dim] for part in call.outs[: call.number]])
    return sliced(axis, call.x.shape[dim], start, start + call.out.shape[dim], 1)


def concatenating(call: Call) -> SampleAxis | None:
    tensors = [t for t in call.argument(0, ("tensors",)) if not (t.ndim == 1 and t.numel() == 0)]
    dim = call.argument(1, ("dim", "axis"), 0) % call.out.ndim
    axes = [axis_of(t) for t in tensors]
    known = [axis for axis in axes if axis is not None]
    if not known:
        return None
    if known[0].dim != dim:
        return broadcast_axis(tensors, call.out.ndim)
    if len(known) < len(tensors) or known[0].pick is not None:
        return None
    whole = False not in [t.shape[dim] % (axis.batch * axis.inner) == 0 for t, axis in zip(tensors, known, strict=True)]
    return agreed(known) if whole else None


def stacking(call: Call) -> SampleAxis | None:
    dim = call.argument(1, ("dim",), 0) % call.out.ndim
    axis = broadcast_axis(call.argument(0, ("tensors",)), call.out.ndim - 1)
    if axis is None:
        return None
    return axis.at(axis.dim + 1) if axis.dim >= dim else axis


def hstacking(call: Call) -> SampleAxis | None:
    tensors = call.argument(0, ("tensors",))
    dim = 0 if tensors[0].ndim == 1 else 1
    return concatenating(Call(torch.cat, (tensors, dim), {}, call.tensors, call.out))
