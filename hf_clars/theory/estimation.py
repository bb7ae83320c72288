"""Assumption 2's M_k and M, estimated from per-sample gradient norms at one point or along a trajectory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import UserError
from ..statistics.variance import GradientMoments, measure_moments
from ..validation import checks


@dataclass(frozen=True)
class VarianceConstants:
    """`E‖∇_k f_i − ∇_k f‖² ≤ M_k ‖∇_k f‖² + M`: a factor for each layer (no unit), one M for all (gradient²)."""

    M_k: dict[str, float]
    M: float


def gradient_moments(
    model: nn.Module, batches: Iterable[Any], loss_fn: Callable[[Any, Any], Tensor]
) -> dict[str, GradientMoments]:
    """`hf_clars.statistics.variance.measure_moments`, where all of it is finite.

    Raises:
        UserError: no batch; a gradient that is not finite; a `PerSampleNorms` is attached to the model already.
    """
    moments = measure_moments(model, batches, loss_fn)
    for name, of_layer in moments.items():
        if not math.isfinite(of_layer.gradient_square + of_layer.mean_square):
            raise UserError(f"the gradient of {name} is not finite at these weights and data")
    return moments


def variance_constants(
    model: nn.Module, batches: Iterable[Any], loss_fn: Callable[[Any, Any], Tensor]
) -> VarianceConstants:
    """Constants for which Assumption 2 is an equality at the current weights.

    One point fixes only the sum `M_k ‖∇_k f‖² + M`. `M = 0` is taken, with which `M_k` is Fig. 2's factor minus 1; it
    is infinite where the mean gradient vanishes and the samples' do not, and 0 where both vanish. With the moments of
    several points, `fit_variance_constants` tells the two apart.

    Args:
        model, batches, loss_fn: as in `hf_clars.gradient_variance`.

    Raises:
        UserError: as `gradient_moments`.
    """
    moments = gradient_moments(model, batches, loss_fn)
    return VarianceConstants({name: of_layer.least_factor for name, of_layer in moments.items()}, M=0.0)


def fit_variance_constants(
    variances: Sequence[Sequence[float]], gradient_squares: Sequence[Sequence[float]], largest_factor: float = math.inf
) -> tuple[list[float], float]:
    """The least constants with which Assumption 2 holds at every measured point: first M, then each `M_k`.

        M   = max_{k,t} (variance_{t,k} − c ‖∇_k f(w_t)‖²)⁺          the least M that any M_k ≤ c go with
        M_k = max_t     (variance_{t,k} − M)⁺ / ‖∇_k f(w_t)‖²        the least M_k with this M; at most c

    c trades one for the other, as a larger `M_k` always allows a smaller M. `c = B` is what Theorems 1 and 2 suggest:
    up to there `M_k` lowers no bound on a layer's learning rate. With `c = ∞`, all is put on `M_k` that can be, and M
    is above 0 only for points where a gradient vanishes. What was not measured may need larger constants.

    Args:
        variances: `E‖∇_k f_i − ∇_k f‖²` as `[points][layers]`; see `GradientMoments.variance`.
        gradient_squares: `‖∇_k f‖²`, same shape.
        largest_factor: c.

    Returns:
        `M_k` for each layer, and M.

    Raises:
        UserError: no point or no layer, shapes that differ, or an entry that is negative or not finite.
    """
    c = checks.factor("largest_factor", largest_factor)
    v, g = _table("variances", variances), _table("gradient_squares", gradient_squares)
    if [len(point) for point in v] != [len(point) for point in g] or len({len(point) for point in v}) != 1:
        raise UserError("variances and gradient_squares need one entry per layer at every point, as many in both")
    pairs = [list(zip(*point, strict=True)) for point in zip(v, g, strict=True)]  # [points][layers]
    M = max(max(0.0, a - c * b if b else a) for point in pairs for a, b in point)
    # Where M is v − c‖∇f‖², the quotient is c and what rounding made of it.
    M_k = [min(c, max((a - M) / b if a > M else 0.0 for a, b in layer)) for layer in zip(*pairs, strict=True)]
    return M_k, M


def _table(name: str, points: Sequence[Sequence[float]]) -> list[list[float]]:
    if not len(points):
        raise UserError(f"{name} has no point: measure at one at least")
    return [checks.per_layer(f"{name} at a point", point, checks.non_negative) for point in points]
