"""One use of measured parameters in a forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .sample_axis.axis import SampleAxis
from .samplers.base import Sampler
from .tracked import TrackedParameter, TrackedTensor, parameters_of


@dataclass(eq=False, slots=True, weakref_slot=True)
class Use:
    """What the backward pass must know to measure.

    Args:
        sampler: of the operator that uses them.
        weight, bias: what is measured; None for what is frozen, absent or not wanted.
        batch: number of samples.
        fused: whether the weight gradient comes out of measuring; the operator was then given a detached weight.
        unbatched: the input has no batch dimension and is one sample.
        axis: where samples stand in the input and the output, unless their rows come in order, in front.
        subset: which samples are measured; None for all.
        dtype, memory_format: of the weight gradient.
        shared: parameter → whether other uses of the same pass have a part in its gradient.
        number, sizes: what stands for all this in a compiled backward pass, see `compiled.py`.
    """

    sampler: Sampler
    weight: TrackedTensor | None
    bias: TrackedTensor | None
    batch: int
    fused: bool
    unbatched: bool = False
    axis: SampleAxis | None = None
    subset: slice | None = None
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    shared: dict[TrackedParameter, bool] = field(default_factory=dict)
    number: int = -1
    sizes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.weight is not None and self.bias is not None:  # one parameter, a scale, may be behind both
            self.shared.update((both, True) for both in self.weight.parameters if both in self.bias.parameters)

    @property
    def parameters(self) -> list[TrackedParameter]:
        return parameters_of(self.weight, self.bias)
