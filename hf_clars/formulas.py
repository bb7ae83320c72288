"""Equations 2-5 and Fig. 2's M_k of the paper as pure functions on tensors.

Symbols, used by every function here:

- `c_i`: sample i's contribution to `weight.grad`: d(batch loss) / d(its own copy of the weight)
- `Σ c_i`: the gradient itself, `g`
- `D`: the denominator of the learning rate: `‖g‖` for LARS (Eq. 3), `Σ_i ‖c_i‖` for CLARS (Eq. 5)
- `γ_scale`: the optimizer's `lr`; `γ_k` the learning rate of layer k that follows from it
- `β`: momentum
- `u`: `v_{t+1} − v_t`, the displacement of Eq. 4's momentum vector; the optimizers' only state
"""

import torch
from torch import Tensor


def trust_ratio(weight_norm: Tensor, denominator: Tensor) -> Tensor:
    """`‖w_k‖ / D_k`, and 1 where either is zero.

    A weight of norm zero (zero-initialised) has no scale to adapt to and would never move; a denominator of zero
    comes with a gradient of zero. Both take the ratio 1, the convention of LARS and LAMB implementations. What is not
    finite stays so: it must show.

    Args:
        weight_norm: `‖w_k‖₂`, shape `[K]`.
        denominator: `D_k`, shape `[K]`, in the units of `weight.grad`.
    """
    zero = (weight_norm == 0) | (denominator == 0)
    return torch.where(zero, torch.ones_like(weight_norm), weight_norm / denominator)


def layer_learning_rates(gamma_scale: float | Tensor, eta: float, weight_norm: Tensor, denominator: Tensor) -> Tensor:
    """`γ_k = γ_scale · η · ‖w_k‖ / D_k`, shape `[K]`: Eq. 3 with `D = ‖g‖`, Eq. 5 with `D = Σ_i ‖c_i‖`."""
    return trust_ratio(weight_norm, denominator) * (gamma_scale * eta)


def capped_layer_learning_rates(
    gamma_scale: float | Tensor, eta: float, weight_norm: Tensor, denominator: Tensor, cap: float
) -> Tensor:
    """`γ_k = γ_scale · min(cap, η · ‖w_k‖ / D_k)`, shape `[K]`, as in the code that the paper's authors released."""
    return (trust_ratio(weight_norm, denominator) * eta).clamp(max=cap) * gamma_scale


LARS_ETA = 1e-3  # You et al. (2017)


def stand_in_denominators(gradient_norm: Tensor, denominator: Tensor, eta: float | Tensor) -> Tensor:
    """Denominators for layers of which `Σ_i ‖c_i‖` is not measured, in the units of those that are.

    `‖g‖ / Σ_i ‖c_i‖` tells how far samples agree: 1 where all do, and about `1/√B` where none does. An unmeasured layer
    is taken to be like the median of the others,

        D_k = ‖g_k‖ / median_m (‖g_m‖ / D_m)        over measured layers m

    A common factor of all gradients (clipping, a loss scale) cancels, so D_k is what it was before, as every D_m is.
    Where no layer is measured, `D_k = ‖g_k‖ · η / 1e-3`, with which Eq. 5 is Eq. 3 with LARS's own η, 1e-3 of You et
    al. (2017). Layers whose ratio is zero or not finite tell nothing and are left out of the median.

    Args:
        gradient_norm: `‖g_k‖`, shape `[K]`.
        denominator: `D_k = Σ_i ‖c_i‖`, shape `[K]`; NaN where it is not measured.
        eta: η of Eq. 5; a tensor of shape `[K]` where it differs.

    Returns:
        `D_k`, shape `[K]`: `denominator` where it is a number, the stand-in where it is NaN.
    """
    ratios = gradient_norm / denominator
    median = torch.nanquantile(torch.where((ratios > 0) & ratios.isfinite(), ratios, torch.nan), 0.5)
    stand_in = torch.where(median.isnan(), gradient_norm * (eta / LARS_ETA), gradient_norm / median)
    return torch.where(denominator.isnan(), stand_in, denominator)


def nesterov_update_(
    weight: Tensor,
    gradient: Tensor,
    displacement: Tensor | None,
    gamma: Tensor,
    momentum: float,
    weight_decay: float = 0.0,
) -> None:
    """Eq. 4, in place, for one layer.

    The paper's `v_{t+1} = w_t − γ_k g`, `w_{t+1} = v_{t+1} + β (v_{t+1} − v_t)` is, with `u_{t+1} = v_{t+1} − v_t`
    and the move `m = −γ_k (g + λ w)` of a weight that is decayed by λ,

        u ← m + β u
        w ← w + m + β u

    so the learning rate is inside the momentum: a later change of `γ_k` does not rescale what is already under way.
    With a constant `γ_k` this is `torch.optim.SGD(nesterov=True)`.

    Args:
        weight, gradient, displacement: `w`, `g` and `u`, same shape, device and dtype; at β = 0 `u` may be None.
        gamma: `γ_k`, 0-dim. It multiplies as a scalar, at its own precision whatever the dtype of the layer.
        momentum: β.
        weight_decay: λ.
    """
    # torch has no a + αbc that keeps γ's precision in half-precision layers (addcmul rounds it), hence m on its own.
    move = torch.add(gradient, weight, alpha=weight_decay).mul_(-gamma) if weight_decay else gradient * -gamma
    weight.add_(move)
    if displacement is not None and momentum:
        torch.add(move, displacement, alpha=momentum, out=displacement)
        weight.add_(displacement, alpha=momentum)


def nesterov_update_foreach_(
    weights: list[Tensor],
    gradients: list[Tensor],
    displacements: list[Tensor],
    gammas: list[Tensor],
    momentum: float,
    weight_decay: float = 0.0,
) -> None:
    """`nesterov_update_` of many layers, each operation for all of them in one call; at β = 0 `u` may be empty."""
    rates = torch._foreach_neg(gammas)
    if weight_decay:
        moves = torch._foreach_add(gradients, weights, alpha=weight_decay)
        torch._foreach_mul_(moves, rates)
    else:
        moves = torch._foreach_mul(gradients, rates)
    torch._foreach_add_(weights, moves)
    if momentum:
        torch._foreach_mul_(displacements, momentum)
        torch._foreach_add_(displacements, moves)
        torch._foreach_add_(weights, displacements, alpha=momentum)


def heavy_ball_update_foreach_(
    weights: list[Tensor],
    gradients: list[Tensor],
    buffers: list[Tensor],
    gammas: list[Tensor],
    momentum: float,
    weight_decay: float = 0.0,
) -> None:
    """Heavy-ball momentum with the learning rate outside, in place, as in the code that the paper's authors released.

        b ← β b + (g + λ w)
        w ← w − γ_k b

    Unlike in Eq. 4, a change of `γ_k` rescales what is already under way. The first step, from `b = 0`, has
    `b = g + λ w`.

    Args:
        weights, gradients, buffers: `w`, `g` and `b` of each layer; at β = 0 `buffers` may be empty.
        gammas: `γ_k` of each, 0-dim, at their own precision.
        momentum: β.
        weight_decay: λ.
    """
    pulls = torch._foreach_add(gradients, weights, alpha=weight_decay) if weight_decay else gradients
    if momentum:
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, pulls)
        pulls = buffers
    torch._foreach_add_(weights, torch._foreach_mul(pulls, torch._foreach_neg(gammas)))


def gradient_variance_factor(square_sum: Tensor, gradient_norm: Tensor, samples: int | Tensor) -> Tensor:
    """Fig. 2's `M_k = ((1/n) Σ_i ‖∇_k f_i‖²) / ‖(1/n) Σ_i ∇_k f_i‖²`, from contributions.

    With `c_i = ∇_k f_i / n` this is `n · Σ_i ‖c_i‖² / ‖Σ_i c_i‖²`: at least 1, and 1 when all samples agree.
    The page of the paper that introduces the 512-sample estimate prints the inverse of this ratio; Fig. 2 and the
    bound `γ_k ≤ B / (8 L_k M_k)` need the form used here.

    Args:
        square_sum: `Σ_i ‖c_i‖²`, shape `[K]`.
        gradient_norm: `‖Σ_i c_i‖`, shape `[K]`.
        samples: n.
    """
    return samples * square_sum / gradient_norm.square()


def gradient_and_noise(
    small_square: Tensor, small: int, big_square: Tensor, big: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Unbiased estimates of `|G|²` and `tr Σ` from gradients of two batch sizes.

    `G` is the true gradient and `Σ` the covariance of one sample's gradient. A mean over b samples has
    `E‖g_b‖² = |G|² + tr Σ / b`; two values of b give two equations:

        |G|² ≈ (big · ‖g_big‖² − small · ‖g_small‖²) / (big − small)
        tr Σ ≈ (‖g_small‖² − ‖g_big‖²) / (1/small − 1/big)

    With per-sample norms `small = 1` and `‖g_small‖² = n Σ_i ‖c_i‖²` (`c_i = ∇f_i / n`); then `tr Σ` is the sample
    variance. Both are unbiased for independent samples of equal weight, and the first may come out negative.

    Source: McCandlish, Kaplan, Amodei et al., An Empirical Model of Large-Batch Training (2018), appendix A.1.

    Args:
        small_square: mean of `‖g_small‖²` over the gradients of the small batches, in squared units of the gradient.
        small: their batch size.
        big_square: `‖g_big‖²`, same shape and units.
        big: its batch size, larger than `small`; where it is not, the estimates are not finite.

    Returns:
        `|G|²` and `tr Σ`, both in squared units of the gradient.
    """
    difference = torch.as_tensor(big, dtype=small_square.dtype, device=small_square.device) - small
    gradient = (big * big_square - small * small_square) / difference
    noise = (small_square - big_square) * (small * big) / difference
    return gradient, noise


def noise_scale(gradient_square: Tensor, noise_trace: Tensor) -> Tensor:
    """The simple noise scale `tr Σ / |G|²`, in samples: the batch size at which noise and gradient are equally long.

    Also an estimate of the critical batch size, up to which a larger batch saves proportionally many steps. Where the
    estimate of `|G|²` is not positive, the gradient drowns in the noise and no batch size can be told: infinite.
    A `tr Σ` that rounding made negative counts as 0. The ratio of two noisy estimates is biased: average `|G|²` and
    `tr Σ` over steps, each by itself, and take the ratio of the averages.

    Source: McCandlish et al. 2018, Eq. 2.9 and appendix A.1.

    Args:
        gradient_square: `|G|²` of a layer, or its sum over layers for the model.
        noise_trace: `tr Σ`, likewise; same shape.
    """
    ratio = noise_trace.clamp_min(0) / gradient_square
    return torch.where(gradient_square <= 0, torch.inf, ratio)


def adascale_gain(gradient_square: Tensor, variance: Tensor, scale: float | Tensor) -> Tensor:
    """`r = (σ² + μ²) / (σ²/S + μ²)`: how many steps of a small batch one of S such batches is worth, from 1 to S.

    An estimate of μ² that is negative counts as 0: the gradient drowns in the noise, and r is S. Without a gradient and
    without noise r is 1.

    Source: Johnson et al., AdaScale SGD (2020), section 3.

    Args:
        gradient_square: μ², squared norm of the true gradient.
        variance: σ², variance of the gradient of a small batch; same units.
        scale: S.
    """
    square, noise = gradient_square.clamp_min(0), variance.clamp_min(0)
    rest = noise / scale + square
    return torch.where(rest == 0, 1.0, (noise + square) / rest)
