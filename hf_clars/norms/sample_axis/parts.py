"""Rules of functions that take a tensor apart, or put several together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .axis import Pick, SampleAxis, same_objects, sliced, without
from .call import Call
from .operands import agreed, broadcast_axis
from .tags import axis_of


class Run(NamedTuple):
    """Picked rows `start … stop−1` of so many.

    Args:
        of: what picked all of them.
    """

    of: tuple[Any, ...]
    start: int
    stop: int
    total: int


class Entry(NamedTuple):
    """An entry of the dimension in which samples stand, taken apart from the others."""

    of: Tensor
    number: int


def selecting(call: Call) -> SampleAxis | None:
    """One entry of a dimension, or all of them apart."""
    axis = axis_of(call.x)
    position = 1
    dim = call.argument(position, ("dim",), 0) % call.x.ndim
    if axis is not None and axis.dim == dim and len(call.outs) > 1 and call.out.ndim and axis.pick is None:
        pick = Pick(axis, call.x.shape[dim], (Entry(call.x, call.number),))
        return SampleAxis(0, 1, max(1, call.out.shape[0]), axis.assumed, pick)
    return None if axis is None else without(axis, [dim], keepdim=False)


def _all_entries(tensors: Sequence[Tensor], dim: int, rows: int) -> SampleAxis | None:
    """Where samples stand in all entries that were taken apart, together again along that dimension, each in `rows`."""
    axes = [axis_of(t) for t in tensors]
    picks = [axis.pick for axis in axes if axis is not None and axis.pick is not None]
    entries = [pick.which[0] for pick in picks if type(pick.which[0]) is Entry]
    if len(entries) < len(tensors) or len(entries) != picks[0].size or {t.shape for t in tensors} != {tensors[0].shape}:
        return None
    if False in [entry.of is entries[0].of and entry.number == i for i, entry in enumerate(entries)]:
        return None
    source = picks[0].source
    return source.at(dim, source.inner * rows)


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
    stop = start + call.out.shape[dim]
    if axis.pick is not None:
        run = Run(axis.pick.which, start, stop, call.x.shape[dim])
        return SampleAxis(dim, 1, max(1, stop - start), axis.assumed, Pick(axis.pick.source, axis.pick.size, (run,)))
    return sliced(axis, call.x.shape[dim], start, stop, 1)


def concatenating(call: Call) -> SampleAxis | None:
    tensors = [t for t in call.argument(0, ("tensors",)) if not (t.ndim == 1 and t.numel() == 0)]
    dim = call.argument(1, ("dim", "axis"), 0) % call.out.ndim
    axes = [axis_of(t) for t in tensors]
    known = [axis for axis in axes if axis is not None]
    if not known:
        return None
    if known[0].dim != dim:
        return broadcast_axis(tensors, call.out.ndim)
    if len(known) < len(tensors):
        return None
    if known[0].pick is not None:
        return _all_entries(tensors, dim, tensors[0].shape[dim]) or _joined(known, dim)
    whole = False not in [t.shape[dim] % (axis.batch * axis.inner) == 0 for t, axis in zip(tensors, known, strict=True)]
    return agreed(known) if whole else None


def _joined(axes: list[SampleAxis], dim: int) -> SampleAxis | None:
    """Picked rows that were split into runs, and are whole again."""
    pick, end = axes[0].pick, 0
    for axis in axes:
        run = axis.pick.which[0] if axis.pick is not None else None
        if axis.dim != dim or type(run) is not Run or run.start != end or not same_objects(run.of, _of(pick)):
            return None
        end = run.stop
    if pick is None or end != pick.which[0].total:
        return None
    return SampleAxis(dim, 1, max(1, end), axes[0].assumed, Pick(pick.source, pick.size, _of(pick)))


def _of(pick: Pick | None) -> tuple[Any, ...]:
    return pick.which[0].of if pick is not None and type(pick.which[0]) is Run else ()


def stacking(call: Call) -> SampleAxis | None:
    dim = call.argument(1, ("dim",), 0) % call.out.ndim
    entries = _all_entries(call.argument(0, ("tensors",)), dim, 1)
    if entries is not None:
        return entries
    axis = broadcast_axis(call.argument(0, ("tensors",)), call.out.ndim - 1)
    if axis is None:
        return None
    return axis.at(axis.dim + 1) if axis.dim >= dim else axis


def hstacking(call: Call) -> SampleAxis | None:
    tensors = call.argument(0, ("tensors",))
    dim = 0 if tensors[0].ndim == 1 else 1
    return concatenating(Call(torch.cat, (tensors, dim), {}, call.tensors, call.out))
