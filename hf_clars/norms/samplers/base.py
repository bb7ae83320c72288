"""What a sampler is: how the parameters of one operator call are measured."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import Convolution
from ..numerics.reductions import norm_dtype, squared_norms, sum_of_samples
from ..sample_axis.axis import SampleAxis, samples_first

Saved = tuple[Tensor, ...]


@dataclass(frozen=True)
class Sampler(ABC):
    """Belongs to an operator `y = f(x, weight, bias)` and what it was called with besides tensors.

    From `xs`, the input and whatever else must be kept, and `d`, the derivative of the loss by `y`, it computes
    `‖c_i‖²` or `c_i` of weight and bias; `forms.py` has the notation. Rows `k·i … k·(i+1)−1` belong to sample i. A call
    may be of some of the samples, of which there are `batch` then. Half precision may be summed in float32.

    Args:
        shape: of the weight, or of the one parameter that there is.
    """

    shape: tuple[int, ...]

    inputs_with_samples = 1  # so many of the first of `xs` have samples where x has them: they are moved and cut with x
    unbatched_ndim = 0  # number of dimensions of an input without a batch dimension; 0: there is no such thing

    def sample_dims(self, ndim: int) -> int:
        """How many of the first dimensions of an input may hold samples: the operator treats their entries alike."""
        return 1

    def samples_first(self, xs: Saved, d: Tensor, axis: SampleAxis) -> tuple[Saved, Tensor]:
        """Bring the rows of each sample together, in front, where they are not."""
        n = self.inputs_with_samples
        return (*(samples_first(x, axis) for x in xs[:n]), *xs[n:]), samples_first(d, axis)

    def operands(self, xs: Saved) -> Saved:
        """From what was kept to what `samples` and `squares` work on, once per backward pass."""
        return xs

    def fused(self, x: Tensor, batch: int) -> bool:
        """Whether the weight gradient shall come out of `samples`, instead of from autograd."""
        return False

    def forms_weight(self) -> bool:
        """Whether `samples` adds up to the weight gradient of one call, so that it may stand for autograd's."""
        return False

    @property
    def is_product(self) -> bool:
        """Whether the operator is `y = x Wᵀ` at each position, of which `at_positions` is then known."""
        return False

    def at_positions(self, xs: Saved, d: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Input and derivative at each position, `[batch, P, I]` and `[batch, P, O]`."""
        raise TypeError(f"{type(self).__name__} is no product")

    def convolution(self, xs: Saved, d: Tensor, batch: int) -> Convolution | None:
        """The same as a convolution's weight gradient, if a kernel serves it."""
        return None

    def squares(self, xs: Saved, d: Tensor, batch: int) -> Tensor | None:
        """`‖c_i‖²` of the weight, `[batch]`, without forming `c_i`; None where forming it is faster or better."""
        return None

    def squares_elements(self, xs: Saved, d: Tensor, batch: int) -> int:
        """About how many numbers `squares` holds per sample, beside its operands."""
        return 0

    @abstractmethod
    def samples(self, xs: Saved, d: Tensor, batch: int) -> Tensor:
        """`c_i` of the weight, `[batch, *shape]`."""

    def samples_elements(self, xs: Saved, d: Tensor, batch: int) -> int:
        """About how many numbers `samples` holds per sample, beside its operands."""
        return math.prod(self.shape)

    def sum_elements(self, xs: Saved, d: Tensor, batch: int) -> int:
        """About how many numbers `squares_and_sum` holds per sample, beside its operands and one sum."""
        return self.samples_elements(xs, d, batch)

    def alone(self, d: Tensor) -> bool:
        """Whether `samples` is faster for one sample at a time."""
        return False

    def squares_and_sum(self, xs: Saved, d: Tensor, batch: int, total: Tensor | None) -> tuple[Tensor, Tensor]:
        """`‖c_i‖²` of the weight, `[batch]`; and `total + Σ_i c_i`, in the dtype of norms; `total` may be changed."""
        each = self.samples(xs, d, batch)
        return squared_norms(each), sum_of_samples(each, total)

    def total(self, xs: Saved, d: Tensor) -> Tensor | None:
        """`Σ_i c_i` of the weight without forming `c_i`; None where there is no shorter way."""
        return None

    def bias_samples(self, d: Tensor, batch: int) -> Tensor:
        """`c_i` of the bias, `[batch, *bias.shape]`."""
        raise TypeError(f"{type(self).__name__} has no bias")

    def cut(self, xs: Saved, d: Tensor, run: slice, batch: int) -> tuple[Saved, Tensor]:
        """What belongs to a run of samples: rows of the input and of the derivative, all of everything else."""
        n = self.inputs_with_samples
        return (*(_rows(x, run, batch) for x in xs[:n]), *xs[n:]), _rows(d, run, batch)

    def inner(
        self, xs: Saved, d: Tensor, other: Sampler, other_xs: Saved, other_d: Tensor, batch: int
    ) -> Tensor | None:
        """`⟨c_i, c'_i⟩`, `[batch]`, with another operator's use of the same weight; None where it must be formed."""
        return None

    def merge(self, uses: list[tuple[Saved, Tensor]], batch: int) -> tuple[Saved, Tensor] | None:
        """Several calls with one weight as a single call with more positions; None where there is no such thing."""
        return None


def _rows(tensor: Tensor, run: slice, batch: int) -> Tensor:
    folds = tensor.shape[0] // batch
    if run.step not in (None, 1) and folds > 1:
        return tensor.unflatten(0, (batch, folds))[run].flatten(0, 1)
    return tensor[slice(run.start * folds, run.stop * folds, run.step)]


@dataclass(frozen=True)
class CopiesSampler(Sampler):
    """A tensor of which each sample uses its own copy: what is kept beside its derivative is no rows of samples."""

    def samples_first(self, xs: Saved, d: Tensor, axis: SampleAxis) -> tuple[Saved, Tensor]:
        return xs, samples_first(d, axis)


@dataclass(frozen=True)
class SpreadSampler(CopiesSampler):
    """A parameter of which each sample was handed its own copy, `[batch, …]`: `c_i` is that copy's derivative."""

    def samples(self, xs: Saved, d: Tensor, batch: int) -> Tensor:
        return d.reshape(batch, *self.shape).to(norm_dtype(d.dtype))

    def cut(self, xs: Saved, d: Tensor, run: slice, batch: int) -> tuple[Saved, Tensor]:
        return xs, _rows(d, run, batch)


@dataclass(frozen=True)
class RowsSampler(CopiesSampler):
    """A tensor with entries of its own for each sample, though all may be computed from the same parameters.

    What is kept is each sample's number.

    Args:
        dim, together: where samples stand in it, `dim` and `inner` of `SampleAxis`.
    """

    dim: int
    together: int

    def squares(self, xs: Saved, d: Tensor, batch: int) -> Tensor | None:
        return squared_norms(d.unflatten(0, (batch, -1)))

    def samples(self, xs: Saved, d: Tensor, batch: int) -> Tensor:
        (numbers,) = xs
        own = d.unflatten(0, (batch, -1, self.together))
        size = self.shape[self.dim]
        each = own.new_zeros(batch, size // (own.shape[1] * self.together), *own.shape[1:])
        each[torch.arange(batch, device=d.device), numbers] = own
        return each.transpose(1, 2).flatten(1, 3).movedim(1, self.dim + 1)
