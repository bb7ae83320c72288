"""Uses at the edge: half precision, failures, partial measurements, copies, parametrised layers."""

import copy
import pickle

import pytest
import torch
from torch import nn

from hf_clars.formulas import trust_ratio
from hf_clars.norms import PerSampleNorms


@pytest.mark.parametrize("size", [100.0, 1e-5])
def test_float16_gram_norms_keep_their_range(size):
    """A loss scale may lift derivatives to where their squares are no float16 any more."""
    module = nn.Linear(256, 256, bias=False)
    x, d = torch.randn(2, 4, 256), size * torch.randn(2, 4, 256)
    with PerSampleNorms(module) as norms:
        module(x).backward(d)
        exact = norms.per_sample()["weight"]
        module.zero_grad()
        with torch.autocast("cpu", torch.float16):
            y = module(x)
        y.backward(d.half())
        torch.testing.assert_close(norms.per_sample()["weight"], exact, rtol=0.05, atol=0)


def test_a_denominator_that_is_not_finite_shows():
    ratio = trust_ratio(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([torch.nan, torch.inf, 2.0, 0.0]))
    assert ratio[0].isnan()
    assert ratio[1:].tolist() == [0.0, 1.0, 1.0]


class Raises(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ZeroDivisionError


def test_a_backward_pass_that_failed_leaves_nothing_behind():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Tanh())
    x = torch.randn(4, 3)
    with PerSampleNorms(model) as norms:
        model(x).sum().backward()
        expected = norms.per_sample()
        with pytest.raises(ZeroDivisionError):
            model(Raises.apply(x.clone().requires_grad_())).sum().backward()
        model.zero_grad()
        norms.reset()
        model(x).sum().backward()
        for name, value in norms.per_sample().items():
            torch.testing.assert_close(value, expected[name])
        assert norms.sums().keys() == {"0.weight", "0.bias"}


def test_a_partly_measured_parameter_does_not_count():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.other = nn.Linear(3, 3), nn.Linear(3, 1)

        def forward(self, x):
            return self.other(self.layer(x)).sum() + 100 * self.layer(x[:3]).sum()

    model = Partly()
    norms = PerSampleNorms(model)
    with pytest.warns(UserWarning, match=r"layer\.weight: .* not known after __getitem__"):
        model(torch.randn(4, 3)).backward()
    assert "layer.weight" in norms.untracked
    assert model.layer.weight not in norms.denominators()
    assert model.other.weight in norms.denominators()
    assert "layer.weight" not in norms.sums()


def test_copies_and_pickles_are_not_measured_and_can_be_measured_themselves():
    model, x = nn.Sequential(nn.Linear(3, 2)), torch.randn(4, 3)
    with PerSampleNorms(model) as norms:
        twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for twin in twins:
            twin(x).sum().backward()
            assert twin[0].weight.grad is not None
        assert norms.sums() == {}
        assert model[0].weight.grad is None
    for twin in twins:
        with PerSampleNorms(twin) as norms:
            assert norms.untracked == {}
            twin(x).sum().backward()
            assert norms.sums().keys() == {"0.weight", "0.bias"}


def test_every_mode_is_found_by_detach_all():
    model = nn.Linear(3, 2)
    for mode in ("per_sample", "subset", "micro_batch"):
        PerSampleNorms(model, mode)
        PerSampleNorms.detach_all(model)
    PerSampleNorms(model).detach()  # which is refused where another is attached


def test_double_weights_under_autocast():
    model = nn.Linear(3, 2).double()
    with PerSampleNorms(model), torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(4, 3).double())


def test_passes_for_other_gradients_do_not_count():
    """An adversarial or saliency pass between micro-batches leaves `weight.grad`, and so its denominator, alone."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(4, 3)
    with PerSampleNorms(model) as norms:
        model(x).square().mean().backward()
        expected = {p: d.clone() for p, d in norms.denominators().items()}
        point = x.clone().requires_grad_()
        torch.autograd.grad(model(point).square().mean(), point)
        model(point).square().mean().backward(inputs=[point])
        for parameter, value in norms.denominators().items():
            torch.testing.assert_close(value, expected[parameter])
        norms.reset()
        torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
        assert norms.sums().keys() == {n for n, _ in model.named_parameters()}


class Scaled(nn.Module):
    """A number of its own type among tensors, such as CLIP's logit scale."""

    def __init__(self, use):
        super().__init__()
        self.scale, self.use = nn.Parameter(torch.tensor(1.3)), use

    def forward(self, x):
        return self.use(x, self.scale)


USES = {
    "x * s": lambda x, s: x * s,
    "s - x": lambda x, s: s - x,
    "x / s": lambda x, s: x / s,
    "exp(s) * x": lambda x, s: s.exp() * x,
    "where": lambda x, s: torch.where(x > 0, x, s),
    "maximum": lambda x, s: torch.maximum(x, s),
    "addcmul": lambda x, s: torch.addcmul(x, x, s),
    "x ** s": lambda x, s: (x.abs() + 0.5) ** s,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("of_x", "of_s"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float64), (torch.float32, torch.float32)],
)
def test_a_number_decides_no_types(use, of_x, of_s):
    """Of a tensor without dimensions, torch takes the value and not the type, and so does what is measured."""
    model = Scaled(USES[use])
    model.scale.data = model.scale.data.to(of_s)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(of_x)
    plain = model(x)
    plain.double().square().sum().backward()
    gradient, model.scale.grad = model.scale.grad, None
    with PerSampleNorms(model) as norms:
        measured = model(x)
        measured.double().square().sum().backward()
        found = norms.per_sample()["scale"]
    assert measured.dtype == plain.dtype == of_x
    assert torch.equal(measured, plain)
    torch.testing.assert_close(model.scale.grad, gradient, rtol=2e-2 if of_x == torch.bfloat16 else 1e-5, atol=0)
    alone = [torch.autograd.grad(model(x[i : i + 1]).double().square().sum(), model.scale)[0].abs() for i in range(5)]
    torch.testing.assert_close(found, torch.stack(alone).to(found), rtol=2e-2, atol=1e-3)


def test_a_number_under_autocast():
    model = nn.Sequential(nn.Linear(6, 5), Scaled(USES["exp(s) * x"]))
    x = torch.randn(4, 6)
    with PerSampleNorms(model) as norms, torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        assert norms.per_sample().keys() == {"0.weight", "0.bias", "1.scale"}
