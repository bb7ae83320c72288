"""The right-hand sides of Theorems 1 and 2 and of Corollary 3, and the weights of their left-hand sides."""

import math
from collections.abc import Sequence

from ..validation import checks
from .constants import initial_drift, layer_coupling, nesterov_noise


def convergence_weights(L: Sequence[float]) -> list[float]:
    """`q_k = (1/L_k) / Σ_j (1/L_j)`, the layers' weights in Theorems 1 and 2; no unit, they add up to 1.

    Raises:
        UserError: `L` is empty or has an entry that is not positive and finite.
    """
    inverses = [1 / value for value in checks.per_layer("L", L, checks.positive)]
    total = math.fsum(inverses)
    return [inverse / total for inverse in inverses]


def mgd_convergence_bound(
    *,
    f0_minus_finf: float,
    steps: int,
    gamma: float,
    L: Sequence[float],
    M: float,
    batch_size: int,
    L_g: float | None = None,
    kappa: float | None = None,
) -> float:
    """Theorem 1's right-hand side, a squared gradient: `8Δ/(TγS) + (4 + 2κ) Mγ/B`.

    Args:
        f0_minus_finf: Δ.
        steps: T.
        gamma: γ, so that `γ_k = γ / L_k`; admissible by `mgd_learning_rate_bounds`.
        L: `L_k`, one per layer.
        M: the additive variance constant of Assumption 2, one number for all layers.
        batch_size: B.
        L_g: for κ = `max_k L_g/L_k`.
        kappa: κ itself, if known; `L_g` is then not needed.

    Raises:
        UserError: a value out of range; neither `L_g` nor `kappa`; `kappa` below `max_k L_g/L_k`.
    """
    drift = initial_drift(f0_minus_finf, steps, L)
    gamma, noise = checks.positive("gamma", gamma), checks.non_negative("M", M) / checks.count("batch_size", batch_size)
    return 8 * drift / gamma + (4 + 2 * layer_coupling(L, L_g, kappa)) * noise * gamma


def mnag_convergence_bound(
    *,
    f0_minus_finf: float,
    steps: int,
    gamma: float,
    L: Sequence[float],
    M: float,
    batch_size: int,
    momentum: float,
    L_g: float | None = None,
    kappa: float | None = None,
) -> float:
    """Theorem 2's right-hand side, a squared gradient: `8(1−β)Δ/(TγS) + Mγ/((1−β)B) · (4 + 2κ + 2κ/(1−β))`.

    At β = 0 this is Theorem 1's plus `2κMγ/B`: the noise constant is 4 + 4κ instead of 4 + 2κ, the other term is equal.

    Args:
        gamma: γ, admissible by `mnag_learning_rate_bounds`.
        momentum: β.
        f0_minus_finf, steps, L, M, batch_size, L_g, kappa: as in `mgd_convergence_bound`.

    Raises:
        UserError: as `mgd_convergence_bound`; `momentum` outside [0, 1).
    """
    drift, beta = initial_drift(f0_minus_finf, steps, L), checks.momentum(momentum)
    gamma, noise = checks.positive("gamma", gamma), checks.non_negative("M", M) / checks.count("batch_size", batch_size)
    return 8 * (1 - beta) * drift / gamma + nesterov_noise(layer_coupling(L, L_g, kappa), beta) * noise * gamma


def mnag_uniform_convergence_bound(
    *, f0_minus_finf: float, steps: int, gamma_g: float, L_g: float, M_C: float, batch_size: int, momentum: float
) -> float:
    """Corollary 3, Eq. 8: bounds `(1/T) Σ_t E‖∇f(w_t)‖²` (not divided by K) where `L_k = L_g` and `M_k = M_g`.

        8(1−β)Δ/(Tγ_g) + M_C L_g γ_g/((1−β)B) · (6 + 2/(1−β))

    This is K times Theorem 2 with `κ = 1`, `S = K/L_g`, `γ = L_g γ_g` and `q_k = 1/K`: K cancels in the first term and
    makes `K M = M_C` in the second. The derivation settles three slips in the paper's print: "1−η" is `1−β`; the noise
    term lacks its `1/B`; and the last learning-rate condition, "(1−β)/(4β²L_g)", is `(1−β)²/(4β²L_g)`, as in
    Theorem 2 (at β = 0.9 and `M_g ≤ B` it is the one that binds). The largest `γ_g` is `min(b.per_layer[0], b.mean)` of
    `b = mnag_learning_rate_bounds([L_g], [M_g], …)`.

    Args:
        f0_minus_finf, steps, batch_size, momentum: Δ, T, B, β.
        gamma_g: `γ_g`, the learning rate of every layer (unit: weight² / loss).
        L_g: every layer's and the whole gradient's Lipschitz constant.
        M_C: `K M`, the additive variance constant of the whole gradient.

    Raises:
        UserError: a value out of range.
    """
    beta, L_g, gamma_g = checks.momentum(momentum), checks.positive("L_g", L_g), checks.positive("gamma_g", gamma_g)
    distance = checks.non_negative("f0_minus_finf", f0_minus_finf)
    start = 8 * (1 - beta) * distance / (checks.count("steps", steps) * gamma_g)
    noise = checks.non_negative("M_C", M_C) / checks.count("batch_size", batch_size)
    return start + nesterov_noise(1.0, beta) * noise * L_g * gamma_g
