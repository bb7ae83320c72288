"""Rules of products, convolutions, attention, recurrent networks and look-ups."""

from __future__ import annotations

from torch import Tensor

from .axis import SampleAxis, without
from .call import Call, Rule, name_of
from .operands import agreed, broadcast_axis
from .tags import PLACE, axis_of, place_of


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
    left, right = _unless_refuted(a, b), _unless_refuted(b, a)
    if place_of(a) is not None and left is None:
        return None
    axes = []
    if right is not None and right.dim < b.ndim - 2:
        axes.append(right.at(ndim - b.ndim + right.dim))
    elif place_of(b) is not None and left is None and (right is None or right.dim != b.ndim - 1):
        return None  # where `b` is summed over samples, rows of `a` stay theirs
    elif place_of(b) is not None and right is None:
        return None
    if left is not None:
        if left.dim == a.ndim - 1:
            return None
        if right is not None and right.dim >= b.ndim - 2 and not (left.assumed and right.assumed):
            if right.dim == b.ndim - 2:
                right.refute()  # each sample meets all of its rows
            elif left.assumed:
                return right.at(ndim - 1)
        axes.append(left.at(ndim - a.ndim + left.dim))
    if not axes and right is not None:
        return right.at(ndim - 1)
    return agreed(axes)


def _unless_refuted(one: Tensor, other: Tensor) -> SampleAxis | None:
    """Where samples stand in an operand; an assumption is refuted by samples in front of the other's matrices."""
    axis, its = axis_of(one), axis_of(other)
    if axis is None or not axis.assumed or its is None or its.assumed or its.dim >= other.ndim - 2:
        return axis
    if axis.dim >= one.ndim - 2:
        axis.refute()
        return None
    return axis


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


def grouped_product(call: Call) -> SampleAxis | None:
    """Each row by the matrix of its group; where groups end only tells which matrix that is."""
    axis, weight = axis_of(call.x), call.argument(1, ("mat2", "mat_b", "weight"))
    rows = axis is not None and axis.dim == 0 and call.x.ndim == 2 and call.out.ndim == 2
    return axis if rows and place_of(weight) is None else None


def matrices(call: Call) -> SampleAxis | None:
    """Functions of the matrices in the last two dimensions, each by itself; the dimensions before those broadcast."""
    ndim = call.tensors[0].ndim
    alike = False not in [t.ndim == ndim for t in call.tensors]
    return broadcast_axis(call.tensors, ndim, last=2) if alike else None


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
    """`cdist`: rows of the first against rows of the second. Rows that all samples are held against are no samples."""
    a, b = call.argument(0, ("x1",)), call.argument(1, ("x2",))
    one, other = axis_of(a), axis_of(b)
    if one is not None and other is not None and (one.dim, other.dim) == (a.ndim - 2, b.ndim - 2):
        if one.assumed and not other.assumed:
            one.refute()
        elif other.assumed and not one.assumed:
            other.refute()
    columns, place = b.mT, place_of(b)
    if type(place) is SampleAxis and place.dim >= b.ndim - 2:
        place = place.at(2 * b.ndim - 3 - place.dim)
    setattr(columns, PLACE, place)
    return product_axis(a, columns, call.out.ndim)


def similarity(call: Call) -> SampleAxis | None:
    """`cosine_similarity`: operands broadcast, and a dimension of what they broadcast to is reduced."""
    ndim = max([t.ndim for t in call.tensors])
    axis = broadcast_axis(call.tensors, ndim)
    return None if axis is None else without(axis, [call.argument(2, ("dim",), 1) % ndim], keepdim=False)


def searched(call: Call) -> SampleAxis | None:
    values = call.argument(1, ("input", "self")) if name_of(call.func) == "searchsorted" else call.x
    others = [t for t in call.tensors if t is not values and place_of(t) is not None]
    return axis_of(values) if not others and isinstance(values, Tensor) else None
