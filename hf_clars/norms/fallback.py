"""What to do about a function that no rule knows: a vector-Jacobian product for each sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .marks import axis_of
from .rule import Rule, Saved
from .sample_axis.axis import SampleAxis, by_sample
from .sample_axis.call import functions_named

_VMAPPED = {
    function
    for name in ("prelu", "einsum", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "baddbmm", "linear")
    for function in functions_named(name)
}


@dataclass(frozen=True, eq=False)
class FunctionRule(Rule):
    """Any function that treats samples apart, of which it is known where they stand in operands and result.

    Args:
        function: of `(u, xs)`.
        u: the tensor whose contributions are wanted.
        axes: where samples stand in each of `xs`.
        out_axis: and in the result.
        vmapped: whether all samples are done at once.
    """

    function: Callable[[Tensor, Saved], Tensor]
    u: Tensor
    axes: tuple[SampleAxis, ...]
    out_axis: SampleAxis
    vmapped: bool

    def is_samplewise(self, xs: Saved, out: Tensor) -> bool:
        """Whether the first sample alone has a result of the shape that its part of all has."""
        parts, part = self._parts(xs, out)
        try:
            with torch.no_grad():
                alone = self.function(self.u, tuple(x[0] for x in parts))
        except (RuntimeError, IndexError, ValueError):
            return False
        return alone.shape == part.shape[1:]

    def samples_first(self, xs: Saved, d: Tensor, axis: SampleAxis) -> tuple[Saved, Tensor]:
        return xs, by_sample(d, self.out_axis)

    def operands(self, xs: Saved) -> Saved:
        return tuple(by_sample(x, axis) for x, axis in zip(xs, self.axes, strict=True))

    def _parts(self, xs: Saved, d: Tensor) -> tuple[Saved, Tensor]:
        return self.operands(xs), by_sample(d, self.out_axis)

    def samples(self, xs: Saved, d: Tensor, batch: int) -> Tensor:
        def one(d: Tensor, *xs: Tensor) -> Tensor:
            return torch.func.vjp(lambda u: self.function(u, xs), self.u)[1](d)[0]

        if self.vmapped:
            return torch.func.vmap(one)(d, *xs)
        # Not every function has a batching rule, and not every rule is right (torch 2.14: RNN cells').
        return torch.stack([one(*each) for each in zip(d, *xs, strict=True)])

    def cut(self, xs: Saved, d: Tensor, run: slice, batch: int) -> tuple[Saved, Tensor]:
        return tuple(x[run] for x in xs), d[run]


def function_rule(func: Any, args: Any, kwargs: Any, u: Tensor, out_axis: SampleAxis) -> tuple[FunctionRule, Saved]:
    """The rule of `func(*args, **kwargs)` for its operand `u`, and the operands that depend on samples."""
    leaves, tree = pytree.tree_flatten((args, kwargs))
    leaves = [leaf.detach() if isinstance(leaf, Tensor) and leaf is not u else leaf for leaf in leaves]
    originals = pytree.tree_leaves((args, kwargs))
    where_samples = [i for i, leaf in enumerate(originals) if axis_of(leaf) is not None]
    axes = tuple([axis for axis in map(axis_of, originals) if axis is not None])
    where_u = [i for i, leaf in enumerate(originals) if leaf is u]
    saved = tuple(leaves[i] for i in where_samples)
    constants = [None if i in where_samples or i in where_u else leaf for i, leaf in enumerate(leaves)]

    def function(u: Tensor, xs: Saved) -> Tensor:
        filled = list(constants)
        for i, x in zip(where_samples, xs, strict=True):
            filled[i] = x
        for i in where_u:
            filled[i] = u
        args, kwargs = pytree.tree_unflatten(filled, tree)
        return func(*args, **kwargs)

    return FunctionRule(tuple(u.shape), function, u.detach(), axes, out_axis, func in _VMAPPED), saved
