"""The point of the backward pass at which norms are read off."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from . import traced
from .part import FixedPart, LayerPart, Part, RecipePart, ThroughPart

if TYPE_CHECKING:
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
        positions_first: rows are ordered by position, then by sample.
        subset: which samples are measured; None for all.
        dtype, memory_format: of the weight gradient.
        shared: entry → whether other uses of the same pass have a part in its gradient.
        number, ledger: what stands for all this in a compiled backward pass, see `traced.py`.
    """

    rule: Rule
    weight: Source | None
    bias: Source | None
    batch: int
    fused: bool
    unbatched: bool = False
    positions_first: bool = False
    subset: slice | None = None
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    shared: dict[Entry, bool] = field(default_factory=dict)
    number: int = -1
    ledger: int = -1

    def opened(self) -> None:
        for source in (self.weight, self.bias):
            for entry in source.entries if source is not None else ():
                entry.open(self)

    def close(self, xs: Saved, d: Tensor) -> Tensor | None:
        """The backward pass is here: measure, and return the weight gradient if it is to come from here."""
        if self.unbatched:
            xs, d = (xs[0].unsqueeze(0), *xs[1:]), d.unsqueeze(0)
        if self.positions_first:
            xs, d = (_samples_first(xs[0], self.batch), *xs[1:]), _samples_first(d, self.batch)
        gradient = None
        if self.weight is not None:
            part = LayerPart(self.rule, xs, d, self.batch, self.subset)
            gradient = self._close(self.weight, part)
        if self.bias is not None:
            samples = self.rule.bias_samples(d, self.batch)
            self._close(self.bias, FixedPart(samples if self.subset is None else samples[self.subset]))
        return gradient

    def _close(self, source: Source, part: Part) -> Tensor | None:
        gradient = None
        for entry in source.entries:
            if self.number < 0 and not _is_wanted(entry):
                continue
            if source.recipe is not None:
                entry.close(self, RecipePart(part, source.recipe, entry))
            elif source.u is not None:
                entry.close(self, ThroughPart(part, source.u, entry.parameter))
            elif self.fused and isinstance(part, LayerPart) and source is self.weight:
                squares, gradient = part.squares_and_gradient(self.dtype, self.memory_format)
                entry.close(self, part, squares)
            else:
                entry.close(self, part)
        return gradient


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
            gradient, token = traced.close(list(xs), d, use.ledger, use.number, use.batch)
            return (d, gradient if use.fused else None, token, None, None, *(None for _ in xs))
        with _without_autocast(d.device.type):
            gradient = use.close(xs, d)
        return (d, gradient, None, None, None, *(None for _ in xs))


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    """`backward()` may have been called under autocast, and norms are taken in float32."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _samples_first(tensor: Tensor, batch: int) -> Tensor:
    return tensor.reshape(-1, batch, tensor.shape[-1]).transpose(0, 1)


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
