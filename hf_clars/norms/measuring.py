"""What is done when a backward pass reaches a use of parameters: their norms are taken."""

from __future__ import annotations

from torch import Tensor

from .backward_passes import computes_gradient_of, reaches
from .grad_samples import GivenSamples, GradSamples, OperatorSamples, SamplesThroughGraph, SamplesThroughRecipe
from .recorder import Recorder
from .samplers.base import Saved
from .samplers.linear import LinearSampler
from .tracked import TrackedParameter, TrackedTensor
from .uses import Use


def measure(recorder: Recorder, use: Use, xs: Saved, d: Tensor) -> Tensor | None:
    """Record `‖c_i‖` of what was used, and return the weight gradient if it is to come from here.

    Args:
        xs: what the forward pass kept for the sampler.
        d: the derivative of the loss by the operator's output.
    """
    if use.unbatched:
        xs, d = (xs[0].unsqueeze(0), *xs[1:]), d.unsqueeze(0)
    if use.axis is not None:
        if d.ndim < xs[0].ndim and isinstance(use.sampler, LinearSampler):  # the call saw its positions flattened
            d = d.view(*xs[0].shape[:-1], d.shape[-1])
        xs, d = use.sampler.samples_first(xs, d, use.axis)
    if use.parameters:
        recorder.begin_backward()
    if not recorder.check.active:
        return _measure(recorder, use, xs, d)
    with recorder.check.measures():
        recorder.check.sees(d)
        return _measure(recorder, use, xs, d)


def _measure(recorder: Recorder, use: Use, xs: Saved, d: Tensor) -> Tensor | None:
    gradient = None
    if use.weight is not None:
        part = OperatorSamples(use.sampler, xs, d, use.batch, use.subset)
        whole = part if use.subset is None else OperatorSamples(use.sampler, xs, d, use.batch)
        gradient = _close(recorder, use, use.weight, part, whole)
    if use.bias is not None:
        samples = use.sampler.bias_samples(d, use.batch)
        measured = samples if use.subset is None else samples[use.subset]
        _close(recorder, use, use.bias, GivenSamples(measured), GivenSamples(samples))
    return gradient


def _close(recorder: Recorder, use: Use, of: TrackedTensor, part: GradSamples, whole: GradSamples) -> Tensor | None:
    """`part` is of the samples that are measured, `whole` of all."""
    gradient = None
    for tracked in of.parameters:
        if use.number < 0 and not _is_wanted(tracked, recorder):
            continue
        if use.fused and isinstance(part, OperatorSamples) and of is use.weight:
            squares, gradient = part.squares_and_gradient(use.dtype, use.memory_format)
            recorder.close(tracked, use, part, squares)
        else:
            recorder.close(tracked, use, _through(part, of, tracked, recorder))
        if recorder.check.active:
            total = _through(whole, of, tracked, recorder).total() if gradient is None else gradient
            recorder.check.claim(tracked, total, use.sampler)
    return gradient


def _through(part: GradSamples, of: TrackedTensor, tracked: TrackedParameter, recorder: Recorder) -> GradSamples:
    """What a parameter gets, of what the tensor gets which is computed from it."""
    if of.recipe is not None:
        return SamplesThroughRecipe(part, of.recipe, tracked, recorder.parameters)
    return part if of.u is None else SamplesThroughGraph(part, of.u, tracked.parameter)


def _is_wanted(tracked: TrackedParameter, recorder: Recorder) -> bool:
    """Whether this backward pass computes the parameter's gradient."""
    if not tracked.parameter.requires_grad:
        return False
    # At the anchor it computes all gradients that there are.
    return reaches(recorder.anchor_node) or computes_gradient_of(tracked.parameter)
