"""What is done when a backward pass reaches a use of parameters: their norms are taken."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import UserError
from .backward_passes import computes_gradient_of, reaches
from .computed_weights import SamplesThroughGraph, SamplesThroughRecipe, squares_through
from .grad_samples import GivenSamples, GradSamples, OperatorSamples
from .recorder import Recorder
from .samplers.base import Saved
from .samplers.linear import LinearSampler
from .standardised import Standardisation
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
    if of.u is not None or of.recipe is not None:
        return _close_computed(recorder, use, of, part, whole)
    squares = gradient = None
    for tracked in of.parameters:
        if use.number < 0 and not _is_wanted(tracked, recorder):
            continue
        if part.shape != tracked.parameter.shape:  # or it would broadcast with what other uses contribute
            shapes = f"{tuple(part.shape)} for a parameter of shape {tuple(tracked.parameter.shape)}"
            raise UserError(f"{type(use.sampler).__name__} returned gradients of shape {shapes}")
        if use.fused and gradient is None and isinstance(part, OperatorSamples):
            squares, gradient = part.squares_and_gradient(use.dtype, use.memory_format)
        recorder.close(tracked, use, part, squares)
        if recorder.check.active:
            recorder.check.claim(tracked, whole.total() if gradient is None else gradient, use.sampler)
    return gradient


def _close_computed(
    recorder: Recorder, use: Use, of: TrackedTensor, part: GradSamples, whole: GradSamples
) -> Tensor | None:
    """The same of a tensor that is computed from parameters."""
    wanted = [tracked for tracked in of.parameters if use.number >= 0 or _is_wanted(tracked, recorder)]
    standardisation = None
    if of.u is not None and of.edge is not None:
        standardisation = Standardisation.of(of.u, of.edge.node)
    parts = [_through(part, of, tracked, recorder, standardisation) for tracked in wanted]
    squares: Sequence[Tensor | None] = [None] * len(parts)
    gradient: Tensor | None = None
    fused = use.fused and of is use.weight
    through = [own for own in parts if isinstance(own, SamplesThroughGraph)]
    if len(through) > 1 or (through and fused):
        squares, total = squares_through(through, summed=fused)
        gradient = None if total is None else total.to(use.dtype, memory_format=use.memory_format)
    elif fused and of.u is not None:  # it leads to something that is not measured
        gradient = part.total().view(of.u.shape).to(use.dtype, memory_format=use.memory_format)
    for tracked, own, known in zip(wanted, parts, squares, strict=True):
        recorder.close(tracked, use, own, known)
        if recorder.check.active:
            known_total = _through(whole, of, tracked, recorder, standardisation).total()
            recorder.check.claim(tracked, known_total, use.sampler)
    return gradient


def _through(
    part: GradSamples,
    of: TrackedTensor,
    tracked: TrackedParameter,
    recorder: Recorder,
    standardisation: Standardisation | None,
) -> GradSamples:
    """What a parameter gets, of what the tensor gets which is computed from it."""
    if of.recipe is not None:
        return SamplesThroughRecipe(part, of.recipe, tracked, recorder.parameters)
    if of.u is None or of.edge is None:
        return part
    return SamplesThroughGraph(part, of.u, of.edge, tracked.parameter, standardisation)


def _is_wanted(tracked: TrackedParameter, recorder: Recorder) -> bool:
    """Whether this backward pass computes the parameter's gradient."""
    if not tracked.parameter.requires_grad:
        return False
    # At the anchor it computes all gradients that there are.
    return reaches(recorder.anchor_node) or computes_gradient_of(tracked.parameter)
