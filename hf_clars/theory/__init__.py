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

from .convergence import (
    convergence_weights,
    mgd_convergence_bound,
    mnag_convergence_bound,
    mnag_uniform_convergence_bound,
)
from .learning_rates import LearningRateBounds, mgd_learning_rate_bounds, mnag_learning_rate_bounds
from .rates import Rate, mgd_rate, mnag_rate

__all__ = [
    "LearningRateBounds",
    "Rate",
    "convergence_weights",
    "mgd_convergence_bound",
    "mgd_learning_rate_bounds",
    "mgd_rate",
    "mnag_convergence_bound",
    "mnag_learning_rate_bounds",
    "mnag_rate",
    "mnag_uniform_convergence_bound",
]
