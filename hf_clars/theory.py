"""Theorems 1-2 and Corollaries 1-3 of the paper as functions: floats in, floats out.

Symbols, used by every function here:

==================  ===============================================================================================
`L`                 `[L_1 … L_K]`, Lipschitz constant of `∇_k f` in the parameters of layer k alone (Assumption 1);
                    unit: loss / weight²
`L_g`               Lipschitz constant of the whole `∇f`; same unit
`κ`                 `max_k L_g / L_k`; no unit
`M_k`, `M`          `E‖∇_k f_i − ∇_k f‖² ≤ M_k ‖∇_k f‖² + M` (Assumption 2); `M_k` has no unit, `M` is a squared
                    gradient. Where `M = 0` fits, the least `M_k` is Fig. 2's factor (`gradient_variance`) minus 1
`M_g`               `max_k M_k`
`γ_k`, `γ`          layer k's learning rate `γ_k = γ / L_k` (unit: weight² / loss) and the number γ common to all
`B`, `T`, `β`       batch size (samples drawn independently), steps, momentum of Eq. 4
`Δ`                 `f(w_0) − f_inf`; unit: loss
`S`                 `Σ_k 1/L_k`
==================  ===============================================================================================

Both theorems bound `(1/T) Σ_t Σ_k q_k E‖∇_k f(w_t)‖²` for *constant* `γ_k`, with `q_k = (1/L_k) / S`.

What the functions return is what the paper states, its slips resolved where a docstring says so. One thing cannot be
resolved in a formula: **the stated learning-rate conditions do not suffice when layers are coupled**, because the one
on the mean leaves a few layers free to be large. Take `f = ½ (w_1 + … + w_17)² + (17/2) Σ_{k>17} w_k²` with 1000
scalar layers: `L_k` is 1 or 17, `L_g = 17`, no noise. `γ = 1/8` meets every condition of Theorem 1, yet each step
multiplies `w_1 + … + w_17` by `1 − 17/8`. What does suffice, by the descent lemma on `(w_t − β v_t) / (1 − β)`, is to
pass `L_g` for every `L_k` to the `…_learning_rate_bounds` functions and to hold the largest `γ_k`, not only the mean,
below `.mean`; the right-hand sides then hold as stated. Nothing changes where all `L_k = L_g` (Corollary 3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from . import checks
from .errors import UserError

_ROUNDING = 1e-12  # relative: `γ / L_k` and `1 / (8 L_k)` round differently


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
        slack = 1 + _ROUNDING
        each = all(rate <= bound * slack for rate, bound in zip(rates, self.per_layer, strict=True))
        return each and math.fsum(rates) / len(rates) <= self.mean * slack


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
        per_layer=[min(1.0, _ratio(batch, m)) / (8 * l_k) for l_k, m in zip(L, M, strict=True)],
        mean=min(1.0, math.sqrt(_ratio(batch, M_g))) / (2 * L_g),
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
    odds = _ratio(1 - beta, beta)
    return LearningRateBounds(
        per_layer=[(1 - beta) * min(1.0, _ratio(batch, m)) / (8 * l_k) for l_k, m in zip(L, M, strict=True)],
        mean=min(odds * odds, 1 - beta) * min(1.0, math.sqrt(_ratio(batch, M_g))) / (4 * L_g),
    )


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
    drift = _drift(f0_minus_finf, steps, L)
    gamma, noise = checks.positive("gamma", gamma), checks.non_negative("M", M) / checks.count("batch_size", batch_size)
    return 8 * drift / gamma + (4 + 2 * _kappa(L, L_g, kappa)) * noise * gamma


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
    drift, beta = _drift(f0_minus_finf, steps, L), checks.momentum(momentum)
    gamma, noise = checks.positive("gamma", gamma), checks.non_negative("M", M) / checks.count("batch_size", batch_size)
    return 8 * (1 - beta) * drift / gamma + _nesterov_noise(_kappa(L, L_g, kappa), beta) * noise * gamma


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
    drift = _drift(f0_minus_finf, steps, L)
    noise = checks.non_negative("M", M) / checks.count("batch_size", batch_size)
    bound = 64 * drift + (12 + 2 * _kappa(L, L_g, kappa)) * math.sqrt(noise * drift)
    return Rate(gamma=min(1 / 8, math.sqrt(_ratio(drift, noise))), bound=bound)


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
    drift, beta = _drift(f0_minus_finf, steps, L), checks.momentum(momentum)
    noise = checks.non_negative("M", M) / checks.count("batch_size", batch_size)
    constant = 8 + _nesterov_noise(_kappa(L, L_g, kappa), beta)
    bound = 64 * drift / (1 - beta) + constant * math.sqrt(noise * drift)
    return Rate(gamma=min((1 - beta) / 8, math.sqrt(_ratio(drift, noise))), bound=bound)


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
    return start + _nesterov_noise(1.0, beta) * noise * L_g * gamma_g


def _nesterov_noise(kappa: float, beta: float) -> float:
    """`(4 + 2κ + 2κ/(1−β)) / (1−β)`, Theorem 2's factor on `Mγ/B`."""
    return (4 + 2 * kappa + 2 * kappa / (1 - beta)) / (1 - beta)


def _drift(f0_minus_finf: float, steps: int, L: Sequence[float]) -> float:
    """`Δ / (T S)`, the part of both bounds that the starting point leaves."""
    inverse_sum = math.fsum(1 / value for value in checks.per_layer("L", L, checks.positive))
    return checks.non_negative("f0_minus_finf", f0_minus_finf) / (checks.count("steps", steps) * inverse_sum)


def _kappa(L: Sequence[float], L_g: float | None, kappa: float | None) -> float:
    least = checks.positive("L_g", L_g) / min(L) if L_g is not None else None
    if kappa is None:
        if least is None:
            raise UserError("the bound needs κ: pass L_g, or kappa (at least L_g / L_k for every layer)")
        return least
    if least is not None and kappa < least * (1 - _ROUNDING):
        raise UserError(f"kappa must be at least max L_g / L_k = {least:g}, got {kappa}; or leave it out")
    return checks.positive("kappa", kappa)


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


def _ratio(numerator: float, denominator: float) -> float:
    """The quotient, infinite over 0: a condition that falls away."""
    return numerator / denominator if denominator else math.inf
