"""What is planned for an operator's call: where its samples are, and how they are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .backward import hooked
from .measurement import Measurement
from .ops import Operator
from .sample_axis.axis import Lost, SampleAxis, is_ordinary, samples_first
from .sample_axis.tags import place_of
from .samplers.base import Sampler, Saved
from .samplers.linear import LinearSampler
from .standardised import is_standardised
from .tracked import TrackedParameter, TrackedTensor, parameters_of, tracked_tensor
from .uses import Use

PICKED = "it sees rows that were picked by an index, of which it is not known whose they are"


@dataclass(eq=False)
class Plan:
    """What is decided about an operator's call: it holds for all inputs of a kind.

    Args:
        sampler, call: of the operator.
        weight, bias: what is measured.
        batch: number of samples.
        half: what autocast casts the input to.
        fused: whether the weight gradient may come out of measuring, if nothing else uses the weight.
        flat: positions are flattened for the call.
        unbatched: the input has no batch dimension and is one sample.
        axis: where samples stand in the input, unless their rows come in order, in front.
        subset: which samples are measured; None for all.
    """

    sampler: Sampler
    call: Callable[..., Tensor]
    weight: TrackedTensor | None
    bias: TrackedTensor | None
    batch: int
    half: torch.dtype | None
    fused: bool
    flat: bool
    unbatched: bool
    axis: SampleAxis | None
    subset: slice | None

    def run(
        self,
        measurement: Measurement,
        axis: SampleAxis | None,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        kept: Saved = (),
    ) -> Tensor:
        """The operator's result, of which the backward pass is going to measure; samples of `x` stand along `axis`."""
        given, flat = x, self.flat
        if axis is not None and axis.assumed:
            axis.carries(parameters_of(self.weight, self.bias))
        if self.half is not None:
            x = x.to(self.half)
            if _is_kept_by_autocast(given):
                flat = False  # a view is not kept
            else:
                given = x
        fused = self.fused and self.weight is not None
        if fused and self.weight is not None and not measurement.regions.must_repeat():
            fused = True not in [tracked.in_use() for tracked in self.weight.parameters]
        use = Use(self.sampler, self.weight, self.bias, self.batch, fused, self.unbatched, self.axis, self.subset)
        w = weight.detach() if fused and weight is not None else weight
        y = self.call(given.flatten(0, -2) if flat else given, w, bias)
        saved = (x.detach(), *[t.detach() if t.requires_grad else t for t in kept])
        y = hooked(measurement.recorder, y, use, saved, weight if fused else None)
        return y.view(*x.shape[:-1], y.shape[-1]) if flat else y


def _is_kept_by_autocast(x: Tensor) -> bool:
    """Whether autocast casts it once for all operators, whose gradients then add up in the half precision."""
    return x.requires_grad and x.is_leaf and not x._is_view() and torch.is_autocast_cache_enabled()


def decide(measurement: Measurement, operator: Operator) -> Plan | None:
    """None, and noted, where samples are not known, or nothing can be measured."""
    sampler, x = operator.sampler, operator.x
    weight, bias = tracked_tensor(operator.weight), tracked_tensor(operator.bias)
    axis = _axis_of_input(measurement, sampler, x, parameters_of(weight, bias))
    if axis is None or not measurement.can_measure(weight, bias):
        return None
    batch = axis.batch
    unbatched = x.ndim == sampler.unbatched_ndim
    ordinary = unbatched or is_ordinary(axis, x.shape)
    half = None
    if operator.half and x.is_floating_point() and x.dtype != torch.float64:
        # Autocast's cast, done here so that what backward keeps is the half as well.
        kind = x.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    fused = weight is not None and measurement.measures_all(batch)
    if fused and weight is not None and weight.u is not None:
        fused = weight.lookup is None and not torch.compiler.is_compiling() and sampler.forms_weight()
    # What is computed from a parameter is measured by way of its own `c_i`, but for products with standardised weights.
    if fused and weight is not None and (weight.u is None or (sampler.is_product and is_standardised(weight.u))):
        like = x if half is None else x.to(half)
        if unbatched:
            like = like.unsqueeze(0)
        elif not ordinary:
            like = samples_first(like, axis)
        fused = sampler.fused(like, batch)
    # Torch itself flattens positions and views the product back. A tap on that view would cost copies of `d`.
    flat = isinstance(sampler, LinearSampler) and x.ndim > 2
    where = None if ordinary else SampleAxis(axis.dim, axis.inner, axis.batch)
    subset = measurement.subset_of(batch)
    return Plan(sampler, operator.call, weight, bias, batch, half, fused, flat, unbatched, where, subset)


def _axis_of_input(
    measurement: Measurement, sampler: Sampler, x: Tensor, parameters: list[TrackedParameter]
) -> SampleAxis | None:
    place = place_of(x)
    if x.numel() == 0:
        return None  # no samples, no contributions
    if type(place) is not SampleAxis:
        measurement.exclude(parameters, place.reason if type(place) is Lost else "its input does not depend on samples")
        return None
    if place.pick is not None:
        measurement.exclude(parameters, PICKED)
        return None
    if x.ndim == sampler.unbatched_ndim and place.batch == 1:
        return place
    if place.dim >= sampler.sample_dims(x.ndim) or x.ndim == sampler.unbatched_ndim:
        measurement.exclude(
            parameters, f"its layer works along dimension {place.dim} of its input, in which samples stand"
        )
        return None
    return place
