"""Theorems 1-2 and Corollaries 1-3: values worked out by hand, reductions, and the bounds against simulated runs."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_clars import theory
from hf_clars.errors import UserError

from .helpers.convex import Problems, largest_gamma

positive = st.floats(1e-3, 1e3)
momenta = st.floats(0.0, 0.99)
layers = st.lists(positive, min_size=1, max_size=6)


# ---- values worked out by hand ---------------------------------------------------------------------------------------


def test_weights_are_inverse_lipschitz_constants():
    assert theory.convergence_weights([1.0, 2.0, 4.0]) == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_theorem_1_learning_rates():
    bounds = theory.mgd_learning_rate_bounds([1.0, 2.0, 0.5], [4.0, 64.0, 0.0], 10.0, 16)
    # 1/8 · min(1, 16/4);  1/16 · 16/64;  1/4 · min(1, ∞)
    assert bounds.per_layer == pytest.approx([1 / 8, 1 / 64, 1 / 4])
    assert bounds.mean == pytest.approx(math.sqrt(16 / 64) / 20)


def test_theorem_2_learning_rates():
    at: dict[str, Any] = {"L": [1.0, 2.0], "M": [4.0, 64.0], "L_g": 10.0, "batch_size": 16}
    # β = 1/2: (1−β)²/β² = 1 > 1−β = 1/2, so the terms without β² bind
    half = theory.mnag_learning_rate_bounds(**at, momentum=0.5)
    assert half.per_layer == pytest.approx([1 / 16, 1 / 128])
    assert half.mean == pytest.approx(0.5 * 0.5 / 40)
    # β = 0.9: (1−β)²/β² = 1/81 < 1/10, so the terms with β² bind
    ninety = theory.mnag_learning_rate_bounds(**at, momentum=0.9)
    assert ninety.mean == pytest.approx((1 / 81) * 0.5 / 40)


def test_a_given_M_g_replaces_the_maximum():
    assert theory.mgd_learning_rate_bounds([1.0], [1.0], 1.0, 4, M_g=16.0).mean == pytest.approx(0.25)


def test_layers_without_multiplicative_variance_have_no_second_term():
    for bounds in (
        theory.mgd_learning_rate_bounds([2.0], [0.0], 2.0, 1),
        theory.mnag_learning_rate_bounds([2.0], [0.0], 2.0, 1, momentum=0.0),
    ):
        assert bounds.per_layer == [1 / 16]
        assert bounds.mean in (1 / 4, 1 / 8)


def test_an_infinite_variance_factor_admits_nothing():
    bounds = theory.mgd_learning_rate_bounds([1.0], [math.inf], 1.0, 8)
    assert (bounds.per_layer, bounds.mean) == ([0.0], 0.0)
    assert not bounds.admits([1e-300])


def test_convergence_bounds():
    at: dict[str, Any] = {
        "f0_minus_finf": 3.0,
        "steps": 10,
        "gamma": 0.1,
        "L": [1.0, 2.0],
        "M": 5.0,
        "batch_size": 4,
        "L_g": 4.0,
    }
    # S = 3/2, κ = 4, Mγ/B = 1/8
    assert theory.mgd_convergence_bound(**at) == pytest.approx(24 / 1.5 + 12 / 8)
    assert theory.mnag_convergence_bound(**at, momentum=0.5) == pytest.approx(12 / 1.5 + (12 + 16) / 0.5 / 8)


def test_corollary_1():
    rate = theory.mgd_rate(f0_minus_finf=2.0, steps=100, L=[1.0, 1.0], M=4.0, batch_size=1, L_g=1.0)
    # Δ/(TS) = 1/100; √(BΔ/(TMS)) = 1/20 < 1/8
    assert rate.gamma == pytest.approx(1 / 20)
    assert rate.bound == pytest.approx(0.64 + 14 * 0.2)
    assert theory.mgd_rate(f0_minus_finf=2.0, steps=1, L=[1.0], M=0.0, batch_size=1, L_g=1.0).gamma == 1 / 8
    assert theory.mgd_rate(f0_minus_finf=0.0, steps=1, L=[1.0], M=1.0, batch_size=1, L_g=1.0) == theory.Rate(0.0, 0.0)


def test_corollary_2():
    rate = theory.mnag_rate(f0_minus_finf=2.0, steps=100, L=[1.0, 1.0], M=4.0, batch_size=1, L_g=1.0, momentum=0.5)
    assert rate.gamma == pytest.approx(1 / 20)
    assert rate.bound == pytest.approx(0.64 / 0.5 + (8 + (4 + 2 + 4) / 0.5) * 0.2)


def test_corollary_3():
    value = theory.mnag_uniform_convergence_bound(
        f0_minus_finf=3.0, steps=10, gamma_g=0.01, L_g=2.0, M_C=6.0, batch_size=4, momentum=0.5
    )
    assert value == pytest.approx(8 * 0.5 * 3 / 0.1 + 6 * 2 * 0.01 / (0.5 * 4) * 10)


def test_admits():
    bounds = theory.LearningRateBounds(per_layer=[0.1, 0.4], mean=0.2)
    assert bounds.admits([0.1, 0.3])  # at the bound of the layer and of the mean
    assert not bounds.admits([0.11, 0.1])  # one layer above its bound
    assert not bounds.admits([0.1, 0.31])  # the mean above its bound
    with pytest.raises(UserError, match="one learning rate per layer, 2; it has 1"):
        bounds.admits([0.1])
    with pytest.raises(UserError, match="every entry of gammas must be positive"):
        bounds.admits([0.1, 0.0])


@given(L=layers, beta=momenta, batch=st.integers(1, 1 << 16), m=st.floats(0, 1e4))
def test_the_largest_gamma_over_L_is_admitted_and_nothing_larger(L, beta, batch, m):
    L_g = sum(L)
    bounds = theory.mnag_learning_rate_bounds(L, [m] * len(L), L_g, batch, momentum=beta)
    gamma = largest_gamma(bounds, L)
    assert bounds.admits([gamma / l_k for l_k in L])
    assert not bounds.admits([gamma * 1.001 / l_k for l_k in L])


# ---- reductions ------------------------------------------------------------------------------------------------------


@given(L=layers, batch=st.integers(1, 1 << 16), m=st.floats(0, 1e4))
def test_without_momentum_theorem_2_halves_theorem_1_mean_condition_only(L, batch, m):
    at = (L, [m] * len(L), max(L), batch)
    first, second = theory.mgd_learning_rate_bounds(*at), theory.mnag_learning_rate_bounds(*at, momentum=0.0)
    assert second.per_layer == pytest.approx(first.per_layer)
    assert second.mean == pytest.approx(first.mean / 2)


@given(L=layers, gamma=positive, noise=positive, drop=positive, kappa=st.floats(1, 100))
def test_without_momentum_theorem_2_adds_two_kappa_to_theorem_1(L, gamma, noise, drop, kappa):
    def both(delta, M):
        at: dict[str, Any] = {
            "f0_minus_finf": delta,
            "steps": 7,
            "gamma": gamma,
            "L": L,
            "M": M,
            "batch_size": 2,
            "kappa": kappa,
        }
        return theory.mgd_convergence_bound(**at), theory.mnag_convergence_bound(**at, momentum=0.0)

    first, second = both(drop, 0.0)
    assert second == pytest.approx(first)  # the same term in Δ
    first, second = both(0.0, noise)
    assert first == pytest.approx((4 + 2 * kappa) * noise * gamma / 2)
    assert second == pytest.approx((4 + 4 * kappa) * noise * gamma / 2)  # 4 + 2κ + 2κ/(1 − 0)


@given(L=layers, noise=st.floats(0, 1e3), drop=positive, steps=st.integers(1, 10**6), kappa=st.floats(1, 100))
def test_corollary_1_is_at_least_theorem_1_with_its_gamma(L, noise, drop, steps, kappa):
    at: dict[str, Any] = {"f0_minus_finf": drop, "steps": steps, "L": L, "M": noise, "batch_size": 32, "kappa": kappa}
    rate = theory.mgd_rate(**at)
    implied = theory.mgd_convergence_bound(**at, gamma=rate.gamma)
    assert implied <= rate.bound * (1 + 1e-9)
    start = 64 * drop / (steps * sum(1 / l_k for l_k in L))
    if (
        rate.gamma < 1 / 8
    ):  # noise decides γ: all of the root's constant is needed, the first term is what is given away
        assert rate.bound == pytest.approx(implied + start)
    if noise == 0:  # and here all of the first
        assert rate.bound == pytest.approx(implied) == pytest.approx(start)


@given(L=layers, noise=st.floats(0, 1e3), drop=positive, steps=st.integers(1, 10**6), beta=momenta)
def test_corollary_2_is_at_least_theorem_2_with_its_gamma(L, noise, drop, steps, beta):
    at: dict[str, Any] = {
        "f0_minus_finf": drop,
        "steps": steps,
        "L": L,
        "M": noise,
        "batch_size": 32,
        "kappa": 2.0,
        "momentum": beta,
    }
    rate = theory.mnag_rate(**at)
    assert theory.mnag_convergence_bound(**at, gamma=rate.gamma) <= rate.bound * (1 + 1e-9)


def test_corollary_2_drops_a_factor_that_theorem_2_gives():
    """Without noise Theorem 2 leaves 64Δ/(TS); the corollary prints 64Δ/((1−β)TS)."""
    at: dict[str, Any] = {
        "f0_minus_finf": 1.0,
        "steps": 10,
        "L": [1.0],
        "M": 0.0,
        "batch_size": 1,
        "kappa": 1.0,
        "momentum": 0.9,
    }
    rate = theory.mnag_rate(**at)
    assert theory.mnag_convergence_bound(**at, gamma=rate.gamma) == pytest.approx(6.4)
    assert rate.bound == pytest.approx(64)


@given(L_g=positive, gamma_g=positive, M=positive, drop=positive, beta=momenta, K=st.integers(1, 50))
def test_corollary_3_is_K_times_theorem_2(L_g, gamma_g, M, drop, beta, K):
    common: dict[str, Any] = {"f0_minus_finf": drop, "steps": 5, "batch_size": 8, "momentum": beta}
    general = theory.mnag_convergence_bound(**common, gamma=gamma_g * L_g, L=[L_g] * K, M=M, L_g=L_g)
    uniform = theory.mnag_uniform_convergence_bound(**common, gamma_g=gamma_g, L_g=L_g, M_C=K * M)
    assert uniform == pytest.approx(K * general)


# ---- against simulated runs ------------------------------------------------------------------------------------------


class Quadratics(Problems):
    """`f_i(w) = ½ (w − a_i)ᵀ H (w − a_i)`.

    `H = diag(L_k)` is the separable `½ Σ_k L_k ‖w_k − a_{k,i}‖²`. All samples share H, so the gradient's variance does
    not depend on w: Assumption 2 holds with `M_k = 0` and M the largest layer's variance.
    """

    def __init__(self, hessian, centres, start, layers):
        self.hessian, self.centres, self.start, self.layers = hessian, centres, start, layers
        count, self.samples, width = centres.shape  # hessian: [N, D, D], centres: [N, n, D]
        blocks = hessian.reshape(count, layers, width // layers, layers, -1)
        blocks = np.moveaxis(np.diagonal(blocks, axis1=1, axis2=3), -1, 1)  # [N, K, d, d]
        self.L = np.linalg.eigvalsh(blocks)[..., -1]
        self.L_g = np.linalg.eigvalsh(hessian)[:, -1]
        minimum = centres.mean(1)
        self.M = self.layer_squares((centres - minimum[:, None]) @ hessian).mean(1).max(-1)
        offset = start - minimum
        self.f0_minus_finf = 0.5 * np.einsum("np,npq,nq->n", offset, hessian, offset)

    def gradients(self, w, weights):
        return (w - weights @ self.centres) @ self.hessian


def random_quadratics(rng, coupled, count=48, n=20, K=4, d=3):
    """From noise alone to almost none, and curvatures over two orders of magnitude."""
    scale = 10 ** rng.uniform(-1, 1, (count, K))
    root = np.sqrt(np.repeat(scale, d, axis=1))
    if coupled:
        factor = rng.normal(size=(count, K * d, 2)) * root[..., None]
        hessian = factor @ factor.transpose(0, 2, 1)  # rank 2 of 12: layers are as coupled as they get
    else:
        hessian = np.einsum("np,pq->npq", root**2, np.eye(K * d))
    samples = rng.normal(size=(count, n, K * d)) * 10 ** rng.uniform(-2, 1, (count, 1, 1))
    start = rng.normal(size=(count, K * d)) * 10 ** rng.uniform(-2, 1, (count, 1))
    return Quadratics(hessian, samples, start, K)


@pytest.mark.parametrize("coupled", [False, True], ids=["separable", "coupled"])
@pytest.mark.parametrize("momentum", [None, 0.0, 0.5, 0.9])
@pytest.mark.parametrize(("batch_size", "steps"), [(1, 100), (8, 30)])
def test_measured_convergence_stays_below_the_bound(momentum, batch_size, steps, coupled):
    """16 × 48 problems. On coupled layers under the conditions that are proven sufficient, with half the γ too."""
    rng = np.random.default_rng([batch_size, int(10 * (momentum or 0)), coupled, momentum is None])
    problems = random_quadratics(rng, coupled)
    gamma = problems.largest_gammas(momentum, batch_size, proven=coupled)
    gamma[::2] *= rng.uniform(0.1, 1, gamma[::2].shape)
    measured = problems.measured(gamma, momentum or 0.0, batch_size, steps, seeds=8, rng=rng)
    bound = problems.bound(gamma, momentum, batch_size, steps)
    assert (measured <= bound).all()
    assert (measured / bound).max() > 1 / 50  # and the bound says something


@pytest.mark.parametrize("momentum", [None, 0.5, 0.9])
def test_three_over_L_violates_the_bound(momentum):
    rng = np.random.default_rng(0)
    problems = random_quadratics(rng, coupled=False)
    gamma = np.full(len(problems.L), 3.0)
    bounds = theory.mgd_learning_rate_bounds(problems.L[0], [0.0] * 4, problems.L_g[0], 8)
    assert not bounds.admits(gamma[0] / problems.L[0])
    measured = problems.measured(gamma, momentum or 0.0, 8, 30, seeds=2, rng=rng)
    assert (measured > problems.bound(gamma, momentum, 8, 30)).all()


@pytest.mark.parametrize(("momentum", "clique"), [(None, 17), (0.0, 17), (0.5, 25)])
def test_the_papers_conditions_do_not_suffice_for_coupled_layers(momentum, clique):
    """The module docstring's counterexample: a few coupled layers hide in the mean over many harmless ones."""
    K = 1000
    hessian = np.diag(np.full(K, float(clique)))
    hessian[:clique, :clique] = 1.0
    problem = Quadratics(hessian[None], np.zeros((1, 1, K)), np.ones((1, K)), K)
    assert problem.L[0, [0, -1]].tolist() == pytest.approx([1, clique])
    assert problem.L_g == pytest.approx(clique)
    assert problem.M == 0

    rng = np.random.default_rng(0)
    gamma = problem.largest_gammas(momentum, 1)
    assert gamma == pytest.approx((1 - (momentum or 0)) / 8)
    assert problem.measured(gamma, momentum or 0.0, 1, 200, 1, rng) > problem.bound(gamma, momentum, 1, 200)
    gamma = problem.largest_gammas(momentum, 1, proven=True)
    assert problem.measured(gamma, momentum or 0.0, 1, 200, 1, rng) <= problem.bound(gamma, momentum, 1, 200)


# ---- bad input -------------------------------------------------------------------------------------------------------

RATES: dict[str, Any] = {"L": [1.0, 2.0], "M": [0.0, 1.0], "L_g": 2.0, "batch_size": 8, "momentum": 0.9}
BOUND: dict[str, Any] = {
    "f0_minus_finf": 1.0,
    "steps": 10,
    "gamma": 0.01,
    "L": [1.0, 2.0],
    "M": 1.0,
    "batch_size": 8,
    "momentum": 0.9,
    "L_g": 2.0,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"L": []}, "L must be a sequence of numbers, one per layer, got"),
        ({"L": 1.0}, "L must be a sequence of numbers"),
        ({"L": [1.0, 0.0]}, "every entry of L must be positive and finite, got 0.0"),
        ({"L": [1.0, math.nan]}, "every entry of L must be positive and finite, got nan"),
        ({"L": [1.0, "a"]}, "every entry of L must be positive and finite, got 'a'"),
        ({"L": [1.0]}, "L and M need one entry per layer each; they have 1 and 2"),
        ({"M": [0.0, -1.0]}, "every entry of M must be a number that is not negative, got -1.0"),
        ({"M_g": 0.5}, r"M_g must be at least max\(M\) = 1, got 0.5"),
        ({"L_g": -1.0}, "L_g must be positive and finite"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\)"),
    ],
)
def test_bad_input_for_learning_rates(change, message):
    with pytest.raises(UserError, match=message):
        theory.mnag_learning_rate_bounds(**(RATES | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f0_minus_finf": -1.0}, "f0_minus_finf must be finite and not negative"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"gamma": 0.0}, "gamma must be positive and finite"),
        ({"L": [-1.0]}, "every entry of L must be positive"),
        ({"M": [1.0, 2.0]}, "M must be finite and not negative"),
        ({"L_g": None}, "the bound needs κ: pass L_g, or kappa"),
        ({"kappa": 1.5}, "kappa must be at least max L_g / L_k = 2, got 1.5"),
        ({"L_g": None, "kappa": 0.0}, "kappa must be positive"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
    ],
)
def test_bad_input_for_convergence_bounds(change, message):
    with pytest.raises(UserError, match=message):
        theory.mnag_convergence_bound(**(BOUND | change))
