"""Theorems 1-2 and Corollaries 1-3 of the paper as functions, and estimators of the constants in them.

The theorems' functions take and return floats. `lipschitz_constants`, `global_lipschitz_constant`,
`variance_constants` and `fit_variance_constants` measure a model's constants at its weights; `layer_rates` sets the
learning rates that follow next to those of LARS and CLARS, and `hf-clars rates` prints them.

Symbols, used by every function here:

- `L`: `[L_1 … L_K]`, Lipschitz constant of `∇_k f` in the parameters of layer k alone (Assumption 1); unit: loss /
  weight²
- `L_g`: Lipschitz constant of the whole `∇f`; same unit
- `κ`: `max_k L_g / L_k`; no unit
- `M_k`, `M`: `E‖∇_k f_i − ∇_k f‖² ≤ M_k ‖∇_k f‖² + M` (Assumption 2); `M_k` has no unit, `M` is a squared gradient.
  Where `M = 0` fits, the least `M_k` is Fig. 2's factor (`gradient_variance`) minus 1
- `M_g`: `max_k M_k`
- `γ_k`, `γ`: layer k's learning rate `γ_k = γ / L_k` (unit: weight² / loss) and the number γ common to all
- `B`, `T`, `β`: batch size (samples drawn independently), steps, momentum of Eq. 4
- `Δ`: `f(w_0) − f_inf`; unit: loss
- `S`: `Σ_k 1/L_k`

Both theorems bound `(1/T) Σ_t Σ_k q_k E‖∇_k f(w_t)‖²` for *constant* `γ_k`, with `q_k = (1/L_k) / S`.

What the functions return is what the paper states, its slips resolved where a docstring says so. One thing cannot be
resolved in a formula: **the stated learning-rate conditions do not suffice when layers are coupled**, because the one
on the mean leaves a few layers free to be large. Take `f = ½ (w_1 + … + w_17)² + (17/2) Σ_{k>17} w_k²` with 1000
scalar layers: `L_k` is 1 or 17, `L_g = 17`, no noise. `γ = 1/8` meets every condition of Theorem 1, yet each step
multiplies `w_1 + … + w_17` by `1 − 17/8`. What does suffice, by the descent lemma on `(w_t − β v_t) / (1 − β)`, is to
pass `L_g` for every `L_k` to the `…_learning_rate_bounds` functions and to hold the largest `γ_k`, not only the mean,
below `.mean`; the right-hand sides then hold as stated. Nothing changes where all `L_k = L_g` (Corollary 3).

Slips of the paper and what is taken:

- `M_k` is printed upside down where the 512-sample estimate is introduced. Taken: Fig. 2's `E‖∇_k f_i‖² / ‖∇_k f‖²`,
  which grows with the noise as the bounds on `γ_k` need (`formulas.gradient_variance_factor`).
- Fig. 2's ratio and Assumption 2's `M_k` bear one name, though the least `M_k` (with `M = 0`) is the ratio minus 1.
  Taken: the ratio in `gradient_variance`, the assumption's in this package.
- Algorithm 1 averages *squared* per-sample norms, over "∇_k ∇f_i"; Eq. 5 averages the norms of `∇_k f_i`. Taken: Eq. 5.
  It is LARS's rate when all samples agree, as the text says, and its steps do not change with the loss's scale.
- Fig. 3's caption has `B = 4096`, its text `B = 8192`. Taken: the text, which gives the whole setting.
- Corollary 3 lacks `1/B` in its noise term and the square of one `1−β`, and writes η for β once
  (`mnag_uniform_convergence_bound`).
- Corollary 2's first term is `1/(1−β)` larger than Theorem 2 allows; kept, as it is valid (`mnag_rate`).
- Theorem 2's weights have `L_K` for `L_k` in the sum, and its bound sums layers from `t = 0`. Taken: Theorem 1's form.
- "B can be scaled up as long as B ≤ M_k" is the condition's reach: from `B = M_k` on, `1/(8 L_k)` binds and the bound
  no longer grows.
- The theorems' learning-rate conditions do not suffice: the paragraph above.
"""

from typing import TYPE_CHECKING

from ..runtime.lazy import lazily

if TYPE_CHECKING:
    from .bounds import (
        Problem,
        Rate,
        convergence_weights,
        mgd_convergence_bound,
        mgd_rate,
        mnag_convergence_bound,
        mnag_rate,
        mnag_uniform_convergence_bound,
    )
    from .curvature import global_lipschitz_constant, lipschitz_constants
    from .estimation import (
        GradientMoments,
        VarianceConstants,
        fit_variance_constants,
        gradient_moments,
        variance_constants,
    )
    from .learning_rates import LearningRateBounds, mgd_learning_rate_bounds, mnag_learning_rate_bounds
    from .rates_table import LayerRates, format_table, layer_rates

__all__ = [
    "GradientMoments",
    "LayerRates",
    "LearningRateBounds",
    "Problem",
    "Rate",
    "VarianceConstants",
    "convergence_weights",
    "fit_variance_constants",
    "format_table",
    "global_lipschitz_constant",
    "gradient_moments",
    "layer_rates",
    "lipschitz_constants",
    "mgd_convergence_bound",
    "mgd_learning_rate_bounds",
    "mgd_rate",
    "mnag_convergence_bound",
    "mnag_learning_rate_bounds",
    "mnag_rate",
    "mnag_uniform_convergence_bound",
    "variance_constants",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "Problem": ".bounds",
        "Rate": ".bounds",
        "convergence_weights": ".bounds",
        "mgd_convergence_bound": ".bounds",
        "mgd_rate": ".bounds",
        "mnag_convergence_bound": ".bounds",
        "mnag_rate": ".bounds",
        "mnag_uniform_convergence_bound": ".bounds",
        "global_lipschitz_constant": ".curvature",
        "lipschitz_constants": ".curvature",
        "GradientMoments": ".estimation",
        "VarianceConstants": ".estimation",
        "fit_variance_constants": ".estimation",
        "gradient_moments": ".estimation",
        "variance_constants": ".estimation",
        "LearningRateBounds": ".learning_rates",
        "mgd_learning_rate_bounds": ".learning_rates",
        "mnag_learning_rate_bounds": ".learning_rates",
        "LayerRates": ".rates_table",
        "format_table": ".rates_table",
        "layer_rates": ".rates_table",
    },
)
