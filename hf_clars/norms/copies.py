"""Parameters of which each sample uses its own copy: where norms are read off in functions that broadcast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .linear_rules import PositionsRule
from .marks import Source, source_of
from .measured import tap
from .rule import RowsRule, Rule, Saved, SpreadRule
from .sample_axis.axis import SampleAxis
from .tap import Use

if TYPE_CHECKING:
    from .per_sample import PerSampleNorms


def own_copies(norms: PerSampleNorms, u: Tensor, axis: SampleAxis, ndim: int, size: int) -> Tensor:
    """`u`, once for each sample, with `ndim` dimensions of which `axis.dim` has `size` entries; there `u` has one."""
    source = source_of(u)
    assert source is not None
    batch = axis.batch
    rule: Rule = SpreadRule(tuple(u.shape))
    saved: Saved = ()
    if source.lookup is not None:
        ids, padding = source.lookup
        rule, saved = PositionsRule(tuple(source.entries[0].parameter.shape), padding), (ids,)
        source = Source(source.entries, None)
    use = Use(rule, source, None, batch, fused=False)
    each = u.reshape(1, *u.shape).expand(batch, *u.shape)
    each = tap(norms, each, use, saved, in_place=False)
    shape = [1] * (ndim - u.ndim) + list(u.shape)
    del shape[axis.dim]
    each = each.reshape(batch, *shape)
    if size != batch:
        each = each.reshape(1, batch, 1, *shape)
        each = each.expand(size // (batch * axis.inner), batch, axis.inner, *shape).reshape(size, *shape)
    return each.movedim(0, axis.dim) if axis.dim else each


def shared_copies(norms: PerSampleNorms, u: Tensor, axis: SampleAxis) -> Tensor:
    """`u`, of which each sample uses some entries of dimension `axis.dim`, its own ones."""
    use = Use(RowsRule(tuple(u.shape), axis.dim, axis.inner), source_of(u), None, axis.batch, fused=False, axis=axis)
    return tap(norms, u.view_as(u), use, (torch.arange(axis.batch, device=u.device),), in_place=False)
