"""The point of the backward pass at which norms are read off."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from . import traced
from .linear_rules import LinearRule
from .part import FixedPart, LayerPart, Part, RecipePart, ThroughPart
from .sample_axis.axis import SampleAxis

if TYPE_CHECKING:
    from .gradient_check import GradientCheck
    from .ledger import Entry
    from .marks import Source
    from .rule import Rule, Saved


@dataclass(eq=False)
class Use:
    """One use of measured parameters in a forward pass.

    Args:
        rule: of the operator that uses them.
        weight, bias: what is measured; None for what is frozen, absent or not wanted.
        batch: number of samples.
        fused: whether the weight gradient comes from here; the operator was then given a detached weight.
        unbatched: the input has no batch dimension and is one sample.
        axis: where samples stand in the input and the output, unless their rows come in order, in front.
        subset: which samples are measured; None for all.
        dtype, memory_format: of the weight gradient.
        shared: entry → whether other uses of the same pass have a part in its gradient.
        number, sizes, ledger: what stands for all this in a compiled backward pass, see `traced.py`.
    """

    rule: Rule
    weight: Source | None
    bias: Source | None
    batch: int
    fused: bool
    unbatched: bool = False
    axis: SampleAxis | None = None
    subset: slice | None = None
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    shared: dict[Entry, bool] = field(default_factory=dict)
    number: int = -1
    sizes: list[int] = field(default_factory=list)
    ledger: int = -1

    def opened(self) -> None:
        for source in (self.weight, self.bias):
            for entry in source.entries if source is not None else ():
                entry.open(self)

    def close(self, xs: Saved, d: Tensor) -> Tensor | None:
        """The backward pass is here: measure, and return the weight gradient if it is to come from here."""
        if self.unbatched:
            xs, d = (xs[0].unsqueeze(0), *xs[1:]), d.unsqueeze(0)
        if self.axis is not None:
            if d.ndim < xs[0].ndim and isinstance(self.rule, LinearRule):  # the call saw its positions flattened
                d = d.view(*xs[0].shape[:-1], d.shape[-1])
            xs, d = self.rule.samples_first(xs, d, self.axis)
        check = self._check()
        if check is not None:
            check.measuring = True
            check.sees(d)
        try:
            return self._measure(xs, d)
        finally:
            if check is not None:
                check.measuring = False

    def _check(self) -> GradientCheck | None:
        """Of the ledger, in the passes in which it looks."""
        for source in (self.weight, self.bias):
            if source is not None:
                ledger = source.entries[0].ledger
                ledger.begin_backward()
                return ledger.check if ledger.check.active else None
        return None

    def _measure(self, xs: Saved, d: Tensor) -> Tensor | None:
        gradient = None
        if self.weight is not None:
            part = LayerPart(self.rule, xs, d, self.batch, self.subset)
            whole = part if self.subset is None else LayerPart(self.rule, xs, d, self.batch)
            gradient = self._close(self.weight, part, whole)
        if self.bias is not None:
            samples = self.rule.bias_samples(d, self.batch)
            measured = samples if self.subset is None else samples[self.subset]
            self._close(self.bias, FixedPart(measured), FixedPart(samples))
        return gradient

    def _close(self, source: Source, part: Part, whole: Part) -> Tensor | None:
        """`part` is of the samples that are measured, `whole` of all."""
        gradient = None
        for entry in source.entries:
            if self.number < 0 and not _is_wanted(entry):
                continue
            if self.fused and isinstance(part, LayerPart) and source is self.weight:
                squares, gradient = part.squares_and_gradient(self.dtype, self.memory_format)
                entry.close(self, part, squares)
            else:
                entry.close(self, _through(part, source, entry))
            if entry.ledger.check.active:
                entry.ledger.check.claim(
                    entry, _through(whole, source, entry).total() if gradient is None else gradient
                )
        return gradient


def _through(part: Part, source: Source, entry: Entry) -> Part:
    """The part of a parameter, of that of the tensor which is computed from it."""
    if source.recipe is not None:
        return RecipePart(part, source.recipe, entry)
    return part if source.u is None else ThroughPart(part, source.u, entry.parameter)


class Tap(torch.autograd.Function):
    """Identity on a layer's output `y` whose backward sees what was saved and `d`, and measures `‖c_i‖`.

    In the fused case it also returns the weight gradient: formed sample by sample for the norms, it is the sum of what
    was formed, and autograd is spared computing it again. With `in_place`, `y` is passed through as it is, so that
    layers behind it may work in place on it, as they may on the layer's own output.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor | None, anchor: Tensor, use: Use, in_place: bool, *saved: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*saved)
        ctx.use = use
        if torch.compiler.is_compiling():  # of what is dirty, torch 2.11's compiler says that it is a view
            return y.clone() if in_place else y.view_as(y)
        if in_place and torch._C._len_torch_dispatch_stack():
            return y.clone()  # selective checkpointing keeps results, and none may be dirty when it brings them back
        if not in_place:
            return y.view_as(y)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "PerSampleNorms does not measure derivatives of gradients (create_graph=True): detach() it first"
            )
        xs, use = ctx.saved_tensors, ctx.use
        if torch.compiler.is_compiling():
            gradient, token = traced.close(list(xs), d, use.ledger, use.number, use.sizes)
            return (d, gradient if use.fused else None, token, None, None, *(None for _ in xs))
        with _without_autocast(d.device.type):
            gradient = use.close(xs, d)
        return (d, gradient, None, None, None, *(None for _ in xs))


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """`backward()` may have been called under autocast, and norms are taken in float32."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _is_wanted(entry: Entry) -> bool:
    """Whether this backward pass computes the parameter's gradient, rather than the input's alone.

    A private name, the one that FSDP and checkpointing ask; test_norms_edges.py fails if it goes.
    """
    if not entry.parameter.requires_grad:
        return False
    if torch._C._will_engine_execute_node(entry.ledger.anchor_node):
        return True  # the pass computes all gradients that there are
    try:
        return torch._C._will_engine_execute_node(get_gradient_edge(entry.parameter).node)
    except RuntimeError:  # `torch.autograd.grad` for the parameter itself, which ends at it
        return True
