"""An operator's call, and what is measured of the parameters it uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import traced
from .linear_rules import LinearRule
from .marks import Source, axis_of, place_of, source_of
from .operators import Operator
from .recipes import is_outdated
from .rule import Rule, Saved
from .sample_axis.axis import Lost, SampleAxis, is_ordinary, samples_first
from .tap import Tap, Use

if TYPE_CHECKING:
    from .per_sample import PerSampleNorms


PICKED = "it sees rows that were picked by an index, of which it is not known whose they are"


@dataclass(eq=False)
class Measured:
    """What is decided about an operator's call: it holds for all inputs of a kind.

    Args:
        rule, call: of the operator.
        weight, bias: what is measured.
        batch: number of samples.
        half: what autocast casts the input to.
        fused: whether the weight gradient may come out of measuring, if nothing else uses the weight.
        flat: positions are flattened for the call.
        unbatched: the input has no batch dimension and is one sample.
        axis: where samples stand in the input, unless their rows come in order, in front.
    """

    rule: Rule
    call: Callable[..., Tensor]
    weight: Source | None
    bias: Source | None
    batch: int
    half: torch.dtype | None
    fused: bool
    flat: bool
    unbatched: bool
    axis: SampleAxis | None

    def run(
        self, norms: PerSampleNorms, x: Tensor, weight: Tensor | None, bias: Tensor | None, kept: Saved = ()
    ) -> Tensor:
        """The operator's result, of which the backward pass is going to measure."""
        given, flat = x, self.flat
        axis = axis_of(x)
        if axis is not None and axis.assumed:
            axis.carries(entries_of(self.weight, self.bias))
        if self.half is not None:
            x = x.to(self.half)
            if _is_kept_by_autocast(given):
                flat = False  # a view is not kept
            else:
                given = x
        fused = self.fused and self.weight is not None
        if fused and self.weight is not None and not norms.interception.regions.must_repeat():
            fused = not self.weight.entries[0].in_use()
        use = Use(self.rule, self.weight, self.bias, self.batch, fused, self.unbatched, self.axis)
        w = weight.detach() if fused and weight is not None else weight
        y = self.call(given.flatten(0, -2) if flat else given, w, bias)
        y = tap(norms, y, use, (x.detach(), *kept), weight if fused else None)
        return y.view(*x.shape[:-1], y.shape[-1]) if flat else y


def _is_kept_by_autocast(x: Tensor) -> bool:
    """Whether autocast casts it once for all operators, whose gradients then add up in the half precision."""
    return x.requires_grad and x.is_leaf and not x._is_view() and torch.is_autocast_cache_enabled()


def decide(norms: PerSampleNorms, operator: Operator) -> Measured | None:
    """None, and noted, where samples are not known, or nothing can be measured."""
    rule, x = operator.rule, operator.x
    weight, bias = source_of(operator.weight), source_of(operator.bias)
    axis = _axis_of_input(norms, rule, x, entries_of(weight, bias))
    if axis is None or not measurable(norms, weight, bias):
        return None
    batch = axis.batch
    unbatched = x.ndim == rule.unbatched_ndim
    ordinary = unbatched or is_ordinary(axis, x.shape)
    half = None
    if operator.half and x.is_floating_point() and x.dtype != torch.float64:
        # Autocast's cast, done here so that what backward keeps is the half as well.
        kind = x.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    fused = weight is not None and weight.u is None and norms.mode == "per_sample"
    if fused:
        like = x if half is None else x.to(half)
        if unbatched:
            like = like.unsqueeze(0)
        elif not ordinary:
            like = samples_first(like, axis)
        fused = rule.fused(like, batch)
    # Torch itself flattens positions and views the product back. A tap on that view would cost copies of `d`.
    flat = isinstance(rule, LinearRule) and x.ndim > 2
    where = None if ordinary else SampleAxis(axis.dim, axis.inner, axis.batch)
    return Measured(rule, operator.call, weight, bias, batch, half, fused, flat, unbatched, where)


def _axis_of_input(norms: PerSampleNorms, rule: Rule, x: Tensor, entries: list[Any]) -> SampleAxis | None:
    place = place_of(x)
    if x.numel() == 0:
        return None  # no samples, no contributions
    if type(place) is not SampleAxis:
        norms.exclude(entries, place.reason if type(place) is Lost else "its input does not depend on samples")
        return None
    if place.pick is not None:
        norms.exclude(entries, PICKED)
        return None
    if x.ndim == rule.unbatched_ndim and place.batch == 1:
        return place
    if place.dim >= rule.sample_dims(x.ndim) or x.ndim == rule.unbatched_ndim:
        norms.exclude(entries, f"its layer works along dimension {place.dim} of its input, in which samples stand")
        return None
    return place


def tap(
    norms: PerSampleNorms, y: Tensor, use: Use, saved: Saved, weight: Tensor | None = None, in_place: bool = True
) -> Tensor:
    """`y`, behind which the backward pass measures `use`; `weight` is what it returns the gradient of."""
    use.subset = norms.subset_of(use.batch)
    use.dtype = y.dtype if weight is None else weight.dtype
    if weight is not None and _is_channels_last(weight):
        use.memory_format = torch.channels_last  # autograd copies a gradient that lies otherwise than its parameter
    use.opened()
    if torch.compiler.is_compiling():
        use.number, use.sizes = traced.numbered(use)
        use.ledger = norms.ledger.key
        saved = (*saved, *traced.constants_of(use))
    return Tap.apply(y, weight, norms.ledger.anchor, use, in_place, *saved)


def _is_channels_last(weight: Tensor) -> bool:
    """By its strides: of one pixel, or one channel, `is_contiguous` says it is so in either way. And DDP and optimizers
    compare strides, those of such dimensions too."""
    if weight.ndim != 4:
        return False
    _, channels, height, width = weight.shape
    return weight.stride() == (channels * height * width, 1, width * channels, channels)


def measurable(norms: PerSampleNorms, *sources: Source | None) -> bool:
    """Whether these can be measured here."""
    if torch.compiler.is_compiling():
        through = [s for s in sources if s is not None and s.u is not None and s.lookup is None]
        unknown = [s for s in through if s.recipe is None]
        if unknown:
            reason = "what is used is computed from it by a function that draws random numbers, under torch.compile"
            norms.exclude(entries_of(*unknown), reason)
        outdated = [s for s in through if s.recipe is not None and is_outdated(s.u)]
        if outdated:
            reason = "what is used is computed from it and changed in place through a view, under torch.compile"
            norms.exclude(entries_of(*outdated), reason)
        return not unknown and not outdated
    if norms.interception.regions.is_unwatched():
        norms.exclude(entries_of(*sources), "it is used in a checkpointed function that is not a module")
        return False
    return True


def entries_of(*sources: Source | None) -> list[Any]:
    return [entry for source in sources if source is not None for entry in source.entries]
