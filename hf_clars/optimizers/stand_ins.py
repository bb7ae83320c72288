"""Denominators for layers that are not measured, by the median of those that are."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..formulas import stand_in_denominators
from . import sharded
from .group_rules import is_adapted


def with_stand_ins(
    groups: Sequence[dict[str, Any]], measured: Mapping[Tensor, Tensor], settled: bool
) -> Mapping[Tensor, Tensor]:
    """`D_k` of every adapted layer that has a gradient: `formulas.stand_in_denominators` over the layers of all groups.

    Nothing is computed where all are measured. Waits for nothing; ranks that agree in gradients and in what is measured
    agree in the result, bit for bit.

    Args:
        groups: of the optimizer.
        measured: parameter → `Σ_i ‖c_i‖`, 0-dim, in the units of the gradient.
        settled: what is not measured is absent. If not, NaN may stand for it as well.
    """
    layers = [
        (weight, group["eta"])
        for group in groups
        if not group["uniform"]
        for weight in group["params"]
        if weight.grad is not None and not weight.grad.is_sparse and is_adapted(group, weight)
    ]
    if not layers or (settled and all(weight in measured for weight, _ in layers)):
        return measured
    gradient_norms = sharded.norms_of_any([weight.grad for weight, _ in layers])
    device = gradient_norms.device
    absent = torch.full((), torch.nan, dtype=gradient_norms.dtype, device=device)
    found = [measured.get(weight, absent).to(device, non_blocking=True) for weight, _ in layers]
    dtype = torch.float64 if torch.float64 in {d.dtype for d in found} else torch.float32
    denominators = torch.stack([d.to(dtype) for d in found])
    etas = {eta for _, eta in layers}
    eta = etas.pop() if len(etas) == 1 else torch.stack([torch.full_like(absent, eta) for _, eta in layers])
    filled = stand_in_denominators(gradient_norms, denominators, eta).unbind()
    return {**measured, **{weight: d for (weight, _), d in zip(layers, filled, strict=True)}}
