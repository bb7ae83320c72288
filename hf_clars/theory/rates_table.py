"""Each layer's learning rate by Theorem 2, next to what LARS and CLARS would choose at the same weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..formulas import layer_learning_rates
from ..validation import checks
from .curvature import LossFunction, global_lipschitz_constant, lipschitz_constants
from .estimation import gradient_moments
from .learning_rates import mnag_learning_rate_bounds


@dataclass(frozen=True)
class LayerRates:
    """One layer at given weights. Norms are in the units of weight and gradient, learning rates in weight² / loss.

    Attributes:
        name: of the parameter.
        weight_norm: `‖w_k‖`.
        gradient_norm: `‖∇_k f‖`.
        mean_sample_norm: `E‖∇_k f_i‖`.
        M: `M_k` of Assumption 2 with `M = 0`.
        L: `L_k` at these weights; 0 for a layer that the gradient does not depend on.
        layer_bound: Theorem 2's bound on this layer's `γ_k` alone; infinite where `L_k = 0`.
        admissible: `γ / L_k` with the largest γ common to all layers that also meets the condition on their mean.
        lars: `γ_k` of Eq. 3, with the root mean square of `‖∇_k f_I‖` over batches I of B independent samples.
        clars: `γ_k` of Eq. 5.
    """

    name: str
    weight_norm: float
    gradient_norm: float
    mean_sample_norm: float
    M: float
    L: float
    layer_bound: float
    admissible: float
    lars: float
    clars: float


def layer_rates(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    gamma_scale: float,
    batch_size: int,
    momentum: float = 0.9,
    eta_lars: float = 1e-3,
    eta_clars: float = 1e-2,
    iterations: int = 20,
    seed: int = 0,
) -> list[LayerRates]:
    """One `LayerRates` per measured parameter of two or more dimensions, in the model's order.

    `L_k`, `L_g` and `M_k` are those of the current weights and the given data (`lipschitz_constants`,
    `variance_constants`). The theorem's are suprema over all weights, so the admissible rates come out too large rather
    than too small. Layers with `L_k = 0` take no part in the common γ. That the conditions of the theorem do not
    suffice for coupled layers (see the package) is a second reason not to take the rates for safe ones.

    Args:
        model, batches, loss_fn: as in `lipschitz_constants`. The batches may have any sizes.
        gamma_scale: `γ_scale` of Eq. 3 and 5.
        batch_size: B, of the theorem and of LARS.
        momentum: β.
        eta_lars, eta_clars: η of Eq. 3 and of Eq. 5.
        iterations, seed: as in `lipschitz_constants`.

    Raises:
        UserError: as `lipschitz_constants` and `gradient_moments`; no layer has curvature; a number out of range.
    """
    kept = list(batches)
    size, scale = checks.count("batch_size", batch_size), checks.positive("gamma_scale", gamma_scale)
    checks.momentum(momentum)
    for name, eta in (("eta_lars", eta_lars), ("eta_clars", eta_clars)):
        checks.positive(name, eta)
    moments = gradient_moments(model, kept, loss_fn)
    L = lipschitz_constants(model, kept, loss_fn, iterations=iterations, seed=seed)
    curved = [name for name in moments if L[name] > 0]
    if not curved:
        raise UserError("no layer has curvature at these weights and data: Theorem 2 bounds nothing")
    L_g = global_lipschitz_constant(model, kept, loss_fn, iterations=iterations, seed=seed)
    L_g = max(L_g, *L.values())  # as it is exactly; estimates stop short of it
    M = {name: of_layer.least_factor for name, of_layer in moments.items()}
    L_curved = [L[name] for name in curved]
    bounds = mnag_learning_rate_bounds(L_curved, [M[n] for n in curved], L_g, batch_size, momentum=momentum)
    layer_bounds = dict(zip(curved, bounds.per_layer, strict=True))
    gamma = min(
        min(bound * L[name] for name, bound in layer_bounds.items()),
        bounds.mean * len(curved) / math.fsum(1 / l_k for l_k in L_curved),
    )

    parameters = dict(model.named_parameters())
    weights = torch.tensor([parameters[name].detach().double().norm().item() for name in moments])
    means = torch.tensor([m.mean_norm for m in moments.values()])
    batch_norms = torch.tensor([math.sqrt(m.gradient_square + m.variance / size) for m in moments.values()])
    lars = layer_learning_rates(scale, eta_lars, weights, batch_norms).tolist()
    clars = layer_learning_rates(scale, eta_clars, weights, means).tolist()
    return [
        LayerRates(
            name=name,
            weight_norm=weight,
            gradient_norm=math.sqrt(moments[name].gradient_square),
            mean_sample_norm=moments[name].mean_norm,
            M=M[name],
            L=L[name],
            layer_bound=layer_bounds.get(name, math.inf),
            admissible=gamma / L[name] if L[name] else math.inf,
            lars=by_lars,
            clars=by_clars,
        )
        for name, weight, by_lars, by_clars in zip(moments, weights.tolist(), lars, clars, strict=True)
    ]


HEADINGS = ("layer", "‖w‖", "‖∇f‖", "E‖∇f_i‖", "M_k", "L_k", "γ_k ≤", "γ/L_k", "LARS", "CLARS")


def format_table(rows: Sequence[LayerRates]) -> str:
    """The rows as aligned plain text, three digits of each number; `γ_k ≤` is `layer_bound`, `γ/L_k` `admissible`."""
    cells = [HEADINGS, *((name, *(f"{number:.3g}" for number in numbers)) for name, *numbers in map(astuple, rows))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEADINGS))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    )
