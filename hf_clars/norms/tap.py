"""The point of the backward pass at which norms are read off."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

if TYPE_CHECKING:
    from .ledger import Entry
    from .rule import Rule


@dataclass(eq=False)
class Call:
    """One use of a measured module in a forward pass.

    Args:
        rule: the module's rule.
        weight, bias: their entries in the ledger; None for what is frozen, absent or not wanted.
        batch: number of samples.
        subset: which of them are measured; None for all.
        fused: whether the weight gradient comes from here; the operator was then given a detached weight.
        unbatched: the input has no batch dimension and is one sample.
        shared: entry index → whether other calls of the same pass use that parameter too.
    """

    rule: Rule
    weight: Entry | None
    bias: Entry | None
    batch: int
    subset: slice | None
    fused: bool
    unbatched: bool
    shared: dict[int, bool] = field(default_factory=dict)


class Tap(torch.autograd.Function):
    """Identity on a layer's output `y` whose backward sees `(x, d)` and measures `‖c_i‖` of weight and bias.

    In the fused case it also returns the weight gradient: formed sample by sample for the norms, it is the sum of what
    was formed, and autograd is spared computing it again. `y` is passed through in place, so that layers behind it may
    work in place on it, as they may on the layer's own output.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor | None, call: Call) -> Tensor:
        ctx.save_for_backward(x)
        ctx.call = call
        for entry in (call.weight, call.bias):
            if entry is not None:
                entry.open(call)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "PerSampleNorms does not measure derivatives of gradients (create_graph=True): detach() it first"
            )
        (x,) = ctx.saved_tensors
        call: Call = ctx.call
        full, batch = d, call.batch
        if call.unbatched:
            x, d = x.unsqueeze(0), d.unsqueeze(0)
        if call.subset is not None:
            step = call.subset
            folds = x.shape[0] // batch
            x = _select(x, step, batch, folds)
            d = _select(d, step, batch, folds)
            batch = len(range(*step.indices(batch)))

        weight_gradient = None
        if call.weight is not None and _is_wanted(call.weight.parameter):
            weight_gradient = call.weight.close(call, x, d, batch)
        if call.bias is not None and _is_wanted(call.bias.parameter):
            call.bias.close_bias(call, d, batch)
        return full, None, weight_gradient, None


def _is_wanted(parameter: Tensor) -> bool:
    """Whether this backward pass computes the parameter's gradient, rather than the input's alone.

    A private name, the one that FSDP and checkpointing ask; test_norms_edges.py fails if it goes.
    """
    if torch.compiler.is_compiling():
        return True
    try:
        return torch._C._will_engine_execute_node(get_gradient_edge(parameter).node)
    except RuntimeError:  # `torch.autograd.grad` for the parameter itself, which ends at it
        return True


def _select(tensor: Tensor, which: slice, batch: int, folds: int) -> Tensor:
    if folds == 1:
        return tensor[which]
    return tensor.unflatten(0, (batch, folds))[which].flatten(0, 1)
