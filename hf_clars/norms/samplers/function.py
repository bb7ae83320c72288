"""What to do about a function that no sampler knows: a vector-Jacobian product for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..recorded_calls import call_steps, cook
from ..sample_axis.axis import SampleAxis, by_sample
from ..sample_axis.call import functions_named
from ..sample_axis.tags import axis_of
from .base import Sampler, Saved

_VMAPPED = {
    function
    for name in (
        "prelu", "einsum", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "baddbmm", "linear", "add", "sub", "mul",
        "div", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__",
    )
    for function in functions_named(name)
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class FunctionSampler(Sampler):
    """Any function that treats samples apart, of which it is known where they stand in operands and result.

    What is kept: the operands that depend on samples, then the tensor `u` whose contributions are wanted, then others.

    Args:
        steps: the call, written down, with what is kept for constants.
        axes: where samples stand in each of those operands, and in the result: `dim`, `inner` and `batch`.
        vmapped: whether all samples are done at once.
    """

    steps: tuple[Any, ...]
    axes: tuple[tuple[int, int, int], ...]
    vmapped: bool

    def is_samplewise(self, xs: Saved, out: Tensor) -> bool:
        """Whether the first sample alone has a result of the shape that its part of all has."""
        count = len(self.axes) - 1
        xs = self.operands(xs)
        part = by_sample(out, SampleAxis(*self.axes[-1]))
        first, u, others = [x[0] for x in xs[:count]], xs[count], xs[count + 1 :]

        def of(u: Tensor) -> Tensor:
            return cook(self.steps, (*first, u, *others))

        try:
            with torch.no_grad():
                # Where samples go one by one, the way they will go: torch may refuse there what it takes otherwise.
                alone = of(u) if self.vmapped else torch.func.vjp(of, u)[0]
        except (RuntimeError, IndexError, ValueError):
            return False
        return alone.shape == part.shape[1:]

    def samples_first(self, xs: Saved, d: Tensor, axis: SampleAxis) -> tuple[Saved, Tensor]:
        return xs, by_sample(d, SampleAxis(*self.axes[-1]))

    def operands(self, xs: Saved) -> Saved:
        count = len(self.axes) - 1
        apart = [by_sample(x, SampleAxis(*axis)) for x, axis in zip(xs[:count], self.axes[:-1], strict=True)]
        return (*apart, *xs[count:])

    def samples(self, xs: Saved, d: Tensor, batch: int) -> Tensor:
        count = len(self.axes) - 1
        u, others = xs[count], xs[count + 1 :]

        def one(d: Tensor, *xs: Tensor) -> Tensor:
            return torch.func.vjp(lambda u: cook(self.steps, (*xs, u, *others)), u)[1](d)[0]

        if self.vmapped:
            return torch.func.vmap(one)(d, *xs[:count])
        # Not every function has a batching rule, and not every rule is right (torch 2.14: RNN cells').
        return torch.stack([one(*each) for each in zip(d, *xs[:count], strict=True)])

    def cut(self, xs: Saved, d: Tensor, run: slice, batch: int) -> tuple[Saved, Tensor]:
        count = len(self.axes) - 1
        return (*(x[run] for x in xs[:count]), *xs[count:]), d[run]


def function_sampler(
    func: Any, args: Any, kwargs: Any, tensors: list[Tensor], u: Tensor, out_axis: SampleAxis
) -> tuple[FunctionSampler, Saved]:
    """The sampler of `func(*args, **kwargs)` for its operand `u`, and what it keeps."""
    axes = [axis for axis in map(axis_of, tensors) if axis is not None]
    of_samples = [t for t in tensors if axis_of(t) is not None]
    others = [t for t in tensors if axis_of(t) is None and t is not u]
    of_samples_met, others_met = [0], [0]

    def place(tensor: Tensor) -> tuple[Any, ...]:
        """Tensors are met in the order of the list."""
        if tensor is u:
            return ("constant", len(of_samples))
        met, first = (others_met, len(of_samples) + 1) if axis_of(tensor) is None else (of_samples_met, 0)
        met[0] += 1
        return ("constant", first + met[0] - 1)

    steps = call_steps(func, args, kwargs, place)
    assert steps is not None
    where = tuple([(axis.dim, axis.inner, axis.batch) for axis in (*axes, out_axis)])
    saved = tuple([t.detach() for t in (*of_samples, u, *others)])
    # F.linear takes a bias of more dimensions than two, and its batching rule does not (torch 2.14).
    vmapped = _is_vmapped(func) and not (func is F.linear and max([t.ndim for t in tensors[2:]], default=0) > 2)
    return FunctionSampler(tuple(u.shape), steps, where, vmapped), saved


@torch.compiler.assume_constant_result
def _is_vmapped(func: Any) -> bool:
    return func in _VMAPPED
