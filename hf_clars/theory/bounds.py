"""The right-hand sides of Theorems 1 and 2 and of Corollary 3, and the learning rates of Corollaries 1 and 2.

The symbols are those of the package's docstring. What all bounds depend on is given by keyword, see `Problem`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict, Unpack

from ..errors import UserError
from ..validation import checks

ROUNDING = 1e-12  # relative: `γ / L_k` and `1 / (8 L_k)` round differently


class Problem(TypedDict):
    """What the bounds are about; a value out of range is a `UserError`.

    Attributes:
        f0_minus_finf: Δ.
        steps: T.
        L: `L_k`, one per layer.
        M: the additive variance constant of Assumption 2, one number for all layers.
        batch_size: B.
        L_g: for κ = `max_k L_g/L_k`.
        kappa: κ itself, if known and not below that; `L_g` is then not needed.
    """

    f0_minus_finf: float
    steps: int
    L: Sequence[float]
    M: float
    batch_size: int
    L_g: NotRequired[float | None]
    kappa: NotRequired[float | None]


@dataclass(frozen=True)
class Rate:
    """A corollary's choice of γ (no unit; `γ_k = γ / L_k`) and the bound that it gives (a squared gradient)."""

    gamma: float
    bound: float


def convergence_weights(L: Sequence[float]) -> list[float]:
    """`q_k = (1/L_k) / Σ_j (1/L_j)`, the layers' weights in Theorems 1 and 2; no unit, they add up to 1.

    Raises:
        UserError: `L` is empty or has an entry that is not positive and finite.
    """
    inverses = [1 / value for value in checks.per_layer("L", L, checks.positive)]
    total = math.fsum(inverses)
    return [inverse / total for inverse in inverses]


def mgd_convergence_bound(*, gamma: float, **problem: Unpack[Problem]) -> float:
    """Theorem 1's right-hand side, a squared gradient: `8Δ/(TγS) + (4 + 2κ) Mγ/B`.

    Args:
        gamma: γ, so that `γ_k = γ / L_k`; admissible by `mgd_learning_rate_bounds`.
        problem: see `Problem`.
    """
    drift, noise, kappa = _parts(**problem)
    gamma = checks.positive("gamma", gamma)
    return 8 * drift / gamma + (4 + 2 * kappa) * noise * gamma


def mnag_convergence_bound(*, gamma: float, momentum: float, **problem: Unpack[Problem]) -> float:
    """Theorem 2's right-hand side, a squared gradient: `8(1−β)Δ/(TγS) + Mγ/((1−β)B) · (4 + 2κ + 2κ/(1−β))`.

    At β = 0 this is Theorem 1's plus `2κMγ/B`: the noise constant is 4 + 4κ instead of 4 + 2κ, the other term is equal.

    Args:
        gamma: γ, admissible by `mnag_learning_rate_bounds`.
        momentum: β, in [0, 1).
        problem: see `Problem`.
    """
    (drift, noise, kappa), beta = _parts(**problem), checks.momentum(momentum)
    gamma = checks.positive("gamma", gamma)
    return 8 * (1 - beta) * drift / gamma + _nesterov_noise(kappa, beta) * noise * gamma


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
    L_g, M_C = checks.positive("L_g", L_g), checks.non_negative("M_C", M_C)  # in the words of this function
    gamma = L_g * checks.positive("gamma_g", gamma_g)
    problem: Problem = {
        "f0_minus_finf": f0_minus_finf,
        "steps": steps,
        "L": [L_g],
        "M": M_C,
        "batch_size": batch_size,
        "kappa": 1.0,
    }
    return mnag_convergence_bound(gamma=gamma, momentum=momentum, **problem)


def mgd_rate(**problem: Unpack[Problem]) -> Rate:
    """Corollary 1: `γ = min{1/8, √(BΔ/(TMS))}` and `64Δ/(TS) + (12 + 2κ) √(MΔ/(TBS))`.

    The constants follow from Theorem 1: `1/γ ≤ 8 + √(TMS/(BΔ))` gives 64 and 8, `γ ≤ √(BΔ/(TMS))` gives 4 + 2κ.
    `M = 0` gives `γ = 1/8`.

    The corollary supposes `B ≥ M_k` for all k and an admissible mean; check with
    `mgd_learning_rate_bounds(…).admits([rate.gamma / l for l in L])`.
    """
    drift, noise, kappa = _parts(**problem)
    bound = 64 * drift + (12 + 2 * kappa) * math.sqrt(noise * drift)
    return Rate(gamma=min(1 / 8, math.sqrt(ratio(drift, noise))), bound=bound)


def mnag_rate(*, momentum: float, **problem: Unpack[Problem]) -> Rate:
    """Corollary 2, Eq. 7: `γ = min{(1−β)/8, √(BΔ/(TMS))}` and

        64Δ/((1−β)TS) + (8 + (4 + 2κ + 2κ/(1−β))/(1−β)) √(MΔ/(TBS)).

    Theorem 2 with this γ gives less: 64 instead of 64/(1−β) (at β = 0.9 a tenth) and 8(1−β) instead of 8, because its
    first term carries a factor 1−β that the corollary drops. The paper's larger, hence valid, constants are returned;
    `mnag_convergence_bound(gamma=rate.gamma, …)` is the tighter number. At β = 0 it is Corollary 1's with 12 + 4κ.
    What it supposes is as in `mgd_rate`.
    """
    (drift, noise, kappa), beta = _parts(**problem), checks.momentum(momentum)
    bound = 64 * drift / (1 - beta) + (8 + _nesterov_noise(kappa, beta)) * math.sqrt(noise * drift)
    return Rate(gamma=min((1 - beta) / 8, math.sqrt(ratio(drift, noise))), bound=bound)


def ratio(numerator: float, denominator: float) -> float:
    """The quotient, infinite over 0: a condition that falls away."""
    return numerator / denominator if denominator else math.inf


def _nesterov_noise(kappa: float, beta: float) -> float:
    """`(4 + 2κ + 2κ/(1−β)) / (1−β)`, Theorem 2's factor on `Mγ/B`."""
    return (4 + 2 * kappa + 2 * kappa / (1 - beta)) / (1 - beta)


def _parts(
    *,
    f0_minus_finf: float,
    steps: int,
    L: Sequence[float],
    M: float,
    batch_size: int,
    L_g: float | None = None,
    kappa: float | None = None,
) -> tuple[float, float, float]:
    """`Δ / (T S)`, `M / B` and κ, which the bounds are made of."""
    inverse_sum = math.fsum(1 / value for value in checks.per_layer("L", L, checks.positive))
    drift = checks.non_negative("f0_minus_finf", f0_minus_finf) / (checks.count("steps", steps) * inverse_sum)
    noise = checks.non_negative("M", M) / checks.count("batch_size", batch_size)
    least = checks.positive("L_g", L_g) / min(L) if L_g is not None else None
    if kappa is None:
        kappa = least
    if kappa is None:
        raise UserError("the bound needs κ: pass L_g, or kappa (at least L_g / L_k for every layer)")
    if least is not None and kappa < least * (1 - ROUNDING):
        raise UserError(f"kappa must be at least max L_g / L_k = {least:g}, got {kappa}; or leave it out")
    return drift, noise, checks.positive("kappa", kappa)
