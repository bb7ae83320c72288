"""Parameters of which each sample uses its own copy: where norms are read off in functions that broadcast."""

from __future__ import annotations

import torch
from torch import Tensor

from .measurement import Measurement
from .sample_axis.axis import SampleAxis
from .samplers.base import RowsSampler, Sampler, Saved, SpreadSampler
from .samplers.linear import PositionsSampler
from .tracked import TrackedTensor, tracked_tensor
from .uses import Use


def own_copies(measurement: Measurement, u: Tensor, axis: SampleAxis, ndim: int, size: int) -> Tensor:
    """`u`, once for each sample, with `ndim` dimensions of which `axis.dim` has `size` entries; there `u` has one."""
    tracked = tracked_tensor(u)
    assert tracked is not None
    batch = axis.batch
    sampler: Sampler = SpreadSampler(tuple(u.shape))
    saved: Saved = ()
    if tracked.lookup is not None:
        ids, padding = tracked.lookup
        sampler, saved = PositionsSampler(tuple(tracked.parameters[0].parameter.shape), padding), (ids,)
        tracked = TrackedTensor(tracked.parameters, None)
    use = Use(sampler, tracked, None, batch, fused=False)
    each = u.reshape(1, *u.shape).expand(batch, *u.shape)
    each = measurement.hooked(each, use, saved, in_place=False)
    shape = [1] * (ndim - u.ndim) + list(u.shape)
    del shape[axis.dim]
    each = each.reshape(batch, *shape)
    if size != batch:
        each = each.reshape(1, batch, 1, *shape)
        each = each.expand(size // (batch * axis.inner), batch, axis.inner, *shape).reshape(size, *shape)
    return each.movedim(0, axis.dim) if axis.dim else each


def shared_copies(measurement: Measurement, u: Tensor, axis: SampleAxis) -> Tensor:
    """`u`, of which each sample uses some entries of dimension `axis.dim`, its own ones."""
    use = Use(
        RowsSampler(tuple(u.shape), axis.dim, axis.inner), tracked_tensor(u), None, axis.batch, fused=False, axis=axis
    )
    return measurement.hooked(u.view_as(u), use, (torch.arange(axis.batch, device=u.device),), in_place=False)
