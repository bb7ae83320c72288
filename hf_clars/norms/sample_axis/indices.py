"""Where samples stand after entries of a tensor were picked by indices, or written to places that indices say.

Values of indices are not looked at, only how they were made. Three kinds are known: `arange(n)`, which leaves entries
where they are; the permutation of a sort, with its inverse; and any index that is used twice, first to pick entries of
a tensor and then to put them back to where they came from, as tokens are that are routed to experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .axis import Pick, SampleAxis, same_objects, sliced
from .call import Call, name_of
from .operands import broadcast_axis
from .shapes import along
from .tags import INDEX, axis_of, place_of


@dataclass(frozen=True, eq=False)
class Counting:
    """`arange(n)` along a dimension that is counted from the last one (−1)."""

    dim: int


@dataclass(frozen=True, eq=False)
class Permutation:
    """The order of a sort of one dimension: `order // divisor`, or the inverse of `order`."""

    order: object
    divisor: int = 1
    inverse: bool = False


def index_after(call: Call) -> Counting | Permutation | None:
    """How an index is made that a function returns."""
    func, name = call.func, name_of(call.func)
    made = getattr(call.x, INDEX, None) if isinstance(call.x, Tensor) else None
    if func is torch.arange:
        start = call.args[0] if len(call.args) > 1 else call.kwargs.get("start", 0)
        step = call.args[2] if len(call.args) > 2 else call.kwargs.get("step", 1)
        return Counting(-1) if start == 0 and step == 1 and call.out.ndim == 1 else None
    if name in ("sort", "argsort") and call.x.ndim == 1 and not call.out.is_floating_point():
        if type(made) is Permutation and not made.inverse and made.divisor == 1 and name == "argsort":
            return Permutation(made.order, inverse=True)
        if name == "sort" and call.number == 0:
            return None
        known = getattr(call.out, INDEX, None)
        return known if type(known) is Permutation else Permutation(object())
    if name in ("__setitem__", "scatter", "scatter_"):  # inverse[order] = arange(n)
        first = 1 if name == "__setitem__" else 2
        index, value = call.argument(first, ("index",)), call.argument(first + 1, ("src", "value"))
        made = getattr(index, INDEX, None)
        if (
            type(made) is Permutation
            and not made.inverse
            and made.divisor == 1
            and type(getattr(value, INDEX, None)) is Counting
        ):
            return Permutation(made.order, inverse=True) if call.out.shape == index.shape == value.shape else None
        return None
    if type(made) is Permutation:
        if name in ("floor_divide", "__floordiv__", "div") and made.divisor == 1 and not made.inverse:
            by = call.argument(1, ("other",))
            whole = name != "div" or call.kwargs.get("rounding_mode") in ("floor", "trunc")
            return Permutation(made.order, by) if isinstance(by, int) and whole else None
        return made if name in _SAME else None
    if type(made) is Counting:
        if name in _SAME:
            return made
        if name == "unsqueeze":
            dim = call.argument(1, ("dim",)) % call.out.ndim - call.out.ndim
            return Counting(made.dim - 1 if dim >= made.dim else made.dim)
        if name in ("view", "reshape") and call.out.shape[0] == call.out.numel() == call.x.numel():
            return Counting(-call.out.ndim) if call.out.numel() > 1 else None
        if name == "__getitem__" and call.x.ndim == 1 and isinstance(call.args[1], tuple):
            items = list(call.args[1])
            places = [i for i, item in enumerate(items) if item is not None]
            whole = len(places) == 1 and items[places[0]] in (slice(None), Ellipsis)
            return Counting(places[0] - len(items)) if whole else None
    return None


_SAME = {"to", "long", "int", "contiguous", "clone", "detach", "type", "cuda", "cpu"}


def _items(ndim: int, index: Any) -> list[Any] | None:
    """An index as one item for each dimension it touches, and None for new ones; None for what is not understood."""
    items = list(index) if isinstance(index, tuple) else [index]
    items = [torch.tensor(item) if isinstance(item, list) else item for item in items]
    touched = 0
    for item in items:
        if isinstance(item, bool):
            return None
        if isinstance(item, Tensor):
            touched += item.ndim if item.dtype == torch.bool else 1
        elif item is not None and item is not Ellipsis:
            touched += 1
    rest = [slice(None)] * (ndim - touched)
    if True in [item is Ellipsis for item in items]:
        at = [item is Ellipsis for item in items].index(True)
        return items[:at] + rest + items[at + 1 :]
    return items + rest


@dataclass
class Reading:
    """What an index does to each dimension of a tensor.

    Args:
        kept: dimension → dimension of the result, for those that are sliced.
        slices: dimension → its slice.
        numbers: dimensions of which one entry is taken.
        picked: dimensions that tensors of indices pick from, in order.
        tensors: those tensors.
        at, ndim: where the dimensions that they bring begin in the result, and their number.
    """

    kept: dict[int, int]
    slices: dict[int, slice]
    numbers: list[int]
    picked: list[int]
    tensors: list[Tensor]
    at: int
    ndim: int


def read(ndim: int, index: Any) -> Reading | None:
    items = _items(ndim, index)
    if items is None:
        return None
    reading = Reading({}, {}, [], [], [], 0, 0)
    dim, apart = 0, False
    order: list[int | None] = []
    last: int | None = None
    for item in items:
        if item is None:
            order.append(None)
        elif isinstance(item, Tensor) and not (item.ndim == 0 and item.dtype != torch.bool):
            width = item.ndim if item.dtype == torch.bool else 1
            reading.picked += range(dim, dim + width)
            reading.tensors.append(item)
            reading.ndim = max(reading.ndim, 1 if item.dtype == torch.bool else item.ndim)
            apart = apart or (last is not None and last != len(order))
            if last is None:
                reading.at = len(order)
            last = len(order)
            dim += width
        elif isinstance(item, slice):
            reading.slices[dim] = item
            order.append(dim)
            dim += 1
        else:  # a number
            reading.numbers.append(dim)
            dim += 1
    if apart:
        reading.at = 0
    for place, source in enumerate(order):
        if source is not None:
            reading.kept[source] = place + (reading.ndim if place >= reading.at else 0)
    return reading


def sorting(call: Call) -> SampleAxis | None:
    """`sort` and `argsort`: rows of samples come in the order that it returns beside them."""
    axis = axis_of(call.x)
    if axis is None or call.x.ndim != 1:
        return along(1, -1)(call)
    if axis.pick is not None:
        return None
    order = call.outs[1] if name_of(call.func) == "sort" else call.out
    made = getattr(order, INDEX, None)
    if type(made) is not Permutation:
        made = Permutation(object())
        setattr(order, INDEX, made)
    size = call.x.shape[0]
    return SampleAxis(0, 1, max(1, size), axis.assumed, Pick(axis, size, (made.order,)))


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
        start, stop, step = reading.slices[axis.dim].indices(x.shape[axis.dim])
        left = sliced(axis, x.shape[axis.dim], start, stop, step)
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
            return axis.at(dim) if reading.slices[dim].indices(size) == (0, size, 1) else None
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


def _stays(target: Tensor, value: Any, written: SampleAxis | None) -> SampleAxis | None:
    """Where samples stand in a tensor that had some, once a value is written: where they were, if so it is written."""
    axis = axis_of(target)
    if axis is None or place_of(value) is None:
        return axis
    return axis if written is not None and written.same_as(axis) else None


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
        return axis
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
        return _stays(target, source, None if axis is None or axis.dim == dim else axis)
    others = [t for t in call.tensors if place_of(t) is not None]
    if len(others) == 1 and others[0] is target:
        return axis_of(target)
    axis = broadcast_axis(others, target.ndim)
    whole = axis is not None and axis.dim != dim
    return axis if whole and False not in [t.shape[axis.dim] == target.shape[axis.dim] for t in others] else None  # type: ignore[union-attr]


def filling(call: Call) -> SampleAxis | None:
    """Entries of x are replaced where a mask says so; x's own stay whose they are."""
    return axis_of(call.x)


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
