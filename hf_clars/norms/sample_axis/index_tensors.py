"""How tensors of indices are made: those that count, and those that are the order of a sort.

Values of indices are not looked at, only how they were made. Three kinds are known: `arange(n)`, which leaves entries
where they are; the permutation of a sort, with its inverse; and any index that is used twice, first to pick entries of
a tensor and then to put them back to where they came from, as tokens are that are routed to experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .axis import Pick, SampleAxis
from .call import Call, name_of
from .shapes import along
from .tags import INDEX, axis_of


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
            one = items[places[0]] if len(places) == 1 else None
            whole = one is Ellipsis or (isinstance(one, slice) and one == slice(None))
            return Counting(places[0] - len(items)) if whole else None
    return None


_SAME = {"to", "long", "int", "contiguous", "clone", "detach", "type", "cuda", "cpu"}


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
