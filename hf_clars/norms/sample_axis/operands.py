"""Where several operands meet: the one place that all of them say."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from .axis import Assumption, SampleAxis
from .call import Call
from .tags import place_of


def agreed(axes: Iterable[SampleAxis]) -> SampleAxis | None:
    """The one place that all say, in a result's dimensions; None where they differ.

    A place that was assumed yields to one that is known, and is confirmed by it.
    """
    found: SampleAxis | None = None
    for axis in axes:
        if found is None:
            found = axis
        elif found.same_as(axis):
            if found.assumed and axis.assumed:
                _confirm_unlikely(found.assumed, axis.assumed)
                _confirm_unlikely(axis.assumed, found.assumed)
                new = tuple([a for a in axis.assumed if a not in found.assumed])
                found = SampleAxis(found.dim, found.inner, found.batch, found.assumed + new, found.pick)
            else:
                for assumption in found.assumed + axis.assumed:
                    assumption.confirm()
                found = axis if found.assumed else found
        elif axis.assumed and not found.assumed:
            axis.refute()
        elif found.assumed and not axis.assumed:
            found.refute()
            found = axis
        else:
            return None
    return found


def _confirm_unlikely(some: tuple[Assumption, ...], others: tuple[Assumption, ...]) -> None:
    """Copies of a parameter that meet what is likely to be samples are theirs, if it is."""
    if False not in [other.likely for other in others]:
        for assumption in some:
            if not assumption.likely and not assumption.confirmed:
                assumption.confirm(others)


def aligned(call: Call) -> SampleAxis | None:
    """Operands that broadcast: their dimensions are counted from the last."""
    return broadcast_axis(call.tensors, call.out.ndim)


def choosing(call: Call) -> SampleAxis | None:
    """`where(condition, x, y)`; of a condition alone it gives indices, which are nobody's."""
    alone = len(call.args) + len(call.kwargs) == 1
    return None if alone else aligned(call)


def broadcast_axis(tensors: Iterable[Tensor], ndim: int, last: int = 0) -> SampleAxis | None:
    """Where samples stand in a result with `ndim` dimensions, of operands that broadcast but for the `last` ones."""
    axes, lost = [], []
    tensors = list(tensors)
    others = [place_of(tensor) for tensor in tensors] if last else []
    for tensor in tensors:
        place = place_of(tensor)
        if type(place) is SampleAxis:
            if place.dim >= tensor.ndim - last:
                if place.assumed and True in [type(other) is SampleAxis and not other.assumed for other in others]:
                    place.refute()  # samples are in front of it, in another operand
                    continue
                return None
            axes.append(place.at(ndim - tensor.ndim + place.dim))
        elif place is not None:
            lost.append(tensor)
    found = agreed(axes)
    if found is None:
        return None
    for tensor in lost:  # as statistics of the whole batch are, whose rows are no samples'
        dim = found.dim - (ndim - tensor.ndim)
        if dim >= 0 and tensor.shape[dim] != 1:
            return None
    return found
