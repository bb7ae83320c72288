"""Where samples stand once rows of a tensor are picked, written, added or scattered by an index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .axis import Pick, SampleAxis, by_sample, same_objects, sliced
from .call import Call, Rule
from .index_reading import Reading, read
from .index_tensors import Counting, Permutation
from .operands import broadcast_axis
from .shapes import along
from .tags import INDEX, axis_of, place_of


def getting(call: Call) -> SampleAxis | None:
    """`x[index]`."""
    x, index = call.args[0], call.args[1]
    reading = read(x.ndim, index)
    if reading is None:
        return None
    if place_of(x) is None:  # a table, looked up by samples
        return _of_indices(reading)
    axis = axis_of(x)
    if axis is None:
        return None
    if axis.dim in reading.slices:
        entries = range(x.shape[axis.dim])[
            reading.slices[axis.dim]
        ]  # as `slice.indices`, which torch 2.11 cannot trace
        left = sliced(axis, x.shape[axis.dim], entries.start, entries.stop, entries.step)
        return None if left is None else left.at(reading.kept[axis.dim])
    if axis.dim in reading.picked:
        return _picked(axis, x.shape[axis.dim], reading, call.out.shape[reading.at] if reading.ndim else 1)
    return None


def _of_indices(reading: Reading) -> SampleAxis | None:
    if True in [t.dtype == torch.bool for t in reading.tensors]:
        return None
    axis = broadcast_axis(reading.tensors, reading.ndim)
    return None if axis is None else axis.at(axis.dim + reading.at)


def _picked(axis: SampleAxis, size: int, reading: Reading, rows: int) -> SampleAxis | None:
    """Entries of the samples' own dimension."""
    which: tuple[Any, ...] = tuple(reading.tensors)
    divisor = 1
    if True not in [t.dtype == torch.bool for t in which]:
        own = which[reading.picked.index(axis.dim)]
        made = getattr(own, INDEX, None)
        if type(made) is Counting and own.shape[made.dim] == size:
            return axis.at(reading.at + reading.ndim + made.dim)
        which = (own,)
        if type(made) is Permutation:
            if made.inverse:
                return _put_back(axis, (made.order,), reading.at)
            which, divisor = (made.order,), made.divisor
    if axis.pick is not None or reading.ndim != 1:
        return None
    source = axis.at(axis.dim, axis.inner * divisor)
    return SampleAxis(reading.at, 1, max(1, rows), axis.assumed, Pick(source, size * divisor, which))


def _put_back(axis: SampleAxis, index: tuple[Any, ...], dim: int) -> SampleAxis | None:
    """Where samples stand once the index that picked rows has brought them back."""
    return axis.pick.source.at(dim) if axis.pick is not None and same_objects(axis.pick.which, index) else None


def _written(target: Tensor, index: Any, value: Any) -> SampleAxis | None:
    """`target[index] = value`, where the target had no samples before."""
    reading, axis = read(target.ndim, index), axis_of(value)
    if reading is None or axis is None:
        return None
    ndim = max([reading.ndim + reading.at, *[place + 1 for place in reading.kept.values()]])
    place = axis.dim + ndim - value.ndim
    for dim, kept in reading.kept.items():
        if kept == place:
            size = target.shape[dim]
            return axis.at(dim) if range(size)[reading.slices[dim]] == range(size) else None
    if not reading.at <= place < reading.at + reading.ndim:
        return None
    if True not in [t.dtype == torch.bool for t in reading.tensors]:
        for dim, own in zip(reading.picked, reading.tensors, strict=True):
            made = getattr(own, INDEX, None)
            if type(made) is Counting and own.shape[made.dim] == target.shape[dim]:
                return axis.at(dim) if reading.at + reading.ndim + made.dim == place else None
    if axis.pick is None:
        return None
    dim = axis.pick.source.dim
    for which in (tuple(reading.tensors), *((t,) for t in reading.tensors)):
        if same_objects(axis.pick.which, which):
            back = axis.pick.source
            return back if dim in reading.picked and target.shape[dim] == axis.pick.size else None
    return None


def setting(call: Call) -> SampleAxis | None:
    """`x[index] = value`: rows of x stay whose they are, if those that are written are of the same samples."""
    return _into(call.args[0], call.args[1], call.args[2])


def putting(call: Call) -> SampleAxis | None:
    """`index_put(x, indices, values)`."""
    return _into(call.x, tuple(call.argument(1, ("indices",))), call.argument(2, ("values",)))


def _into(target: Tensor, index: Any, value: Any) -> SampleAxis | None:
    axis, reading = axis_of(target), read(target.ndim, index)
    if place_of(target) is None:
        return _written(target, index, value)
    if axis is None or reading is None or place_of(value) is None:
        return axis
    if axis.dim in reading.picked and True in [t.dtype == torch.bool for t in reading.tensors]:
        only = len(reading.tensors) == 1 and reading.picked[0] == 0 and value.ndim == 1 + len(reading.kept)
        return _filled(axis, reading.tensors[0] if only else None, value, value.shape[:1])
    return _if_same(axis, _written(target, index, value))


def _if_same(axis: SampleAxis | None, other: SampleAxis | None) -> SampleAxis | None:
    return axis if axis is not None and other is not None and axis.same_as(other) else None


def adding_rows(call: Call) -> SampleAxis | None:
    """`index_add(x, dim, index, source)` and `index_copy`."""
    target, source = call.x, call.argument(3, ("source",))
    if place_of(target) is None:
        return _added_rows(call, source)
    return axis_of(target) if place_of(source) is None else _if_same(axis_of(target), _added_rows(call, source))


def _added_rows(call: Call, source: Tensor) -> SampleAxis | None:
    target, axis = call.x, axis_of(source)
    dim, index = call.argument(1, ("dim",)) % target.ndim, call.argument(2, ("index",))
    if axis is None or axis.dim != dim:
        return axis
    which, divisor, made = index, 1, getattr(index, INDEX, None)
    if type(made) is Permutation and not made.inverse:
        which, divisor = made.order, made.divisor
    back = _put_back(axis, (which,), dim)
    if back is None or back.inner % divisor or axis.pick.size != target.shape[dim] * divisor:  # type: ignore[union-attr]
        return None
    return back.at(dim, back.inner // divisor)


def scattering(call: Call) -> SampleAxis | None:
    """`scatter(x, dim, index, source)` and its like: entries change places along that dimension alone."""
    target = call.x
    dim = call.argument(1, ("dim",)) % max(1, target.ndim)
    if place_of(target) is not None:
        source = call.argument(3, ("src", "value"))
        axis = axis_of(source)
        if place_of(source) is None:
            return axis_of(target)
        return _if_same(axis_of(target), None if axis is None or axis.dim == dim else axis)
    others = [t for t in call.tensors if place_of(t) is not None]
    if len(others) == 1 and others[0] is target:
        return axis_of(target)
    axis = broadcast_axis(others, target.ndim)
    whole = axis is not None and axis.dim != dim
    return axis if whole and False not in [t.shape[axis.dim] == target.shape[axis.dim] for t in others] else None  # type: ignore[union-attr]


def filling(call: Call) -> SampleAxis | None:
    """`masked_scatter(x, mask, source)`."""
    axis, mask, source = axis_of(call.x), call.argument(1, ("mask",)), call.argument(2, ("source",))
    if axis is None:
        return None
    axis = axis.at(axis.dim + call.out.ndim - call.x.ndim)
    return _filled(axis, mask.expand(call.out.shape), source, source.shape)


def _filled(axis: SampleAxis, mask: Tensor | None, source: Any, taken: Sequence[int]) -> SampleAxis | None:
    """Entries of a tensor are replaced where a mask says so, and its others stay whose they are.

    The source's go in their order to wherever there is room. Where that differs among samples, one of the two tensors
    was taken for samples and holds something else, such as several images for some of them.

    Args:
        mask: over the first dimensions; None for others.
        taken: sizes of those dimensions of the source that are counted.
    """
    its = axis_of(source)
    if its is None:
        return axis
    doubtful = its if its.assumed else axis
    fails = _room_differs(axis, mask, its, taken)
    if fails is not None and is_at_hand(fails):
        if not fails:
            return axis
    elif fails is not None and doubtful.assumed:
        for assumption in doubtful.assumed:
            assumption.refutations.append(fails)
        return axis
    doubtful.refute()
    return axis if its.assumed else None


def is_at_hand(flag: Tensor) -> bool:
    """Whether it may be read without waiting for a device."""
    return flag.device.type == "cpu"


def _room_differs(axis: SampleAxis, mask: Tensor | None, its: SampleAxis, taken: Sequence[int]) -> Tensor | None:
    """Whether the mask has another number of places for some sample than the source has entries, 0-dim; None where
    their order is not by samples, or compiled code would have to look at values."""
    if mask is None or mask.is_meta or torch.compiler.is_compiling():
        return None
    if axis.batch != its.batch or axis.pick is not None or its.pick is not None:
        return None
    for each, shape in ((axis, mask.shape), (its, taken)):
        if each.dim >= len(shape) or math.prod(shape[: each.dim + 1]) != each.batch * each.inner:
            return None
    room = by_sample(mask, axis).sum(tuple(range(1, mask.ndim + 1)))
    return (room != math.prod(taken) // its.batch).any()


def goes_by_place(rule: Rule | None, call: Call, u: Tensor, axis: SampleAxis) -> bool:
    """Whether which entries of u a sample meets depends on where it stands among the others: alone it meets others.

    Args:
        axis: where samples stand in the result.
    """
    if rule is gathering:
        return u.ndim > 1 and call.argument(1, ("dim",)) % u.ndim != axis.dim
    if rule is putting:  # but for a row that is the same wherever a mask says so
        reading = read(call.x.ndim, tuple(call.argument(1, ("indices",))))
        alike = reading is not None and u is not call.x and u.ndim <= call.x.ndim - len(reading.picked)
        return not alike or False in [t.dtype == torch.bool for t in reading.tensors]  # type: ignore[union-attr]
    return rule in (filling, adding_rows, scattering)


def copying(call: Call) -> SampleAxis | None:
    """`x.copy_(source)`."""
    source = call.argument(1, ("src", "other"))
    if place_of(source) is None:
        return axis_of(call.x)
    return broadcast_axis([source], call.x.ndim)


def gathering(call: Call) -> SampleAxis | None:
    """`gather(x, dim, index)`."""
    if place_of(call.x) is None:
        return broadcast_axis([t for t in call.tensors if place_of(t) is not None], call.out.ndim)
    return along(1)(call)


def selecting_rows(call: Call) -> SampleAxis | None:
    """`index_select(x, dim, index)`."""
    dim = call.argument(1, ("dim",)) % call.x.ndim
    index = (slice(None),) * dim + (call.argument(2, ("index",)),)
    return getting(Call(call.func, (call.x, index), {}, call.tensors, call.out))
