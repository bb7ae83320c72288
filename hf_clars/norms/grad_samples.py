"""What one use of a parameter contributes to each sample's `c_i`, within bounded memory."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..errors import UserError
from . import kernels
from .numerics.reductions import cancels, norm_dtype, squared_norms
from .samplers.base import Sampler, Saved

# How much may stand in memory at a time beside what backward holds anyway. On a CPU it is what stays in the cache
# between being formed and being summed; on an accelerator what fills it.
BUDGET = {"cpu": 2 << 20}
_BUDGET_ELSEWHERE = 256 << 20


def chunks(batch: int, bytes_per_sample: int, device: torch.device) -> list[slice]:
    """The samples, cut into runs of at most the device's budget, and of at least one sample."""
    size = max(1, BUDGET.get(device.type, _BUDGET_ELSEWHERE) // max(1, bytes_per_sample))
    if size >= batch:
        return [slice(0, batch)]
    return [slice(start, min(start + size, batch)) for start in range(0, batch, size)]


class GradSamples(ABC):
    """The contributions `c_i` of `batch` samples through one use of a parameter of shape `shape`."""

    shape: torch.Size | tuple[int, ...]
    batch: int
    dtype: torch.dtype
    device: torch.device

    def runs(self) -> list[slice]:
        """How to cut the batch so that `samples` of a run fits the device's budget."""
        elements = torch.Size(self.shape).numel()
        return chunks(self.batch, elements * self.dtype.itemsize, self.device)

    @abstractmethod
    def samples(self, run: slice) -> Tensor:
        """`c_i` of a run of samples, `[run, *shape]`."""

    def kept(self) -> GradSamples:
        """The same, able to outlive the graph of the backward pass."""
        return self

    def squares(self) -> Tensor:
        """`‖c_i‖²`, `[batch]`."""
        return joined([squared_norms(self.samples(run)) for run in self.runs()])

    def total(self) -> Tensor:
        """`Σ_i c_i`, of the parameter's shape."""
        return torch.stack([self.samples(run).sum(0) for run in self.runs()]).sum(0)


class GivenSamples(GradSamples):
    """Contributions that stand in memory already."""

    def __init__(self, samples: Tensor) -> None:
        self.batch, self.shape = samples.shape[0], samples.shape[1:]
        self.dtype, self.device = samples.dtype, samples.device
        self._samples = samples

    def samples(self, run: slice) -> Tensor:
        return self._samples[run]


class OperatorSamples(GradSamples):
    """The weight of an operator, by its sampler."""

    def __init__(self, sampler: Sampler, xs: Saved, d: Tensor, batch: int, subset: slice | None = None) -> None:
        xs = sampler.operands(xs)
        if subset is not None:
            xs, d = sampler.cut(xs, d, subset, batch)
            batch = len(range(*subset.indices(batch)))
        self.sampler, self.xs, self.d, self.batch, self.shape = sampler, xs, d, batch, sampler.shape
        self.dtype, self.device = d.dtype, d.device

    def runs(self, summed: bool = False) -> list[slice]:
        """As for all; or, if `summed`, so that `squares_and_sum` of a run fits the budget."""
        if self.sampler.alone(self.d):
            return [slice(i, i + 1) for i in range(self.batch)]
        held = self.sampler.sum_elements if summed else self.sampler.samples_elements
        return chunks(self.batch, held(self.xs, self.d, self.batch) * self.dtype.itemsize, self.device)

    def runs_of_squares(self) -> list[slice]:
        """How to cut the batch so that `squares` of a run fits the device's budget."""
        elements = self.sampler.squares_elements(self.xs, self.d, self.batch)
        return chunks(self.batch, elements * self.dtype.itemsize, self.device)

    def samples(self, run: slice) -> Tensor:
        return self._of(run, self.sampler.samples(*self.cut(run), run.stop - run.start), *self.shape)

    def total(self) -> Tensor:
        found = self.sampler.total(self.xs, self.d)
        return super().total() if found is None else found.view(self.shape)

    def squares(self) -> Tensor:
        convolution = self.sampler.convolution(self.xs, self.d, self.batch)
        if convolution is not None:
            return kernels.squares(convolution, self.batch)
        squares = []
        for run in self.runs_of_squares():
            part = self.sampler.squares(*self.cut(run), run.stop - run.start)
            if part is None:
                return super().squares()
            squares.append(self._of(run, part))
        return joined(squares)

    def squares_and_gradient(self, dtype: torch.dtype, memory_format: torch.memory_format) -> tuple[Tensor, Tensor]:
        """`‖c_i‖²` and `Σ_i c_i`; the sum is taken in float32 or wider and returned in `dtype` and `memory_format`."""
        convolution = self.sampler.convolution(self.xs, self.d, self.batch)
        if convolution is not None:
            found, gradient = kernels.squares_and_sum(convolution, self.batch, dtype, memory_format)
            # A view has strides of its own in dimensions of one element.
            return found, gradient if gradient.shape == self.shape else gradient.view(self.shape)
        squares, total = [], None
        for run in self.runs(summed=True):
            found, total = self.sampler.squares_and_sum(*self.cut(run), run.stop - run.start, total)
            squares.append(self._of(run, found))
        assert total is not None
        if total.shape != self.shape:
            raise UserError(f"{type(self.sampler).__name__} returned a sum of shape {tuple(total.shape)}")
        if memory_format is not torch.contiguous_format:
            return joined(squares), total.to(dtype, memory_format=memory_format)
        total = total.to(dtype).contiguous()
        if 1 in self.shape:
            total = total.view(-1).view(self.shape)  # views have strides of their own there, and DDP compares them
        return joined(squares), total

    def _of(self, run: slice, found: Tensor, *shape: int) -> Tensor:
        """What a sampler found, if it is of the samples of the run."""
        due = (run.stop - run.start, *shape)
        if found.shape != due:
            name = type(self.sampler).__name__
            raise UserError(f"{name} returned values of shape {tuple(found.shape)} for {due[0]} samples, not {due}")
        return found

    def cut(self, run: slice) -> tuple[Saved, Tensor]:
        """What belongs to a run of samples."""
        if run.start == 0 and run.stop == self.batch and run.step is None:
            return self.xs, self.d
        return self.sampler.cut(self.xs, self.d, run, self.batch)


def squares_together(parts: list[GradSamples]) -> Tensor:
    """`‖Σ_parts c_i‖²` of a parameter that is used in several places, cross terms included, `[batch]`."""
    parts = _merged(parts)
    if len(parts) == 1:
        return parts[0].squares()
    one, other = parts[:2]
    if len(parts) == 2 and isinstance(one, OperatorSamples) and isinstance(other, OperatorSamples):
        inner = one.sampler.inner(one.xs, one.d, other.sampler, other.xs, other.d, one.batch)
        if inner is not None:
            apart = one.squares() + other.squares()
            together = apart + 2 * inner
            if not cancels(together, apart):
                return together.clamp_min(0)  # rounding can pass zero on a device, which is not asked
    squares = []
    for run in parts[0].runs():
        total: Tensor | None = None
        for part in parts:
            samples = part.samples(run)
            samples = samples.to(norm_dtype(samples.dtype))
            total = samples if total is None else total + samples
        assert total is not None
        squares.append(squared_norms(total))
    return joined(squares)


def joined(squares: list[Tensor]) -> Tensor:
    """Of all runs."""
    return squares[0] if len(squares) == 1 else torch.cat(squares)


def _merged(parts: list[GradSamples]) -> list[GradSamples]:
    """Calls of the same operator with the same weight, taken together where their sampler can."""
    groups: dict[Sampler, list[OperatorSamples]] = {}
    merged: list[GradSamples] = []
    for part in parts:
        if isinstance(part, OperatorSamples):
            groups.setdefault(part.sampler, []).append(part)
        else:
            merged.append(part)
    for sampler, group in groups.items():
        whole = sampler.merge([(part.xs, part.d) for part in group], group[0].batch) if len(group) > 1 else None
        if whole is None:
            merged += group
        else:
            merged.append(OperatorSamples(sampler, *whole, group[0].batch))
    return merged
