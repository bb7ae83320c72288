"""What to do about a function that no rule knows: a vector-Jacobian product for each sample, batched by vmap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .marks import has_samples
from .rule import Rule, Saved


@dataclass(frozen=True, eq=False)
class FunctionRule(Rule):
    """Any function whose first dimension of every sample-dependent operand, and of its result, is the batch.

    Args:
        function: of `(u, xs)`.
        u: the tensor whose contributions are wanted.
    """

    function: Callable[[Tensor, Saved], Tensor]
    u: Tensor

    def is_samplewise(self, xs: Saved, out: Tensor, batch: int) -> bool:
        """Whether the first sample alone has the shape of the first rows of all."""
        (run, _) = self.cut(xs, out, slice(0, 1), batch)
        try:
            with torch.no_grad():
                alone = self.function(self.u, run)
        except (RuntimeError, IndexError, ValueError):
            return False
        return alone.shape == (out.shape[0] // batch, *out.shape[1:])

    def samples(self, xs: Saved, d: Tensor, batch: int) -> Tensor:
        def one(d: Tensor, *xs: Tensor) -> Tensor:
            return torch.func.vjp(lambda u: self.function(u, xs), self.u)[1](d)[0]

        return torch.func.vmap(one)(*(t.unflatten(0, (batch, -1)) for t in (d, *xs)))

    def cut(self, xs: Saved, d: Tensor, run: slice, batch: int) -> tuple[Saved, Tensor]:
        d, *xs_of_run = (t.unflatten(0, (batch, -1))[run].flatten(0, 1) for t in (d, *xs))
        return tuple(xs_of_run), d


def function_rule(func: Any, args: Any, kwargs: Any, u: Tensor) -> tuple[FunctionRule, Saved]:
    """The rule of `func(*args, **kwargs)` for its operand `u`, and the operands that depend on samples."""
    leaves, tree = pytree.tree_flatten((args, kwargs))
    leaves = [leaf.detach() if isinstance(leaf, Tensor) and leaf is not u else leaf for leaf in leaves]
    originals = pytree.tree_leaves((args, kwargs))
    where_samples = [i for i, leaf in enumerate(originals) if has_samples(leaf)]
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

    return FunctionRule(tuple(u.shape), function, u.detach()), saved
