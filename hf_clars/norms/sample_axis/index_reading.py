"""How an index reads: what `x[index]` does to each dimension of x."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def _item(item: Any) -> Any:
    """An item as torch reads it: None, Ellipsis, a slice, a tensor, or a number; False for what is not understood."""
    if isinstance(item, bool):
        return False
    if item is None or item is Ellipsis or isinstance(item, (slice, Tensor, int)):
        return item
    try:
        return operator.index(item)
    except TypeError:
        pass
    try:
        return torch.as_tensor(item)  # a list, a tuple, an array of NumPy
    except (TypeError, ValueError, RuntimeError):
        return False


def _items(ndim: int, index: Any) -> list[Any] | None:
    """An index as one item for each dimension it touches, and None for new ones; None for what is not understood."""
    if isinstance(index, list) and False in [isinstance(each, int) for each in index]:
        return None  # which is a tuple to some versions of torch
    items = list(index) if isinstance(index, tuple) else [index]
    items = [_item(item) for item in items]
    touched = 0
    for item in items:
        if item is False:
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
