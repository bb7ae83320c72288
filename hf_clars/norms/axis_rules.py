"""The table from torch function to where samples stand in its result. A new function is one entry of `RULES`.

A rule sees the call and its result, and answers from shapes and arguments alone. `None` stands for "not known": what
comes after is named, never guessed. A function that is not in the table has no rule.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .marks import axis_of, place_of
from .sample_axis import Lost, Place, SampleAxis, fits, permuted, reshaped, sliced, without


@dataclass
class Call:
    """A function call and one of its results.

    Args:
        out, number: the result, and which of several it is.
        outs: all results, for functions that return several.
    """

    func: Any
    args: Any
    kwargs: Any
    tensors: list[Tensor]
    out: Tensor
    number: int = 0
    outs: Any = ()

    def argument(self, position: int, names: tuple[str, ...], default: Any = None) -> Any:
        if len(self.args) > position:
            return self.args[position]
        for name in names:
            if name in self.kwargs:
                return self.kwargs[name]
        return default

    @property
    def x(self) -> Any:
        return self.argument(0, ("input", "self"))


Rule = Callable[[Call], SampleAxis | None]


def place_after(call: Call, rule: Rule | None) -> Place:
    """Where samples stand in the result of a function that was given some."""
    lost = None
    count = -1
    for tensor in call.tensors:
        place = place_of(tensor)
        if place is None:
            continue
        if type(place) is SampleAxis:
            count = place.count if place.pick is None else place.pick.source.count
        elif lost is None:
            lost = place
    if count == 1 and call.out.ndim:  # whatever there is belongs to the only sample
        return SampleAxis(0, call.out.shape[0], 1)
    axis = None if rule is None else rule(call)
    if axis is not None and fits(axis, call.out.shape):
        return axis
    if lost is not None:
        return lost
    return Lost(f"which samples its input holds is not known after {name_of(call.func)}")


def name_of(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    return str(name)


# --- where several operands meet -----------------------------------------------------------------------------------


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
                found = SampleAxis(found.dim, found.inner, found.count, found.assumed + axis.assumed, found.pick)
            else:
                for assumption in found.assumed + axis.assumed:
                    assumption.confirmed = True
                found = axis if found.assumed else found
        elif axis.assumed and not found.assumed:
            _refute(axis)
        elif found.assumed and not axis.assumed:
            _refute(found)
            found = axis
        else:
            return None
    return found


def _refute(axis: SampleAxis) -> None:
    for assumption in axis.assumed:
        assumption.refuted = True


def aligned(call: Call) -> SampleAxis | None:
    """Operands that broadcast: their dimensions are counted from the last."""
    return broadcast_axis(call.tensors, call.out.ndim)


def broadcast_axis(tensors: Iterable[Tensor], ndim: int, last: int = 0) -> SampleAxis | None:
    """Where samples stand in a result with `ndim` dimensions, of operands that broadcast but for the `last` ones."""
    axes, lost = [], []
    for tensor in tensors:
        place = place_of(tensor)
        if type(place) is SampleAxis:
            if place.dim >= tensor.ndim - last:
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


# --- functions of one tensor ----------------------------------------------------------------------------------------


def keeping(call: Call) -> SampleAxis | None:
    """All dimensions stay; what the function does along one of them does not matter."""
    axis = axis_of(call.x)
    return axis if axis is not None and call.out.shape == call.x.shape else None


def reshaping(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    return None if axis is None else reshaped(axis, call.x.shape, call.out.shape)


def permuting(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    return None if axis is None else permuted(axis, _order(call))


def _order(call: Call) -> list[int]:
    ndim = call.x.ndim
    order = list(range(ndim))
    name = name_of(call.func)
    if name == "permute":
        dims = call.argument(1, ("dims",))
        dims = list(dims) if isinstance(dims, (tuple, list)) else list(call.args[1:])
        return [d % ndim for d in dims]
    if name in ("movedim", "moveaxis"):
        sources = call.argument(1, ("source",))
        targets = call.argument(2, ("destination",))
        sources = [d % ndim for d in (sources if isinstance(sources, (tuple, list)) else [sources])]
        targets = [d % ndim for d in (targets if isinstance(targets, (tuple, list)) else [targets])]
        rest = [d for d in order if d not in sources]
        for target, source in sorted(zip(targets, sources, strict=True)):
            rest.insert(target, source)
        return rest
    if name in ("t", "T", "H", "mT", "mH", "adjoint"):
        if name in ("T",):
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
    times = call.argument(1, ("repeats", "dims", "reps"))
    times = list(times) if isinstance(times, (tuple, list)) else list(call.args[1:])
    moved = axis.at(axis.dim + call.out.ndim - call.x.ndim)
    return moved if len(times) <= call.out.ndim else None


def interleaving(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    times, dim = call.argument(1, ("repeats",)), call.argument(2, ("dim",))
    if axis is None or isinstance(times, Tensor) or axis.pick is not None:
        return None
    if dim is None:
        flat = reshaped(axis, call.x.shape, (call.x.numel(),))
        return None if flat is None else flat.at(0, flat.inner * times)
    return axis.at(axis.dim, axis.inner * times) if dim % call.x.ndim == axis.dim else axis


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


def along(position: int, default: Any = None, ends: bool = False) -> Rule:
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
    """New dimensions come after the old ones."""
    axis = axis_of(call.x)
    old = tuple(call.x.shape)
    return axis if axis is not None and tuple(call.out.shape[: len(old)]) == old else None


def unfolding(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    dim = call.argument(1, ("dimension",))
    return None if axis is None or axis.dim == dim % call.x.ndim else axis


def diagonal(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    dims = [call.argument(2, ("dim1",), 0) % call.x.ndim, call.argument(3, ("dim2",), 1) % call.x.ndim]
    return None if axis is None else without(axis, dims, keepdim=False)


# --- parts of a tensor ----------------------------------------------------------------------------------------------


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


# --- several tensors together ---------------------------------------------------------------------------------------


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
    whole = False not in [t.shape[dim] % (axis.count * axis.inner) == 0 for t, axis in zip(tensors, known, strict=True)]
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


# --- products -------------------------------------------------------------------------------------------------------


def product(call: Call) -> SampleAxis | None:
    """`a @ b`: rows come from a, columns from b, the dimensions before them from both."""
    return product_axis(call.x, call.argument(1, ("other", "mat2", "vec", "tensor2")), call.out.ndim)


def reversed_product(call: Call) -> SampleAxis | None:
    return product_axis(call.args[1], call.args[0], call.out.ndim)


def added_product(call: Call) -> SampleAxis | None:
    a = call.argument(1, ("mat1", "batch1", "mat"))
    b = call.argument(2, ("mat2", "batch2", "vec"))
    axis = product_axis(a, b, call.out.ndim)
    added = axis_of(call.x)
    if added is None or axis is None:
        return axis if added is None else None
    return agreed([axis, added.at(added.dim + call.out.ndim - call.x.ndim)])


def product_axis(a: Tensor, b: Tensor, ndim: int) -> SampleAxis | None:
    if a.ndim < 2 or b.ndim < 2:
        return _vector_product_axis(a, b, ndim)
    left, right = axis_of(a), axis_of(b)
    if place_of(a) is not None and left is None:
        return None
    axes = []
    if right is not None and right.dim < b.ndim - 2:
        axes.append(right.at(ndim - b.ndim + right.dim))
    elif place_of(b) is not None and not (right is not None and right.dim == b.ndim - 1):
        # What is summed over samples is of all of them; rows of `a` stay rows of the result.
        if left is None or left.dim == a.ndim - 1 or right is None:
            return None
    if left is not None:
        if left.dim == a.ndim - 1:
            return None
        axes.append(left.at(ndim - a.ndim + left.dim))
    if not axes and right is not None:
        return right.at(ndim - 1)
    return agreed(axes)


def _vector_product_axis(a: Tensor, b: Tensor, ndim: int) -> SampleAxis | None:
    if b.ndim == 1 and a.ndim > 1 and place_of(b) is None:
        axis = axis_of(a)
        return None if axis is None or axis.dim == a.ndim - 1 else axis
    if a.ndim == 1 and b.ndim > 1 and place_of(a) is None:
        axis = axis_of(b)
        if axis is None or axis.dim == b.ndim - 2:
            return None
        return axis.at(ndim - 1) if axis.dim == b.ndim - 1 else axis
    return None


def linear_map(call: Call) -> SampleAxis | None:
    """Everything but the last dimension stays."""
    axis = axis_of(call.x)
    others = [t for t in call.tensors if t is not call.x and place_of(t) is not None]
    if axis is None or axis.dim == call.x.ndim - 1 or others:
        return None
    return axis


def attending(call: Call) -> SampleAxis | None:
    """Attention of q, k, v over the last two dimensions; the mask broadcasts."""
    names = ("query", "key", "value", "attn_mask")
    operands = [call.argument(i, (name,)) for i, name in enumerate(names)]
    tensors = [t for t in operands if isinstance(t, Tensor)]
    if axis_of(tensors[0]) is not None and axis_of(tensors[0]).dim == tensors[0].ndim - 2:  # type: ignore[union-attr]
        return None
    return broadcast_axis(tensors, call.out.ndim, last=2)


def einstein(call: Call) -> SampleAxis | None:
    equation = call.args[0]
    operands = call.args[1] if len(call.args) == 2 and isinstance(call.args[1], (tuple, list)) else call.args[1:]
    if not isinstance(equation, str):
        return None
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != len(operands):
        return None
    if not arrow:
        letters = sorted(set(inputs) - set(",."))
        output = ("..." if "..." in inputs else "") + "".join([c for c in letters if inputs.count(c) == 1])
    label = None
    found: SampleAxis | None = None
    for term, operand in zip(terms, operands, strict=True):
        place = place_of(operand)
        if place is None:
            continue
        if type(place) is not SampleAxis:
            return None
        named = _labels(term, operand.ndim)
        if named.count(named[place.dim]) > 1 or (label is not None and label != named[place.dim]):
            return None
        label = named[place.dim]
        found = place if found is None else agreed([found, place.at(found.dim)])
        if found is None:
            return None
    labels = _labels(output, call.out.ndim)
    return found.at(labels.index(label)) if found is not None and label in labels else None


def _labels(term: str, ndim: int) -> list[str]:
    """A name for each dimension; those under the dots are counted from their last."""
    if "..." not in term:
        return list(term)
    before, _, after = term.partition("...")
    return [*before, *[f"...{i}" for i in range(ndim - len(before) - len(after), 0, -1)], *after]


def convolving(spatial: int) -> Rule:
    def rule(call: Call) -> SampleAxis | None:
        axis = axis_of(call.x)
        if axis is None or call.x.ndim != spatial + 2:
            return None
        weight = call.argument(1, ("weight",))
        others = [t for t in call.tensors if t is not call.x and place_of(t) is not None]
        if axis.dim == 0 and not others:
            return axis
        if axis.dim == 1 and call.x.shape[0] == 1:  # each sample has groups and kernels of its own
            own = axis_of(weight)
            groups = call.kwargs.get("groups", call.args[6] if len(call.args) > 6 else 1)
            samples = call.x.shape[1] // axis.inner
            if own is not None and own.dim == 0 and len(others) == 1 and groups % samples == 0:
                return axis.at(1, call.out.shape[1] // samples)
        return None

    return rule


def recurrent(call: Call) -> SampleAxis | None:
    """lstm, gru and their like: `(input, hx, params, biases, layers, dropout, train, bidirectional, batch_first)`."""
    axis = axis_of(call.x)
    if axis is None or len(call.args) != 9 or call.x.ndim != 3:
        return None
    if axis.dim != (0 if call.args[8] else 1):
        return None
    return axis if call.number == 0 else axis.at(1)


def cell(call: Call) -> SampleAxis | None:
    axis = axis_of(call.x)
    return axis if axis is not None and axis.dim == 0 and call.x.ndim == call.out.ndim == 2 else None


def embedding_rows(call: Call) -> SampleAxis | None:
    ids = call.args[1] if len(call.args) > 1 else call.kwargs.get("indices", call.kwargs.get("input"))
    return axis_of(ids) if isinstance(ids, Tensor) and place_of(call.args[0] if call.args else None) is None else None


def distances(call: Call) -> SampleAxis | None:
    """`cdist`: rows of the first against rows of the second."""
    a, b = call.argument(0, ("x1",)), call.argument(1, ("x2",))
    return product_axis(a, b.mT, call.out.ndim)


def searched(call: Call) -> SampleAxis | None:
    values = call.argument(1, ("input", "self")) if name_of(call.func) == "searchsorted" else call.x
    others = [t for t in call.tensors if t is not values and place_of(t) is not None]
    return axis_of(values) if not others and isinstance(values, Tensor) else None


# --- the table ------------------------------------------------------------------------------------------------------

_SPACES: tuple[Any, ...] = (
    torch, Tensor, F, torch._C._nn, torch.special, torch.linalg, torch.fft, torch.functional,
    torch._C._VariableFunctions,
)  # fmt: skip


def functions_named(name: str) -> list[Any]:
    """All that go by this name: functions, methods, what works in place, and properties' getters."""
    found = []
    for space in _SPACES:
        for each in (name, f"{name}_"):
            value = getattr(space, each, None)
            if isinstance(value, (types.GetSetDescriptorType, property)):
                value = value.__get__
            if callable(value):
                found.append(value)
    return found


_OPERATORS = {
    "add": "add radd iadd", "sub": "sub rsub isub", "mul": "mul rmul imul", "div": "truediv rtruediv itruediv",
    "floor_divide": "floordiv rfloordiv ifloordiv", "remainder": "mod rmod imod", "pow": "pow rpow ipow",
    "neg": "neg", "pos": "pos", "abs": "abs", "bitwise_not": "invert", "bitwise_and": "and rand iand",
    "bitwise_or": "or ror ior", "bitwise_xor": "xor rxor ixor", "eq": "eq", "ne": "ne", "lt": "lt", "le": "le",
    "gt": "gt", "ge": "ge",
}  # fmt: skip


def _pointwise() -> dict[Any, Rule]:
    """What torch itself tags as pointwise, and Python's operators."""
    table: dict[Any, Rule] = {}
    names = {name for space in _SPACES[:5] for name in dir(space) if not name.startswith("__")}
    for name in names:
        packet = getattr(torch.ops.aten, name, None)
        overloads = packet.overloads() if hasattr(packet, "overloads") else ()
        if any(torch.Tag.pointwise in getattr(packet, o).tags for o in overloads):
            table.update(dict.fromkeys(functions_named(name), aligned))
    for operators in _OPERATORS.values():
        for each in operators.split():
            method = getattr(Tensor, f"__{each}__", None)
            if method is not None:
                table[method] = aligned
    return table


_BY_NAME: dict[str, Rule] = {
    **dict.fromkeys(
        ["floor_divide", "fmod", "rsub", "xlog1py", "erfcx", "expit", "log_ndtr", "ndtri", "entr", "logsigmoid", "tanhshrink", "softsign", "multiply", "subtract", "divide", "negative", "absolute", "arcsin", "arccos", "arctan", "arctan2", "arcsinh", "arccosh", "arctanh", "greater", "greater_equal", "less", "less_equal", "not_equal", "logical_and", "fix", "bernoulli"],
        aligned,
    ),
    **dict.fromkeys(
        ["softmax", "log_softmax", "softmin", "gumbel_softmax", "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "normalize", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout", "layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm", "local_response_norm", "renorm", "clone", "contiguous", "detach", "to", "type", "type_as", "float", "half", "bfloat16", "double", "int", "long", "bool", "cpu", "cuda", "short", "char", "byte", "requires_grad_", "data", "alias", "real", "imag", "view_as_real", "zero", "fill", "masked_fill", "clamp", "tril", "triu", "nan_to_num", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like", "fft", "ifft", "hardtanh", "hardswish", "prelu", "celu", "mish", "isin", "isclose", "relu6", "pin_memory"],
        keeping,
    ),
    **dict.fromkeys(
        ["view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as", "ravel", "view_as_complex", "_unsafe_view"],
        reshaping,
    ),
    **dict.fromkeys(
        ["permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "T", "H", "mT", "mH", "adjoint"], permuting
    ),
    **dict.fromkeys(["expand", "expand_as", "broadcast_to"], expanding),
    "repeat": repeating,
    "tile": repeating,
    "repeat_interleave": interleaving,
    **dict.fromkeys(
        ["sum", "mean", "amax", "amin", "max", "min", "prod", "var", "std", "var_mean", "std_mean", "logsumexp", "argmax", "argmin", "all", "any", "nansum", "nanmean", "median", "nanmedian", "mode", "count_nonzero"],
        reducing(1),
    ),
    **dict.fromkeys(["norm", "vector_norm", "kthvalue"], reducing(2)),
    "cosine_similarity": reducing(2),
    "glu": along(1, -1),
    "sort": along(1, -1),
    "argsort": along(1, -1),
    "topk": along(2, -1),
    "flip": along(1),
    "roll": along(2),
    "diff": along(2, -1),
    "take_along_dim": along(2),
    "pad": padding,
    **{f"{kind}_pool{n}d": leading(n) for kind in ("avg", "max", "adaptive_avg", "lp", "adaptive_max") for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": leading(n) for n in (1, 2, 3)},
    **dict.fromkeys(["interpolate", "upsample", "upsample_bilinear", "upsample_nearest", "grid_sample"], first),
    **dict.fromkeys(["unfold_columns", "fold", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "affine_grid"], first),
    "one_hot": appending,
    "diag_embed": appending,
    "diagonal": diagonal,
    "select": selecting,
    "unbind": selecting,
    "narrow": narrowing,
    **dict.fromkeys(["split", "chunk", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split"], splitting),
    **dict.fromkeys(["cat", "concat", "concatenate"], concatenating),
    "stack": stacking,
    "hstack": hstacking,
    **dict.fromkeys(["matmul", "mm", "bmm", "__matmul__", "mv"], product),
    "__rmatmul__": reversed_product,
    **dict.fromkeys(["addmm", "baddbmm", "addmv"], added_product),
    "linear": linear_map,
    "scaled_dot_product_attention": attending,
    "einsum": einstein,
    **{f"conv{n}d": convolving(n) for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": convolving(n) for n in (1, 2, 3)},
    **dict.fromkeys(["lstm", "gru", "rnn_tanh", "rnn_relu"], recurrent),
    **dict.fromkeys(["lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"], cell),
    "embedding": embedding_rows,
    "cdist": distances,
    **dict.fromkeys(["bucketize", "searchsorted"], searched),
}  # fmt: skip


def _table() -> dict[Any, Rule]:
    table = _pointwise()
    for name, rule in _BY_NAME.items():
        table.update(dict.fromkeys(functions_named(name), rule))
    table.update(dict.fromkeys([F.unfold, torch._C._nn.im2col], first))
    table.update(dict.fromkeys([Tensor.unfold], unfolding))
    # F.embedding takes the ids first, and calls torch.embedding.
    table.pop(F.embedding, None)
    return table


RULES: dict[Any, Rule] = _table()

# Functions to which operands other than the first tell a type or a shape alone.
OF_FIRST = {f for name in ["to", "type_as", "view_as", "reshape_as", "expand_as"] for f in functions_named(name)}

# Functions whose result has nothing of their operand's values.
FRESH = {
    f
    for name in ["new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "new_empty_strided"]
    for f in functions_named(name)
}
