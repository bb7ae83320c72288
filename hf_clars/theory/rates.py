"""Corollaries 1 and 2: the learning rate that balances the terms of a bound, and what the bound then is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..validation import checks
from .constants import initial_drift, layer_coupling, nesterov_noise, ratio


@dataclass(frozen=True)
class Rate:
    """A corollary's choice of γ (no unit; `γ_k = γ / L_k`) and the bound that it gives (a squared gradient)."""

    gamma: float
    bound: float


def mgd_rate(
    *,
    f0_minus_finf: float,
    steps: int,
    L: Sequence[float],
    M: float,
    batch_size: int,
    L_g: float | None = None,
    kappa: float | None = None,
) -> Rate:
    """Corollary 1: `γ = min{1/8, √(BΔ/(TMS))}` and `64Δ/(TS) + (12 + 2κ) √(MΔ/(TBS))`.

    The constants follow from Theorem 1: `1/γ ≤ 8 + √(TMS/(BΔ))` gives 64 and 8, `γ ≤ √(BΔ/(TMS))` gives 4 + 2κ.

    The corollary supposes `B ≥ M_k` for all k and an admissible mean; check with
    `mgd_learning_rate_bounds(…).admits([rate.gamma / l for l in L])`.

    Args:
        f0_minus_finf, steps, L, M, batch_size, L_g, kappa: as in `mgd_convergence_bound`. `M = 0` gives `γ = 1/8`.

    Raises:
        UserError: as `mgd_convergence_bound`.
    """
    drift = initial_drift(f0_minus_finf, steps, L)
    noise = checks.non_negative("M", M) / checks.count("batch_size", batch_size)
    bound = 64 * drift + (12 + 2 * layer_coupling(L, L_g, kappa)) * math.sqrt(noise * drift)
    return Rate(gamma=min(1 / 8, math.sqrt(ratio(drift, noise))), bound=bound)


def mnag_rate(
    *,
    f0_minus_finf: float,
    steps: int,
    L: Sequence[float],
    M: float,
    batch_size: int,
    momentum: float,
    L_g: float | None = None,
    kappa: float | None = None,
) -> Rate:
    """Corollary 2, Eq. 7: `γ = min{(1−β)/8, √(BΔ/(TMS))}` and

        64Δ/((1−β)TS) + (8 + (4 + 2κ + 2κ/(1−β))/(1−β)) √(MΔ/(TBS)).

    Theorem 2 with this γ gives less: 64 instead of 64/(1−β) (at β = 0.9 a tenth) and 8(1−β) instead of 8, because its
    first term carries a factor 1−β that the corollary drops. The paper's larger, hence valid, constants are returned;
    `mnag_convergence_bound(gamma=rate.gamma, …)` is the tighter number. At β = 0 it is Corollary 1's with 12 + 4κ.

    Args:
        momentum: β.
        f0_minus_finf, steps, L, M, batch_size, L_g, kappa: as in `mgd_convergence_bound`. Admissibility: as `mgd_rate`.

    Raises:
        UserError: as `mnag_convergence_bound`.
    """
    drift, beta = initial_drift(f0_minus_finf, steps, L), checks.momentum(momentum)
    noise = checks.non_negative("M", M) / checks.count("batch_size", batch_size)
    constant = 8 + nesterov_noise(layer_coupling(L, L_g, kappa), beta)
    bound = 64 * drift / (1 - beta) + constant * math.sqrt(noise * drift)
    return Rate(gamma=min((1 - beta) / 8, math.sqrt(ratio(drift, noise))), bound=bound)
