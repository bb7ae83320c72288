"""Rules of functions of one tensor that move, merge, split, reduce or rearrange its dimensions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .axis import SampleAxis, permuted, reshaped, without
from .call import Call, Rule, name_of, works_in_place
from .operands import aligned
from .tags import axis_of


def keeping(call: Call) -> SampleAxis | None:
    """All dimensions stay; what the function does along one of them does not matter."""
    axis = axis_of(call.x)
    return axis if axis is not None and call.out.shape == call.x.shape else None


def reshaping(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    # In place, the shape that it had is gone.
    # As another type, entries are split or joined.
    in_place = call.out is call.x and works_in_place(call.func)
    unknown = in_place or call.out.numel() != call.x.numel()
    return None if axis is None or unknown else reshaped(axis, call.x.shape, call.out.shape)


def permuting(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    return None if axis is None else permuted(axis, _order(call))


def _order(call: Call) -> list[int]:
    ndim = call.x.ndim
    order = list(range(ndim))
    name = name_of(call.func)
    if name == "permute":
        return _dims(_all_of(call, ("dims",)), ndim)
    if name in ("movedim", "moveaxis"):
        sources = call.argument(1, ("source",))
        targets = call.argument(2, ("destination",))
        sources = [d % ndim for d in (sources if isinstance(sources, (tuple, list)) else [sources])]
        targets = [d % ndim for d in (targets if isinstance(targets, (tuple, list)) else [targets])]
        rest = [d for d in order if d not in sources]
        for target, source in sorted(zip(targets, sources, strict=True)):
            rest.insert(target, source)
        return rest
    if name in ("t", "t_", "T", "H", "mT", "mH", "adjoint", "numpy_T", "matrix_H"):
        if name in ("T", "numpy_T"):
            return order[::-1]
        one, other = (ndim - 2, ndim - 1) if ndim > 1 else (0, 0)
    else:  # transpose, swapaxes, swapdims
        one = call.argument(1, ("dim0", "axis0")) % ndim
        other = call.argument(2, ("dim1", "axis1")) % ndim
    order[one], order[other] = order[other], order[one]
    return order


def expanding(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    return None if axis is None else axis.at(axis.dim + call.out.ndim - call.x.ndim)


def repeating(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    if axis is None or axis.pick is not None:
        return None
    times = _all_of(call, ("repeats", "dims", "reps"))
    moved = axis.at(axis.dim + call.out.ndim - call.x.ndim)
    return moved if len(times) <= call.out.ndim else None


def interleaving(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    times, dim = call.argument(1, ("repeats",)), call.argument(2, ("dim",))
    if axis is None or times is None or isinstance(times, Tensor) or axis.pick is not None:
        return None  # `times` are the entries of x, if there are no others: so many indices of each
    times = max(1, times)  # of what is empty then, every place is right
    if dim is None:
        flat = reshaped(axis, call.x.shape, (call.x.numel(),))
        return None if flat is None else flat.at(0, flat.inner * times)
    return axis.at(axis.dim, axis.inner * times) if dim % call.x.ndim == axis.dim else axis


def _all_of(call: Call, names: tuple[str, ...]) -> list[int]:
    """Numbers after the first argument, in a tuple or one by one."""
    value = call.argument(1, names)
    return list(value) if isinstance(value, (tuple, list)) else list(call.args[1:]) or [value]


def _dims(value: Any, ndim: int) -> list[int]:
    return [d % ndim for d in (value if isinstance(value, (tuple, list)) else [value])]


def reducing(position: int) -> Rule:
    """Functions that reduce over some dimensions, given at that position of their arguments."""

    def rule(call: Call) -> SampleAxis | None:
        dims = call.argument(position, ("dim", "axis"))
        if isinstance(dims, Tensor):  # torch.max of two tensors
            return aligned(call)
        axis = axis_of(call.x)
        if axis is None or dims is None or isinstance(dims, str):
            return aligned(call) if len(call.tensors) > 1 else None
        if isinstance(dims, (tuple, list)) and not dims:
            return None
        dims = _dims(dims, call.x.ndim)
        return without(axis, dims, keepdim=call.out.ndim == call.x.ndim)

    return rule


def along(position: int, default: Any = None) -> Rule:
    """Functions that rearrange entries along some dimensions, and leave the order of the others alone."""

    def rule(call: Call) -> SampleAxis | None:
        axis = axis_of(call.x)
        dims = call.argument(position, ("dim", "dims", "axis"), default)
        if axis is None or dims is None or call.out.ndim != call.x.ndim:
            return None
        if axis.dim in _dims(dims, call.x.ndim) or call.out.shape[axis.dim] != call.x.shape[axis.dim]:
            return None
        return axis

    return rule


def flipping(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    return None if axis is None or axis.dim in _dims(_all_of(call, ("dims",)), call.x.ndim) else axis


def padding(call: Call) -> SampleAxis | None:
    axis, pads = axis_of(call.x), call.argument(1, ("pad",))
    if axis is None or pads is None:
        return None
    padded = [call.x.ndim - 1 - i // 2 for i, pad in enumerate(pads) if pad != 0]
    return None if axis.dim in padded else axis


def leading(spatial: int) -> Rule:
    """Functions over the last dimensions, so many: images by rows, whatever their size."""

    def rule(call: Call) -> SampleAxis | None:
        axis = axis_of(call.x)
        if axis is None or axis.dim >= call.x.ndim - spatial or call.out.ndim != call.x.ndim:
            return None
        return axis

    return rule


def first(call: Call) -> SampleAxis | None:
    """Functions that treat the entries of dimension 0 apart from each other."""
    axis = axis_of(call.x)
    return axis if axis is not None and axis.dim == 0 and call.out.shape[0] == call.x.shape[0] else None


def appending(call: Call) -> SampleAxis | None:
    """New dimensions come after the old ones, or, of a diagonal, where it is said."""
    axis = axis_of(call.x)
    if axis is None or name_of(call.func) == "one_hot":
        return axis
    ndim = call.out.ndim
    new = [call.argument(2, ("dim1",), -2) % ndim, call.argument(3, ("dim2",), -1) % ndim]
    kept = [dim for dim in range(ndim) if dim not in new]
    return axis.at(kept[axis.dim]) if axis.dim < len(kept) else None


def joining(call: Call) -> SampleAxis | None:
    """The last dimension holds the parts of one number, as those of complex ones."""
    axis = axis_of(call.x)
    return axis if axis is not None and tuple(call.out.shape) == tuple(call.x.shape[:-1]) else None


def framing(call: Call) -> SampleAxis | None:
    """Signals, and their spectra over time: of one alone, there is no dimension for samples."""
    axis = axis_of(call.x)
    alone = 1 if name_of(call.func) == "stft" else 2
    return axis if axis is not None and axis.dim == 0 and call.x.ndim > alone else None


def unfolding(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    dim = call.argument(1, ("dimension",))
    return None if axis is None or axis.dim == dim % call.x.ndim else axis


def diagonal(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    dims = [call.argument(2, ("dim1",), 0) % call.x.ndim, call.argument(3, ("dim2",), 1) % call.x.ndim]
    return None if axis is None else without(axis, dims, keepdim=False)
