"""Equations 2-5 and Fig. 2's M_k of the paper as pure functions on tensors.

Symbols, used by every function here:

=============  ====================================================================================
`c_i`          sample i's contribution to `weight.grad`: d(batch loss) / d(its own copy of the weight)
`Σ c_i`        the gradient itself, `g`
`D`            the denominator of the learning rate: `‖g‖` for LARS (Eq. 3), `Σ_i ‖c_i‖` for CLARS (Eq. 5)
`γ_scale`      the optimizer's `lr`; `γ_k` the learning rate of layer k that follows from it
`β`            momentum
`u`            `v_{t+1} − v_t`, the displacement of Eq. 4's momentum vector; the optimizers' only state
=============  ====================================================================================
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


def nesterov_update_(
    weights: list[Tensor],
    gradients: list[Tensor],
    displacements: list[Tensor],
    gammas: list[Tensor],
    momentum: float,
) -> None:
    """Eq. 4, in place, for all layers at once.

    The paper's `v_{t+1} = w_t − γ_k g`, `w_{t+1} = v_{t+1} + β (v_{t+1} − v_t)` is, with `u_{t+1} = v_{t+1} − v_t`,

        u ← β u − γ_k g
        w ← w + β u − γ_k g

    so the learning rate is inside the momentum: a later change of `γ_k` does not rescale what is already under way.
    With a constant `γ_k` this is `torch.optim.SGD(nesterov=True)`.

    Args:
        weights, gradients, displacements: one tensor per layer, same shapes; all on one device and of one dtype.
        gammas: one 0-dim tensor per layer.
        momentum: β; at 0 `displacements` may be empty.
    """
    moves = torch._foreach_mul(gradients, gammas)
    torch._foreach_sub_(weights, moves)
    if momentum:
        torch._foreach_mul_(displacements, momentum)
        torch._foreach_sub_(displacements, moves)
        torch._foreach_add_(weights, displacements, alpha=momentum)


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
