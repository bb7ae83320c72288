"""Estimators of L_k, L_g, M_k and M on problems whose constants are known, and the table of learning rates."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_clars import PerSampleNorms, UserError, build_model, formulas, gradient_variance, theory
from hf_clars.cli import main
from hf_clars.theory import rates_table
from hf_clars.theory.command import run

from .helpers.models import Classifier
from .helpers.slow import slow_but

DEMO = str(Path(__file__).resolve().parents[1] / "recipes" / "demo" / "fashion_mnist")
EXACT: dict[str, Any] = {"iterations": 3000, "tolerance": 1e-12}


# ---- curvature -------------------------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """`f_i(w) = ½ (w − a_i)ᵀ H (w − a_i)` in two layers and a vector; `inputs` are the a_i."""

    def __init__(self, hessian):
        super().__init__()
        self.hessian = hessian
        self.first = nn.Parameter(torch.ones(2, 2).double())
        self.second = nn.Parameter(torch.ones(1, 3).double())
        self.vector = nn.Parameter(torch.ones(2).double())

    def forward(self, a):
        offset = torch.cat([self.first.flatten(), self.second.flatten(), self.vector]) - a
        return 0.5 * ((offset @ self.hessian) * offset).sum(1)


def random_symmetric(size, seed, definite):
    factor = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double()
    return factor @ factor.T if definite else factor + factor.T


def mean_output(outputs, targets):
    return outputs.mean()


@pytest.mark.parametrize("definite", [True, False])
@pytest.mark.parametrize("seed", slow_but([0, 1], range(4)))
def test_quadratics_give_the_norms_of_their_hessian_blocks(seed, definite):
    hessian = random_symmetric(9, seed, definite)
    batches = [(torch.randn(n, 9).double(), torch.zeros(n)) for n in (3, 5)]
    model = Quadratic(hessian)
    L = theory.lipschitz_constants(model, iter(batches), mean_output, **EXACT)
    blocks = {"first": hessian[:4, :4], "second": hessian[4:7, 4:7]}
    assert pytest.approx({n: torch.linalg.matrix_norm(b, 2).item() for n, b in blocks.items()}, rel=1e-4) == L
    L_g = theory.global_lipschitz_constant(model, batches, mean_output, **EXACT)
    assert L_g == pytest.approx(torch.linalg.matrix_norm(hessian, 2).item(), rel=1e-4)
    assert max(L.values()) <= L_g


def test_opposite_eigenvalues_of_equal_size_are_no_trap():
    """The Rayleigh quotient would wander between −2 and 2."""
    model = Quadratic(torch.diag(torch.tensor([2.0, -2, 1, 0, 3, -3, 0, 0, 0])).double())
    L = theory.lipschitz_constants(model, [(torch.zeros(1, 9).double(), torch.zeros(1))], mean_output, **EXACT)
    assert pytest.approx({"first": 2.0, "second": 3.0}) == L


def test_more_iterations_come_closer_from_below():
    model, batch = Quadratic(random_symmetric(9, 0, True)), (torch.zeros(1, 9).double(), torch.zeros(1))
    estimates = [
        theory.global_lipschitz_constant(model, [batch], mean_output, iterations=n, tolerance=0.0) for n in (1, 2, 4, 8)
    ]
    assert estimates == sorted(estimates)
    assert estimates[-1] <= torch.linalg.matrix_norm(model.hessian, 2).item() * (1 + 1e-12)


def test_logistic_regression_has_the_curvature_of_its_formula():
    """Unequal batches count by their samples; at w = 0 the bound ¼ λ_max(XᵀX/n) is reached, elsewhere it holds."""
    x, y = torch.randn(12, 5).double(), torch.randint(0, 2, (12,)).double()
    model = nn.Linear(5, 1, bias=False).double()
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]

    def loss_fn(outputs, targets):
        return F.binary_cross_entropy_with_logits(outputs[:, 0], targets)

    p = torch.sigmoid(x @ model.weight.detach()[0])
    exact = torch.linalg.eigvalsh(x.T @ (x * (p * (1 - p))[:, None]) / 12)[-1].item()
    bound = torch.linalg.eigvalsh(x.T @ x / 12)[-1].item() / 4
    got = theory.lipschitz_constants(model, batches, loss_fn, **EXACT)["weight"]
    assert got == pytest.approx(exact, rel=1e-4)
    assert got < bound
    nn.init.zeros_(model.weight)
    assert theory.lipschitz_constants(model, batches, loss_fn, **EXACT)["weight"] == pytest.approx(bound, rel=1e-4)


def test_two_linear_layers_against_the_dense_hessian():
    """Off the minimum the Hessian is indefinite; dictionary batches, and a frozen parameter, which is no layer."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2)).double()
    model[1].bias.requires_grad_(False)
    x, y = torch.randn(7, 3).double(), torch.randn(7, 2).double()

    def f(flat):
        first, second = flat[:12].view(4, 3), flat[12:].view(2, 4)
        return F.mse_loss(x @ first.T @ second.T + model[1].bias, y)

    weights = torch.cat([model[0].weight.flatten(), model[1].weight.flatten()]).detach()
    dense = torch.autograd.functional.hessian(f, weights)
    batches = [{"input": x, "labels": y}]
    L = theory.lipschitz_constants(model, batches, F.mse_loss, **EXACT)
    expected = {"0.weight": dense[:12, :12], "1.weight": dense[12:, 12:]}
    assert pytest.approx({n: torch.linalg.matrix_norm(b, 2).item() for n, b in expected.items()}, rel=1e-4) == L
    L_g = theory.global_lipschitz_constant(model, batches, F.mse_loss, **EXACT)
    assert L_g == pytest.approx(torch.linalg.matrix_norm(dense, 2).item(), rel=1e-4)


def test_layers_that_the_gradient_does_not_depend_on_have_no_curvature():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    nn.init.zeros_(model[1].weight)
    batch = (torch.randn(5, 3), torch.zeros(5, 2))
    L = theory.lipschitz_constants(model, [batch], F.mse_loss)
    assert L["0.weight"] == 0
    assert L["1.weight"] > 0
    assert theory.lipschitz_constants(model[:1], [batch], lambda outputs, _: outputs.mean()) == {"0.weight": 0.0}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.queries = nn.Linear(4, 4)

    def forward(self, x):
        return F.scaled_dot_product_attention(self.queries(x), x, x).mean(1)


def test_attention_has_second_derivatives():
    L = theory.lipschitz_constants(Attention(), [(torch.randn(2, 3, 4), torch.zeros(2, 4))], F.mse_loss)
    assert L["queries.weight"] > 0


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_numbers_stay_as_they_were(training):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    model.append(nn.Linear(16, 3)).train(training)
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    random = torch.get_rng_state()
    batches = [(torch.randn(6, 1, 4, 4), torch.randint(0, 3, (6,))) for _ in range(2)]
    random = torch.get_rng_state()
    first = theory.lipschitz_constants(model, batches, F.cross_entropy, seed=3)
    again = theory.lipschitz_constants(model, batches, F.cross_entropy, seed=3)
    theory.global_lipschitz_constant(model, batches, F.cross_entropy)
    assert torch.equal(torch.get_rng_state(), random)
    theory.variance_constants(model, batches, F.cross_entropy)
    assert first == again
    assert model.training is training
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"0.weight"}
    assert (model[0].weight.grad == 7).all()
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


# ---- variance --------------------------------------------------------------------------------------------------------


def test_variance_constants_against_a_loop_over_samples():
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)).double()
    x, y = torch.randn(11, 4).double(), torch.randint(0, 3, (11,))
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    moments = theory.gradient_moments(model, batches, F.cross_entropy)
    constants = theory.variance_constants(model, batches, F.cross_entropy)
    assert constants.M == 0
    model[0].weight.grad = torch.ones_like(model[0].weight)
    factors = gradient_variance(model, batches, F.cross_entropy)
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert factors.keys() == {"0.weight", "2.weight"}
    assert constants.M_k == pytest.approx({n: factor - 1 for n, factor in factors.items()})
    for name, weight in (("0.weight", model[0].weight), ("2.weight", model[2].weight)):
        each = torch.stack(
            [
                torch.autograd.grad(F.cross_entropy(model(a[None]), b[None]), weight)[0]
                for a, b in zip(x, y, strict=True)
            ]
        ).flatten(1)
        mean = each.mean(0)
        assert moments[name].gradient_square == pytest.approx(mean.norm().item() ** 2)
        assert moments[name].mean_norm == pytest.approx(each.norm(dim=1).mean().item())
        variance = (each - mean).norm(dim=1).square().mean().item()
        assert moments[name].variance == pytest.approx(variance)
        assert constants.M_k[name] * moments[name].gradient_square == pytest.approx(variance)


def test_factors_where_the_mean_gradient_vanishes():
    """Samples that cancel leave no finite factor; a layer without any gradient needs none."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[1].weight.zero_()
    batch = (torch.tensor([[1.0, 0], [1.0, 0]]).double(), torch.tensor([[1.0], [-1.0]]).double())
    constants = theory.variance_constants(model, [batch], F.mse_loss)
    assert constants == theory.VarianceConstants({"0.weight": 0.0, "1.weight": math.inf}, 0.0)


values = st.just(0.0) | st.floats(1e-4, 1e4)  # a thousandth less of a subnormal number is the same number
tables = st.integers(1, 4).flatmap(
    lambda layers: st.lists(
        st.lists(st.tuples(values, values), min_size=layers, max_size=layers),
        min_size=1,
        max_size=6,
    )
)


@given(pairs=tables, cap=st.just(math.inf) | st.floats(0, 1e3))
def test_fitted_constants_dominate_all_points_and_nothing_smaller_does(pairs, cap):
    variances = [[v for v, _ in point] for point in pairs]
    squares = [[g for _, g in point] for point in pairs]
    M_k, M = theory.fit_variance_constants(variances, squares, cap)
    each = [(k, v, g) for point in pairs for k, (v, g) in enumerate(point)]

    def dominated(factors, constant):
        return all(v <= (factors[k] * g + constant) * (1 + 1e-9) for k, v, g in each)

    assert dominated(M_k, M)
    assert all(0 <= m <= cap for m in M_k)
    scale = max((v for _, v, _ in each), default=0.0)
    for k, m in enumerate(M_k):
        if m * min(g for j, _, g in each if j == k) > 1e-6 * scale:  # above what rounding hides
            assert not dominated([*M_k[:k], m * 0.999, *M_k[k + 1 :]], M)
    if 1e-6 * scale < M:  # no M_k within the cap go with a smaller M
        assert not dominated([min(cap, 1e300)] * len(M_k), M * 0.999)


def test_a_point_without_gradient_sets_M():
    assert theory.fit_variance_constants([[3.0, 1.0], [6.0, 5.0]], [[0.0, 1.0], [2.0, 4.0]]) == ([1.5, 0.5], 3.0)
    assert theory.fit_variance_constants([[3.0, 1.0], [6.0, 5.0]], [[1.0, 1.0], [2.0, 4.0]]) == ([3.0, 1.25], 0.0)
    assert theory.fit_variance_constants([[3.0], [6.0]], [[1.0], [2.0]], largest_factor=1.0) == ([1.0], 4.0)


# ---- the table -------------------------------------------------------------------------------------------------------


def loss_of_logits(outputs, labels):
    return F.cross_entropy(outputs["logits"], labels)


@pytest.mark.parametrize("estimate", [1e-9, 10.0])
def test_rates_are_those_of_the_formulas(estimate, monkeypatch):
    """An estimate of L_g that stopped below an L_k, which L_g never is, gives way to it."""
    monkeypatch.setattr(rates_table, "global_lipschitz_constant", lambda *args, **kwargs: estimate)
    model = Classifier()
    batches = [{"pixel_values": torch.randn(8, 1, 4, 4), "labels": torch.randint(0, 3, (8,))} for _ in range(2)]
    rows = theory.layer_rates(model, iter(batches), loss_of_logits, gamma_scale=2.0, batch_size=4, momentum=0.5)
    assert [row.name for row in rows] == ["conv.weight", "head.weight"]
    L = theory.lipschitz_constants(model, batches, loss_of_logits)
    L_g = max(estimate, *L.values())
    M = theory.variance_constants(model, batches, loss_of_logits).M_k
    assert {row.name: row.L for row in rows} == L
    assert {row.name: row.M for row in rows} == M
    bounds = theory.mnag_learning_rate_bounds(list(L.values()), list(M.values()), L_g, 4, momentum=0.5)
    assert [row.layer_bound for row in rows] == pytest.approx(bounds.per_layer)
    rates = [row.admissible for row in rows]
    assert rates[0] * rows[0].L == pytest.approx(rates[1] * rows[1].L)
    assert bounds.admits(rates)
    assert not bounds.admits([rate * 1.001 for rate in rates])
    for row, weight in zip(rows, (model.conv.weight, model.head.weight), strict=True):
        assert row.weight_norm == pytest.approx(weight.norm().item())
        noisy = row.gradient_norm * math.sqrt(1 + row.M / 4)
        assert row.lars == pytest.approx(2e-3 * row.weight_norm / noisy, rel=1e-5)
        assert row.clars == pytest.approx(2e-2 * row.weight_norm / row.mean_sample_norm, rel=1e-5)
    images, labels = (torch.cat([b[key] for b in batches]) for key in ("pixel_values", "labels"))
    with PerSampleNorms(model) as norms:
        loss_of_logits(model(images), labels).backward()
        sums = norms.sums()
    for row in rows:  # what CLARS would compute in a step on the same samples
        by_optimizer = formulas.layer_learning_rates(2.0, 1e-2, torch.tensor(row.weight_norm), sums[row.name])
        assert row.clars == pytest.approx(by_optimizer.item(), rel=1e-5)


def test_layers_without_curvature_are_unbounded_and_bind_nothing():
    """timm's ResNets begin with residual branches that are multiplied by 0."""
    torch.manual_seed(0)
    model = build_model("resnet10t", 3, channels=[4, 4, 4, 4], stem_width=4)
    batch = {"pixel_values": torch.randn(8, 3, 16, 16), "labels": torch.randint(0, 3, (8,))}
    rows = theory.layer_rates(
        model, [batch], lambda o, y: F.cross_entropy(o.logits, y), gamma_scale=1.0, batch_size=8, iterations=3
    )
    flat = [row for row in rows if row.L == 0]
    assert 0 < len(flat) < len(rows)
    assert all(row.admissible == row.layer_bound == math.inf and row.M == 0 for row in flat)
    assert all(0 < row.admissible <= row.layer_bound < math.inf for row in rows if row.L)
    lines = theory.format_table(rows).splitlines()
    assert len(lines) == len(rows) + 1
    assert len({len(line) for line in lines}) == 1
    assert "inf" in lines[1 + rows.index(flat[0])].split()


def test_a_mistake_at_the_command_line_is_one_line(capsys):
    assert main(["rates", "--dataset", DEMO, "--model_name", "resnet8_cifa"]) == 2
    assert "did you mean resnet8_cifar" in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_command_prints_the_table(capsys, tmp_path):
    flags = ["--dataset", DEMO, "--image_size", "8", "--examples", "12", "--per_device_batch_size", "8"]
    flags += ["--iterations", "2", "--total_batch_size", "64"]
    tiny = '{"channels": [4, 4, 4, 4], "stem_width": 4}'
    run([*flags, "--model_name", "resnet10t", "--model_kwargs", tiny])
    initial = capsys.readouterr().out
    assert re.search(r"^resnet10t, train mode, 12 examples of .*fashion_mnist \(train\)$", initial, re.M)
    assert re.search(r"^timm_model\.fc\.weight( +[0-9.e+-]+){9}$", initial, re.M)

    torch.manual_seed(0)
    build_model("resnet10t", 10, channels=[4, 4, 4, 4], stem_width=4).save_pretrained(tmp_path)
    run([*flags, "--checkpoint", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[1:] == initial.splitlines()[1:]  # the same weights from a file


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": []}, "`batches` is empty"),
        ({"batches": [{"input": torch.ones(2, 4)}]}, "needs its targets under 'labels'"),
        ({"batches": [(torch.full((2, 4), math.inf), torch.zeros(2).long())]}, "the loss is nan"),
        ({"iterations": 0}, "iterations must be a whole number of at least 1, got 0"),
        ({"tolerance": -1.0}, "tolerance must be finite and not negative"),
        ({"loss_fn": lambda outputs, targets: torch.ones(())}, "does not depend on any trainable parameter"),
    ],
)
def test_bad_input_for_curvature(change, message):
    at: dict[str, Any] = {"batches": [(torch.ones(2, 4), torch.zeros(2).long())], "loss_fn": F.cross_entropy}
    for estimate in (theory.lipschitz_constants, theory.global_lipschitz_constant):
        with pytest.raises(UserError, match=message):
            estimate(nn.Linear(4, 3), **(at | change))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "variances has no point"),
        (([[]], [[]]), "variances at a point must be a sequence of numbers"),
        (([[1.0]], [[1.0], [2.0]]), "one entry per layer at every point"),
        (([[1.0], [1.0, 2.0]], [[1.0], [1.0, 2.0]]), "one entry per layer at every point"),
        (([[-1.0]], [[1.0]]), "every entry of variances at a point must be finite and not negative, got -1.0"),
        (([[1.0]], [[math.inf]]), "every entry of gradient_squares at a point must be finite"),
        (([[1.0]], [[1.0]], -1.0), "largest_factor must be a number that is not negative"),
    ],
)
def test_bad_input_for_variance_constants(arguments, message):
    with pytest.raises(UserError, match=message):
        theory.fit_variance_constants(*arguments)


def test_bad_data_for_variance_constants():
    model = nn.Linear(4, 3)
    with pytest.raises(UserError, match="`batches` is empty"):
        theory.variance_constants(model, [], F.cross_entropy)
    with pytest.raises(UserError, match="the gradient of weight is not finite"):
        theory.variance_constants(model, [(torch.full((2, 4), math.inf), torch.zeros(2).long())], F.cross_entropy)
    assert model.weight.grad is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "either --model_name, for initial weights, or --checkpoint"),
        (["--model_name", "resnet10t", "--checkpoint", "."], "either --model_name"),
        (["--model_name", "resnet10q"], "timm .* has no model 'resnet10q'; did you mean"),
        (["--model_name", "resnet10t", "--model_kwargs", "{"], "model_kwargs='{' is not JSON"),
        (["--model_name", "resnet10t", "--model_kwargs", "[]"], r"model_kwargs='\[\]' must be a mapping"),
        (["--checkpoint", "tests"], "checkpoint tests: no saved model"),
        (["--model_name", "resnet10t", "--model_mode", "test"], "model_mode='test' is unknown; choose one of"),
        (["--model_name", "resnet10t", "--examples", "0"], "examples=0 must be at least 1"),
        (["--model_name", "resnet10t", "--split", "dev"], "has no split 'dev': it has"),
        (["--model_name", "resnet10t", "--batch-sise", "1"], "unknown flag --batch-sise"),
    ],
)
def test_bad_input_for_the_command(flags, message):
    with pytest.raises(UserError, match=message):
        run(["--dataset", DEMO, *flags])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma_scale": 0.0}, "gamma_scale must be positive"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"eta_clars": -1.0}, "eta_clars must be positive"),
        ({"loss_fn": lambda outputs, targets: outputs.mean()}, "no layer has curvature"),
    ],
)
def test_bad_input_for_the_table(change, message):
    at: dict[str, Any] = {"gamma_scale": 1.0, "batch_size": 2, "loss_fn": F.cross_entropy}
    batches = [(torch.ones(2, 4), torch.zeros(2).long())]
    with pytest.raises(UserError, match=message):
        theory.layer_rates(nn.Linear(4, 3), batches, **(at | change))
