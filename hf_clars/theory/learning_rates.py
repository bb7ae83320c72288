"""The conditions of Theorems 1 and 2 on the learning rates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError
from ..validation import checks
from .bounds import ROUNDING, ratio


@dataclass(frozen=True)
class LearningRateBounds:
    """The conditions of Theorem 1 or 2, in the unit of `γ_k`.

    Attributes:
        per_layer: upper bound on each `γ_k`.
        mean: upper bound on `(1/K) Σ_k γ_k`.
    """

    per_layer: list[float]
    mean: float

    def admits(self, gammas: Sequence[float]) -> bool:
        """Whether every `γ_k` and their mean are within the bounds (equality included, up to rounding).

        The theorems also want `γ_k = γ / L_k` with one γ; that is not checked here.

        Raises:
            UserError: not one positive learning rate per layer.
        """
        rates = checks.per_layer("gammas", gammas, checks.positive)
        if len(rates) != len(self.per_layer):
            raise UserError(f"gammas needs one learning rate per layer, {len(self.per_layer)}; it has {len(rates)}")
        slack = 1 + ROUNDING
        each = all(rate <= bound * slack for rate, bound in zip(rates, self.per_layer, strict=True))
        return each and math.fsum(rates) / len(rates) <= self.mean * slack


def mgd_learning_rate_bounds(
    L: Sequence[float], M: Sequence[float], L_g: float, batch_size: int, M_g: float | None = None
) -> LearningRateBounds:
    """Theorem 1's conditions on the learning rates of mini-batch gradient descent (β = 0).

        γ_k           ≤ min{ 1/(8 L_k),  B/(8 L_k M_k) }
        (1/K) Σ_k γ_k ≤ min{ 1/(2 L_g),  √(B/M_g)/(2 L_g) }

    A term with `M_k = 0` (or `M_g = 0`) is infinite. See the module's docstring for when the conditions suffice.

    Args:
        L: `L_k`, one per layer.
        M: `M_k`, one per layer (not the scalar M of the convergence bounds). It is large for a noisy layer, as Fig. 2's
            ratio is; "Comparison with Related Methods" prints the inverse ratio, which would turn the bound around.
        L_g: Lipschitz constant of the whole gradient.
        batch_size: B.
        M_g: at least every `M_k`; their maximum if not given.

    Raises:
        UserError: an `L` that is not positive, a negative `M`, different lengths, `batch_size` below 1, `M_g < max M`.
    """
    L, M, M_g = _layer_constants(L, M, M_g)
    L_g, batch = checks.positive("L_g", L_g), checks.count("batch_size", batch_size)
    return LearningRateBounds(
        per_layer=[min(1.0, ratio(batch, m)) / (8 * l_k) for l_k, m in zip(L, M, strict=True)],
        mean=min(1.0, math.sqrt(ratio(batch, M_g))) / (2 * L_g),
    )


def mnag_learning_rate_bounds(
    L: Sequence[float],
    M: Sequence[float],
    L_g: float,
    batch_size: int,
    M_g: float | None = None,
    *,
    momentum: float,
) -> LearningRateBounds:
    """Theorem 2's conditions on the learning rates of mini-batch Nesterov's method.

        γ_k           ≤ min{ (1−β)/(8 L_k),  (1−β) B/(8 L_k M_k) }
        (1/K) Σ_k γ_k ≤ min{ (1−β)²/(4β² L_g),  (1−β)² √(B/M_g)/(4β² L_g),  (1−β) √(B/M_g)/(4 L_g),  (1−β)/(4 L_g) }

    Terms over β² are infinite at β = 0, terms over `M_k` at `M_k = 0`. At β = 0 the per-layer bounds are Theorem 1's,
    the bound on the mean is half of Theorem 1's.

    Args:
        L, M, L_g, batch_size, M_g: as in `mgd_learning_rate_bounds`.
        momentum: β.

    Raises:
        UserError: as `mgd_learning_rate_bounds`; `momentum` outside [0, 1).
    """
    L, M, M_g = _layer_constants(L, M, M_g)
    L_g, batch, beta = checks.positive("L_g", L_g), checks.count("batch_size", batch_size), checks.momentum(momentum)
    odds = ratio(1 - beta, beta)
    return LearningRateBounds(
        per_layer=[(1 - beta) * min(1.0, ratio(batch, m)) / (8 * l_k) for l_k, m in zip(L, M, strict=True)],
        mean=min(odds * odds, 1 - beta) * min(1.0, math.sqrt(ratio(batch, M_g))) / (4 * L_g),
    )


def _layer_constants(
    L: Sequence[float], M: Sequence[float], M_g: float | None
) -> tuple[list[float], list[float], float]:
    lipschitz, factors = checks.per_layer("L", L, checks.positive), checks.per_layer("M", M, checks.factor)
    if len(lipschitz) != len(factors):
        raise UserError(f"L and M need one entry per layer each; they have {len(lipschitz)} and {len(factors)}")
    largest = max(factors)
    if M_g is None:
        return lipschitz, factors, largest
    if not M_g >= largest:
        raise UserError(f"M_g must be at least max(M) = {largest:g}, got {M_g}; or leave it out")
    return lipschitz, factors, float(M_g)
