"""Convex problems whose constants are known, trained by Eq. 4, to hold the bounds of Theorems 1 and 2 against."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_clars import theory


class Problems:
    """N problems of n samples and K layers of d weights each, all trained at once; `D = K · d`.

    Attributes:
        start: `[N, D]`.
        L, L_g, M: constants of the layers `[N, K]`, of the whole and of the noise `[N]`; `M_k = 0`.
        f0_minus_finf: `[N]`.
    """

    layers: int
    samples: int
    start: np.ndarray
    L: np.ndarray
    L_g: np.ndarray
    M: np.ndarray
    f0_minus_finf: np.ndarray

    def gradients(self, w: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Of the samples' mean by `weights` `[N, seeds, n]`, at w `[N, seeds, D]`: `[N, seeds, D]`."""
        raise NotImplementedError

    def layer_squares(self, gradients: np.ndarray) -> np.ndarray:
        """`‖∇_k‖²`: [N, …, D] → [N, …, K]."""
        return np.square(gradients).reshape(*gradients.shape[:-1], self.layers, -1).sum(-1)

    def measured(self, gamma, momentum, batch_size, steps, seeds, rng) -> np.ndarray:
        """`(1/T) Σ_t Σ_k q_k E‖∇_k f(w_t)‖²` of Eq. 4 with `γ_k = γ/L_k`, E over the seeds: [N]."""
        count, width = self.start.shape
        rates = np.repeat(gamma[:, None] / self.L, width // self.layers, axis=1)[:, None]  # [N, 1, D]
        q = np.array([theory.convergence_weights(row) for row in self.L])
        whole = np.full(self.samples, 1 / self.samples)
        w = np.repeat(self.start[:, None], seeds, axis=1)
        v, total = w.copy(), np.zeros(count)
        for _ in range(steps):
            full = self.gradients(w, np.broadcast_to(whole, (count, seeds, self.samples)))
            total += (self.layer_squares(full).mean(1) * q).sum(-1)
            drawn = rng.multinomial(batch_size, whole, size=(count, seeds)) / batch_size
            v_next = w - rates * self.gradients(w, drawn)
            w, v = v_next + momentum * (v_next - v), v_next
        return total / steps

    def bound(self, gamma, momentum, batch_size, steps) -> np.ndarray:
        """Theorem 1's right-hand side for `momentum=None`, otherwise Theorem 2's: [N]."""
        extra: dict[str, Any] = {} if momentum is None else {"momentum": momentum}
        evaluate = theory.mgd_convergence_bound if momentum is None else theory.mnag_convergence_bound
        rows = zip(self.f0_minus_finf, gamma, self.L, self.M, self.L_g, strict=True)
        return np.array(
            [
                evaluate(f0_minus_finf=delta, steps=steps, gamma=g, L=L, M=M, batch_size=batch_size, L_g=L_g, **extra)
                for delta, g, L, M, L_g in rows
            ]
        )

    def rate_bounds(self, index, momentum, batch_size, proven=False) -> theory.LearningRateBounds:
        """The conditions of problem `index`; `proven`: those that are proven sufficient, with L_g for every L_k."""
        L, L_g = self.L[index].tolist(), float(self.L_g[index])
        at = ([L_g] * len(L) if proven else L, [0.0] * len(L), L_g, batch_size)
        if momentum is None:
            return theory.mgd_learning_rate_bounds(*at)
        return theory.mnag_learning_rate_bounds(*at, momentum=momentum)

    def largest_gammas(self, momentum, batch_size, proven=False) -> np.ndarray:
        """The largest γ that the conditions admit; `proven` also holds the largest `γ_k` below the mean's bound."""
        found = []
        for i, L in enumerate(self.L.tolist()):
            bounds = self.rate_bounds(i, momentum, batch_size, proven)
            gamma = largest_gamma(bounds, L)
            found.append(min(gamma, bounds.mean * min(L)) if proven else gamma)
            assert self.rate_bounds(i, momentum, batch_size).admits([found[-1] / l_k for l_k in L])
        return np.array(found)


def largest_gamma(bounds: theory.LearningRateBounds, L: list[float]) -> float:
    per_layer = min(bound * l_k for bound, l_k in zip(bounds.per_layer, L, strict=True))
    return min(per_layer, bounds.mean * len(L) / sum(1 / l_k for l_k in L))
