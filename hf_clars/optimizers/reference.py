"""CLARS and LARS in one plain loop, with the paper's symbols: Algorithm 1, Eq. 3, 4 and 5.

The first file to read, and what the tests hold the optimizers against. It is slow: `CLARS` and `LARS` do the same with
norms that are measured on the way, for all layers in few calls.

==================  ======================================================================
`w[k]`, `v[k]`      weight and momentum vector of layer k, `w_t` and `v_t`; `v_0 = w_0`
`c[k]`              contributions of the batch's samples to the gradient, `[B, *w[k].shape]`:
                    `c[k][i] = ∇_k f_i(w_t) / B` where samples do not mix
`g[k]`              the gradient, `Σ_i c[k][i] = (1/B) Σ_i ∇_k f_i(w_t)`
`gamma_scale`       γ_scale, the learning rate of the step
`eta`, `beta`       η and β
`weight_decay`      λ, which the paper leaves open; `λ w` is added to the gradient in Eq. 4
==================  ======================================================================

Source: Huo, Gu, Huang: Large Batch Optimization for Deep Learning Using New Complete Layer-Wise Adaptive Rate Scaling,
AAAI 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def lars_rate(gamma_scale: float, eta: float, w: Tensor, g: Tensor) -> Tensor:
    """Eq. 3: `γ_k = γ_scale · η · ‖w_k‖ / ‖g_k‖`."""
    return gamma_scale * eta * w.norm() / g.norm()


def clars_rate(gamma_scale: float, eta: float, w: Tensor, c: Tensor) -> Tensor:
    """Eq. 5: `γ_k = γ_scale · η · ‖w_k‖ / ((1/B) Σ_i ‖∇_k f_i‖)`; the mean is `Σ_i ‖c_i‖`."""
    return gamma_scale * eta * w.norm() / sum(c_i.norm() for c_i in c)


class Reference:
    """Layers that are trained by CLARS, or by LARS.

    Args:
        weights: of the layers; they are copied.

    Attributes:
        w, v: weights and momentum vectors, as they are now.
    """

    def __init__(self, weights: Sequence[Tensor], *, beta: float, eta: float, weight_decay: float = 0.0) -> None:
        self.w = [w.detach().clone() for w in weights]
        self.v = [w.detach().clone() for w in weights]
        self.beta, self.eta, self.weight_decay = beta, eta, weight_decay

    @torch.no_grad()
    def clars_step(self, gamma_scale: float, contributions: Sequence[Tensor]) -> list[Tensor]:
        """Lines 4 to 6 of Algorithm 1; returns `γ_k` of each layer."""
        rates = []
        for k, c in enumerate(contributions):
            gamma = clars_rate(gamma_scale, self.eta, self.w[k], c)
            self._update(k, gamma, c.sum(0))
            rates.append(gamma)
        return rates

    @torch.no_grad()
    def lars_step(self, gamma_scale: float, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The same with Eq. 3 in place of Eq. 5."""
        rates = []
        for k, g in enumerate(gradients):
            gamma = lars_rate(gamma_scale, self.eta, self.w[k], g)
            self._update(k, gamma, g)
            rates.append(gamma)
        return rates

    def _update(self, k: int, gamma: Tensor, g: Tensor) -> None:
        """Eq. 4: `v_{t+1} = w_t − γ_k (g + λ w_t)` and `w_{t+1} = v_{t+1} + β (v_{t+1} − v_t)`."""
        v = self.w[k] - gamma * (g + self.weight_decay * self.w[k])
        self.w[k] = v + self.beta * (v - self.v[k])
        self.v[k] = v
