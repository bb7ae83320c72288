"""Quantities that several of the bounds are made of; the symbols are those of the package's docstring."""

import math
from collections.abc import Sequence

from ..errors import UserError
from ..validation import checks

ROUNDING = 1e-12  # relative: `γ / L_k` and `1 / (8 L_k)` round differently


def nesterov_noise(kappa: float, beta: float) -> float:
    """`(4 + 2κ + 2κ/(1−β)) / (1−β)`, Theorem 2's factor on `Mγ/B`."""
    return (4 + 2 * kappa + 2 * kappa / (1 - beta)) / (1 - beta)


def initial_drift(f0_minus_finf: float, steps: int, L: Sequence[float]) -> float:
    """`Δ / (T S)`, the part of both bounds that the starting point leaves."""
    inverse_sum = math.fsum(1 / value for value in checks.per_layer("L", L, checks.positive))
    return checks.non_negative("f0_minus_finf", f0_minus_finf) / (checks.count("steps", steps) * inverse_sum)


def layer_coupling(L: Sequence[float], L_g: float | None, kappa: float | None) -> float:
    """`κ = max_k L_g / L_k`, or `kappa` where it is given and not below that."""
    least = checks.positive("L_g", L_g) / min(L) if L_g is not None else None
    if kappa is None:
        if least is None:
            raise UserError("the bound needs κ: pass L_g, or kappa (at least L_g / L_k for every layer)")
        return least
    if least is not None and kappa < least * (1 - ROUNDING):
        raise UserError(f"kappa must be at least max L_g / L_k = {least:g}, got {kappa}; or leave it out")
    return checks.positive("kappa", kappa)


def ratio(numerator: float, denominator: float) -> float:
    """The quotient, infinite over 0: a condition that falls away."""
    return numerator / denominator if denominator else math.inf
