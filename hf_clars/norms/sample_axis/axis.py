"""Where samples stand in a tensor: the arithmetic of shapes, without any tensor's values.

A batch of B samples enters with the samples in one dimension. Functions move that dimension, merge it with others and
split it again. What stays true is that index j of some dimension belongs to sample `(j // inner) % B`: `inner` indices
in a row are one sample's (its positions, windows or heads), and the whole may repeat (views of the batch, one after the
other; windows before samples). `SampleAxis` is that statement; where it cannot be made, `Lost` says since when.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Assumption:
    """That a dimension of B entries is the samples', made before the tensor met any samples.

    Copies of a parameter along such a dimension may be each sample's own, or those of as many heads; rows of another
    argument than the first may be as many positions. A tensor whose samples are known tells, when the two meet.

    Args:
        likely: whether it holds unless it is refuted, rather than if it is confirmed.

    Attributes:
        parameters: those that are measured under it.
        refutations: 0-dim tensors on a device, of which one that is True refutes it.
    """

    def __init__(self, likely: bool) -> None:
        self.likely = likely
        self.parameters: list[Any] = []
        self.refutations: list[Tensor] = []
        self.confirmed = self.refuted = False
        self._rests_on: list[Assumption] = []

    def confirm(self, rests_on: Sequence[Assumption] = ()) -> None:
        """By a tensor whose samples are known, or are if these other assumptions hold."""
        self.confirmed = True
        self._rests_on += rests_on

    @property
    def fails(self) -> bool:
        rest = True in [other.refuted for other in self._rests_on]
        return self.refuted or rest or not (self.confirmed or self.likely)


class Pick(NamedTuple):
    """Rows taken from a tensor by an index whose values are not known here; the same index puts them back.

    Args:
        source: where samples stood in that tensor.
        size: of its dimension `source.dim`.
        which: what picked, compared by identity.
    """

    source: SampleAxis
    size: int
    which: tuple[Any, ...]

    def same_as(self, other: Pick) -> bool:
        mine, its = self.source, other.source
        return (mine.inner, mine.batch, self.size) == (its.inner, its.batch, other.size) and same_objects(
            self.which, other.which
        )


def same_objects(some: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    return len(some) == len(others) and False not in [a is b for a, b in zip(some, others, strict=True)]


class SampleAxis(NamedTuple):
    """Index j of dimension `dim` belongs to sample `(j // inner) % batch`.

    Args:
        batch: the number of samples B; of picked rows, their number.
        assumed: what it rests on, if not on the model's input alone.
        pick: which rows these are, if they are no longer all samples in order; they cannot be measured then.
    """

    dim: int
    inner: int
    batch: int
    assumed: tuple[Assumption, ...] = ()
    pick: Pick | None = None

    def carries(self, parameters: list[Any]) -> None:
        """Parameters are measured here: rightly, if what it rests on holds."""
        for assumption in self.assumed:
            assumption.parameters += parameters

    def refute(self) -> None:
        for assumption in self.assumed:
            assumption.refuted = True

    def at(self, dim: int, inner: int | None = None) -> SampleAxis:
        if dim == self.dim and (inner is None or inner == self.inner):
            return self
        return SampleAxis(dim, self.inner if inner is None else inner, self.batch, self.assumed, self.pick)

    def same_as(self, other: SampleAxis) -> bool:
        if self.dim != other.dim or self.inner != other.inner or self.batch != other.batch:
            return False
        mine, its = self.pick, other.pick
        return mine is its or (mine is not None and its is not None and mine.same_as(its))


class Lost(NamedTuple):
    """A tensor depends on samples, and it is not known which part of it on which.

    Args:
        assumed: what the samples of all that went into it rest on; empty if some are known.
    """

    reason: str
    assumed: tuple[Assumption, ...] = ()


Place = SampleAxis | Lost


def fits(axis: SampleAxis, shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape can have its samples there."""
    return 0 <= axis.dim < len(shape) and shape[axis.dim] % max(1, axis.batch * axis.inner) == 0


def reshaped(axis: SampleAxis, old: Sequence[int], new: Sequence[int]) -> SampleAxis | None:
    """Where samples stand after a tensor of shape `old` was viewed, in row-major order, as `new`."""
    if 0 in new:  # nothing stands anywhere
        up_to = axis.dim + 1
        return axis if list(old[:up_to]) == list(new[:up_to]) else None
    stride = axis.inner
    for size in old[axis.dim + 1 :]:
        stride = stride * size
    period = stride * axis.batch
    below = 1
    for dim in range(len(new) - 1, -1, -1):
        above = below * new[dim]
        if below <= stride and period <= above:
            if stride % below == 0 and above % period == 0:
                return axis.at(dim, stride // below)
            return None
        below = above
    return None


def permuted(axis: SampleAxis, order: Sequence[int]) -> SampleAxis:
    """After a permutation: dimension k of the result is dimension `order[k]` of before."""
    return axis.at(list(order).index(axis.dim))


def without(axis: SampleAxis, dims: Sequence[int], keepdim: bool) -> SampleAxis | None:
    """After dimensions were reduced or picked away; None where samples stood in one of them."""
    if axis.dim in dims:
        return None
    return axis if keepdim else axis.at(axis.dim - len([d for d in dims if d < axis.dim]))


def sliced(axis: SampleAxis, size: int, start: int, stop: int, step: int) -> SampleAxis | None:
    """After `start:stop:step` of the samples' own dimension, of that size: whole runs of all samples, or None."""
    if step == 1 and start == 0 and stop == size:
        return axis
    period = axis.batch * axis.inner
    if start == 0 and stop == size and step > 0 and axis.inner % step == 0:
        return axis.at(axis.dim, axis.inner // step)
    if step == 1 and start % period == 0 and (stop - start) % period == 0 and stop > start:
        return axis
    return None


def samples_first(tensor: Tensor, axis: SampleAxis) -> Tensor:
    """`[B·k, …]` with k rows in a row for each sample: the samples' dimension moved to the front, repeats beside it."""
    if axis.dim:
        tensor = tensor.movedim(axis.dim, 0)
    if tensor.shape[0] == axis.batch * axis.inner:
        return tensor
    return tensor.unflatten(0, (-1, axis.batch, axis.inner)).transpose(0, 1).flatten(0, 2)


def by_sample(tensor: Tensor, axis: SampleAxis) -> Tensor:
    """`[B, …]`: sample i's part of the tensor, with all its dimensions."""
    apart = tensor.unflatten(axis.dim, (-1, axis.batch, axis.inner)).movedim(axis.dim + 1, 0)
    return apart.flatten(axis.dim + 1, axis.dim + 2)


def seen_through(axis: SampleAxis, view: Tensor, base: Tensor) -> SampleAxis | None:
    """Where samples stand in a base of which a view has them; by strides, the base's in order."""
    if axis.batch == 1 and axis.pick is None and base.ndim:
        return SampleAxis(0, base.shape[0], 1, axis.assumed)
    size, stride = view.shape[axis.dim], view.stride(axis.dim)
    dims = [d for d in range(base.ndim) if base.shape[d] == size > 1 and base.stride(d) == stride]
    if len(dims) != 1 or not base.is_contiguous():
        return None
    others = [(n - 1, s) for d, (n, s) in enumerate(zip(view.shape, view.stride(), strict=True)) if d != axis.dim]
    below = sum([n * s for n, s in others if s < stride])
    start = (view.storage_offset() - base.storage_offset()) % (size * stride)
    apart = False not in [s < stride or s % (size * stride) == 0 for n, s in others if n]
    return axis.at(dims[0]) if apart and start + below < stride else None


def is_ordinary(axis: SampleAxis, shape: Sequence[int]) -> bool:
    """Whether rows `k·i … k·(i+1)−1` of the first dimension are sample i's."""
    return axis.dim == 0 and shape[0] == axis.batch * axis.inner
