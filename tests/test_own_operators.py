"""A sampler of a user's own for a function that nothing else sees into."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_clars import UserError, verify_norms
from hf_clars.norms import Operator, PerSampleNorms, Sampler, measured_by


class Kernel(torch.autograd.Function):
    """`x · softplus(w)`, with a derivative of its own."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * F.softplus(weight)

    @staticmethod
    def backward(ctx, d):
        x, weight = ctx.saved_tensors
        return d * F.softplus(weight), (d * x).flatten(0, -2).sum(0) * weight.sigmoid()


@dataclass(frozen=True)
class SoftScaleSampler(Sampler):
    def samples(self, xs: tuple[Tensor, ...], d: Tensor, batch: int) -> Tensor:
        x, weight = xs
        return (x * d).reshape(batch, -1, *self.shape).sum(1) * weight.sigmoid()


def take_apart(x: Tensor, weight: Tensor, *, plain: bool = False) -> Operator | None:
    if plain:
        return None
    sampler = SoftScaleSampler(tuple(weight.shape))
    return Operator(sampler, x, weight, None, lambda x, w, _: Kernel.apply(x, w), kept=(weight.detach(),))


@measured_by(take_apart)
def soft_scale(x: Tensor, weight: Tensor, *, plain: bool = False) -> Tensor:
    return x * F.softplus(weight) if plain else Kernel.apply(x, weight)


class SoftScale(nn.Module):
    def __init__(self, size: int, **options):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))
        self.options = options

    def forward(self, x):
        return soft_scale(x, self.weight, **self.options)


def model_of(scale: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), scale, nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("options", [{}, {"plain": True}])
@pytest.mark.parametrize("shape", [(4, 5), (4, 7, 5)])
def test_a_function_of_ones_own(shape, options):
    model = model_of(SoftScale(6, **options)).double()
    found = verify_norms(model, torch.randn(shape).double(), lambda y, _: y.square().sum(), verbose=False)
    assert set(found.with_status("right")) == {name for name, _ in model.named_parameters()}


def test_without_the_decorator_it_is_named():
    model = model_of(SoftScale(6))
    model[1].forward = lambda x: Kernel.apply(x, model[1].weight)
    with PerSampleNorms(model) as norms:
        model(torch.randn(4, 5)).sum().backward()
        with pytest.warns(UserWarning, match=r"cannot measure 1 parameter\(s\).*1\.weight"):
            norms.denominators()
        assert norms.untracked.keys() == {"1.weight"}


def test_the_function_works_where_nobody_measures():
    x, weight = torch.randn(4, 6), torch.randn(6)
    torch.testing.assert_close(soft_scale(x, weight), x * F.softplus(weight))


def test_used_twice_in_a_pass():
    scale = SoftScale(6).double()
    model = nn.Sequential(nn.Linear(5, 6), scale, nn.Tanh(), scale, nn.Linear(6, 3)).double()
    found = verify_norms(model, torch.randn(4, 5).double(), lambda y, _: y.square().sum(), verbose=False)
    assert found.parameters["1.weight"].status == "right"


class BilinearKernel(torch.autograd.Function):
    """`(x W) ⊙ z`, with a derivative of its own."""

    @staticmethod
    def forward(ctx, x, z, weight):
        ctx.save_for_backward(x, z, weight)
        return (x @ weight) * z

    @staticmethod
    def backward(ctx, d):
        x, z, weight = ctx.saved_tensors
        return (d * z) @ weight.T, d * (x @ weight), x.flatten(0, -2).T @ (d * z).flatten(0, -2)


@dataclass(frozen=True)
class BilinearSampler(Sampler):
    inputs_with_samples = 2

    def sample_dims(self, ndim):
        return ndim - 1

    def samples(self, xs, d, batch):
        x, z = (t.reshape(batch, -1, t.shape[-1]) for t in xs)
        return x.mT @ (d.reshape(batch, -1, d.shape[-1]) * z)


def bilinear_apart(x, z, weight):
    call = lambda x, w, _: BilinearKernel.apply(x, z, w)  # noqa: E731
    return Operator(BilinearSampler(tuple(weight.shape)), x, weight, None, call, kept=(z,))


bilinear = measured_by(bilinear_apart)(BilinearKernel.apply)


class Bilinear(nn.Module):
    def __init__(self, inputs: int, outputs: int, transposed: bool):
        super().__init__()
        self.first, self.second = nn.Linear(5, inputs), nn.Linear(5, outputs)
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.transposed = transposed  # samples stand second

    def forward(self, x):
        x, z = self.first(x), self.second(x)
        if self.transposed:
            return bilinear(x.transpose(0, 1), z.transpose(0, 1), self.weight).transpose(0, 1)
        return bilinear(x, z, self.weight)


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 3), (600, 300)])  # in one run, and in several
@pytest.mark.parametrize("transposed", [False, True])
def test_two_inputs_with_samples(inputs, outputs, transposed):
    model = Bilinear(inputs, outputs, transposed).double()
    batch = torch.randn(4, 7, 5).double()
    found = verify_norms(model, batch, lambda y, _: y.square().sum(), verbose=False)
    assert set(found.with_status("right")) == {name for name, _ in model.named_parameters()}
    with PerSampleNorms(model, mode="subset", norm_samples=2) as norms:
        model(batch).square().mean().backward()
        assert norms.per_sample()["weight"].shape == (2,)


def measured_with(sampler: type[SoftScaleSampler]) -> nn.Module:
    """A model whose `SoftScale` is measured by another sampler."""

    def apart(x, weight):
        call = lambda x, w, _: Kernel.apply(x, w)  # noqa: E731
        return Operator(sampler(tuple(weight.shape)), x, weight, None, call, kept=(weight,))

    function = measured_by(apart)(lambda x, weight: Kernel.apply(x, weight))
    model = model_of(SoftScale(6))
    model[1].forward = lambda x: function(x, model[1].weight)
    return model


@pytest.mark.parametrize("wrong", ["too few", "summed"])
def test_a_sampler_that_returns_another_number_of_samples_is_refused(wrong):
    class Wrong(SoftScaleSampler):
        def samples(self, xs, d, batch):
            found = super().samples(xs, d, batch)
            return found[:1] if wrong == "too few" else found.sum(0)

    model = measured_with(Wrong)
    with PerSampleNorms(model), pytest.raises(UserError, match=r"Wrong returned values of shape .* for 4 samples"):
        model(torch.randn(4, 5)).sum().backward()


def test_a_sampler_whose_sum_is_not_the_gradient_is_named():
    class Wrong(SoftScaleSampler):
        def samples(self, xs, d, batch):
            return 2 * super().samples(xs, d, batch)

    model = measured_with(Wrong)
    with PerSampleNorms(model) as norms:
        model(torch.randn(4, 5)).square().sum().backward()
        with pytest.warns(UserWarning, match="what Wrong measures does not add up to it"):
            norms.denominators()
        assert norms.untracked.keys() == {"1.weight"}


def test_a_sampler_that_is_wrong_shows():
    class Wrong(SoftScaleSampler):
        def samples(self, xs, d, batch):
            return super().samples(xs, d, batch).roll(1, 0)

    model = measured_with(Wrong).double()
    found = verify_norms(model, torch.randn(4, 5).double(), lambda y, _: y.square().sum(), verbose=False)
    assert found.with_status("wrong") == ["1.weight"]
