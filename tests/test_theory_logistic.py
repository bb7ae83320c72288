"""Theorems 1 and 2 on logistic regression, whose constants hold at all weights."""

import math

import numpy as np
import pytest

from .helpers.convex import Problems


class Logistic(Problems):
    """`f_i(w) = log(1 + exp(−y_i ⟨x_i, w⟩))`, with the features split into K layers.

    What the theorems need holds at all weights, since `0 < σ(1−σ) ≤ ¼` and `|∇_k f_i| = σ(−y_i ⟨x_i, w⟩) ‖x_{i,k}‖`
    with `0 < σ < 1`: `L_k = ¼ λ_max(X_kᵀX_k/n)`, `L_g = ¼ λ_max(XᵀX/n)`, and Assumption 2 with `M_k = 0` and
    `M = max_k (1/n) Σ_i ‖x_{i,k}‖²`, as a variance is at most the mean square.
    """

    def __init__(self, x, y, start, layers, lowest=0.0):
        self.signed = x * y[..., None]  # [N, n, D]
        self.start, self.layers = start, layers
        _, self.samples, width = x.shape
        gram = np.einsum("nip,niq->npq", x, x) / self.samples
        d = width // layers
        blocks = [gram[:, k * d : (k + 1) * d, k * d : (k + 1) * d] for k in range(layers)]
        self.L = np.stack([np.linalg.eigvalsh(block)[:, -1] for block in blocks], 1) / 4
        self.L_g = np.linalg.eigvalsh(gram)[:, -1] / 4
        self.M = self.layer_squares(x).mean(1).max(-1)
        self.f0_minus_finf = np.logaddexp(0, -self.margins(start[:, None])[:, 0]).mean(-1) - lowest  # f ≥ lowest

    def margins(self, w):
        return np.einsum("nsd,nid->nsi", w, self.signed)

    def sample_weights(self, w):
        """`σ(−y_i ⟨x_i, w⟩)`, [N, seeds, n]: sample i's gradient is minus this times `y_i x_i`."""
        return 0.5 * (1 - np.tanh(self.margins(w) / 2))

    def gradients(self, w, weights):
        return -np.einsum("nsi,nid->nsd", self.sample_weights(w) * weights, self.signed)


def random_logistic(rng, count=256, n=24, K=3, d=3):
    """Features over two orders of magnitude, correlated across layers; labels that follow a rule, or do not."""
    shared = rng.normal(size=(count, n, 1)) * rng.uniform(0, 2, (count, 1, 1))
    x = (rng.normal(size=(count, n, K * d)) + shared) * np.repeat(10 ** rng.uniform(-1, 1, (count, 1, K)), d, axis=2)
    rule = rng.normal(size=(count, K * d)) * rng.integers(2, size=(count, 1))
    y = np.where(np.einsum("nip,np->ni", x, rule) + rng.normal(size=(count, n)) > 0, 1.0, -1.0)
    return Logistic(x, y, rng.normal(size=(count, K * d)) * 10 ** rng.uniform(-2, 1, (count, 1)), K)


def test_the_logistic_constants_hold():
    rng = np.random.default_rng(1)
    problems = random_logistic(rng)
    w, other = rng.normal(size=(2, 256, 16, 9)) * 10 ** rng.uniform(-2, 1, (2, 256, 16, 1))

    def gradients(w):
        return -problems.sample_weights(w)[..., None] * problems.signed[:, None]  # [N, 16, n, D]

    each = gradients(w)
    full = each.mean(2)
    variance = problems.layer_squares(each - full[:, :, None]).mean(2)
    assert (variance <= problems.M[:, None, None]).all()
    change = np.linalg.norm(gradients(w + other).mean(2) - full, axis=-1)
    assert (change <= problems.L_g[:, None] * np.linalg.norm(other, axis=-1) * (1 + 1e-9)).all()
    for k in range(3):
        step = np.zeros_like(other)
        step[..., 3 * k : 3 * k + 3] = other[..., 3 * k : 3 * k + 3]
        change = np.linalg.norm((gradients(w + step).mean(2) - full)[..., 3 * k : 3 * k + 3], axis=-1)
        assert (change <= problems.L[:, k, None] * np.linalg.norm(step, axis=-1) * (1 + 1e-9)).all()


@pytest.mark.parametrize("momentum", [None, 0.0, 0.5, 0.9])
@pytest.mark.parametrize(("batch_size", "steps"), [(1, 100), (16, 40)])
def test_measured_convergence_stays_below_the_bound(momentum, batch_size, steps):
    """8 × 256 problems; Δ is taken as f(w_0), since f ≥ 0."""
    rng = np.random.default_rng([batch_size, int(10 * (momentum or 0)), momentum is None])
    problems = random_logistic(rng)
    gamma = problems.largest_gammas(momentum, batch_size, proven=True)
    gamma[::2] *= rng.uniform(0.1, 1, gamma[::2].shape)
    measured = problems.measured(gamma, momentum or 0.0, batch_size, steps, seeds=6, rng=rng)
    bound = problems.bound(gamma, momentum, batch_size, steps)
    assert (measured <= bound).all()
    assert (measured / bound).max() > 1 / 100  # and the bound says something


@pytest.mark.parametrize("momentum", [None, 0.5, 0.9])
def test_an_inadmissible_gamma_violates_the_bound(momentum):
    """Every x comes with both labels: f is even, its minimum is log 2 at 0, where its curvature is the largest.

    From nearby Δ is almost 0, and with a large batch the noise is, too; but `γ_k = 8/L_k` throws w to where gradients
    are as large as they get, and back.
    """
    rng = np.random.default_rng(0)
    count, n, K, d = 256, 6, 2, 2
    x = np.repeat(rng.normal(size=(count, n, K * d)), 2, axis=1)
    y = np.tile([1.0, -1.0], (count, n))
    problems = Logistic(x, y, 1e-3 * rng.normal(size=(count, K * d)), K, lowest=math.log(2))
    batch_size, steps = 1 << 24, 60
    small = problems.largest_gammas(momentum, batch_size, proven=True)
    measured = problems.measured(small, momentum or 0.0, batch_size, steps, 1, rng)
    assert (measured <= problems.bound(small, momentum, batch_size, steps)).all()
    large = np.full(count, 8.0)
    assert not any(problems.rate_bounds(i, momentum, batch_size).admits(8 / L) for i, L in enumerate(problems.L))
    measured = problems.measured(large, momentum or 0.0, batch_size, steps, 1, rng)
    assert (measured > problems.bound(large, momentum, batch_size, steps)).all()
