"""Contributions that nearly cancel within a sample: forms that never have `c_i` in hand must not answer with rounding.

Inputs that are far from zero, or gather in far places, and derivatives that sum to zero over positions, as those of
attention's keys do.
"""

import copy
from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_clars import PerSampleNorms
from hf_clars.norms.grad_samples import OperatorSamples, squares_together
from hf_clars.norms.samplers.conv import ConvSampler
from hf_clars.norms.samplers.linear import EmbeddingSampler, LinearSampler


class Standardised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        rows = F.batch_norm(self.weight.reshape(1, self.out_features, -1), None, None, training=True)
        return F.linear(x, rows.view_as(self.weight), self.bias)


LAYERS = {
    "linear": (nn.Linear(64, 64), (16, 64)),
    "of many dimensions": (nn.Linear(64, 64), (4, 4, 64)),
    "standardised": (Standardised(64, 64), (16, 64)),
    "pointwise": (nn.Conv2d(64, 64, 1), (64, 4, 4)),
    "pointwise, in groups": (nn.Conv2d(64, 64, 1, groups=2), (64, 4, 4)),
    "3x3": (nn.Conv2d(64, 64, 3), (64, 5, 5)),
    "of one dimension": (nn.Conv1d(64, 64, 2, stride=2), (64, 12)),
}
SAMPLES = 3


@pytest.fixture(autouse=True)
def _whatever_the_cost(monkeypatch):
    """The Gram form, wherever there is one."""
    monkeypatch.setattr("hf_clars.norms.numerics.costs.gram", lambda *_: 0)
    monkeypatch.setattr(ConvSampler, "for_size", lambda sampler, _: replace(sampler, form="gram"))


def summing_to_zero(d: Tensor, places: int = 1) -> Tensor:
    """A derivative `[B, P, O]`, less its mean over the positions of each place."""
    d = d.unflatten(1, (-1, places))
    return (d - d.mean(1, keepdim=True)).flatten(1, 2)


def norms_of(model: nn.Module, x: Tensor, d: Tensor) -> Tensor:
    with PerSampleNorms(model) as norms:
        model(x).backward(d)
    return norms.per_sample()["weight"].double()


def one_by_one(model: nn.Module, x: Tensor, d: Tensor) -> Tensor:
    each = [torch.autograd.grad(model(x[i : i + 1]), model.weight, d[i : i + 1])[0].norm() for i in range(len(x))]
    return torch.stack(each).double()


@pytest.mark.parametrize("distance", [0, 30, 1000, 30_000])
@pytest.mark.parametrize("name", LAYERS)
def test_as_accurate_as_autograd(name, distance):
    layer, size = LAYERS[name]
    is_linear = isinstance(layer, nn.Linear)
    place = distance * torch.randn(size[-1] if is_linear else (size[0], *[1] * (len(size) - 1)))
    x = place + torch.randn(SAMPLES, *size)
    y = layer(x).detach()
    if is_linear:
        d = summing_to_zero(torch.randn_like(y).flatten(1, -2)).view_as(y)
    else:
        d = summing_to_zero(torch.randn_like(y).flatten(2).mT).mT.reshape(y.shape)
    truth = one_by_one(copy.deepcopy(layer).double(), x.double(), d.double())
    error = (norms_of(layer, x, d) - truth).norm() / truth.norm()
    of_autograd = (one_by_one(layer, x, d) - truth).norm() / truth.norm()
    assert error < 2e-5 + 2 * of_autograd


@pytest.mark.parametrize("distance", [1000, 30_000])
def test_inputs_in_two_places(distance):
    """Less their mean, they are as far from zero as before."""
    layer, place = nn.Linear(64, 64), torch.tensor([distance, -distance]).repeat(8).unsqueeze(1)
    x, d = place + torch.randn(SAMPLES, 16, 64), summing_to_zero(torch.randn(SAMPLES, 16, 64), places=2)
    truth = one_by_one(copy.deepcopy(layer).double(), x.double(), d.double())
    torch.testing.assert_close(norms_of(layer, x, d), truth, rtol=distance * 1e-6, atol=0)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


def test_keys_of_attention():
    model, x = Attention(), 10 + torch.randn(4, 8, 64) / 300
    with PerSampleNorms(model) as norms:
        model(x).square().sum().backward()
    for i, found in enumerate(norms.per_sample()["key.weight"]):
        (alone,) = torch.autograd.grad(model(x[i : i + 1]).square().sum(), model.key.weight)
        torch.testing.assert_close(found, alone.norm(), rtol=5e-3, atol=0)


def test_derivatives_along_a_standardised_weight():
    """What is along it has no part in the norm, and nearly all is."""
    layer = Standardised(64, 1, bias=False)
    x = F.layer_norm(layer.weight.detach(), (64,)) + 1e-3 * torch.randn(SAMPLES, 16, 64)
    d = torch.ones(SAMPLES, 16, 1)
    torch.testing.assert_close(norms_of(layer, x, d), one_by_one(layer, x, d), rtol=1e-3, atol=0)


def test_two_uses():
    """Of a table that is tied to the output layer."""
    ids, x, small = torch.tensor([[1], [2]]), torch.randn(2, 1, 64), 1e-4 * torch.randn(2, 1, 64)
    rows = OperatorSamples(EmbeddingSampler((4, 64)), (ids,), small - x, 2)
    scores = OperatorSamples(LinearSampler((4, 64)), (x,), F.one_hot(ids, 4).float(), 2)
    found = squares_together([rows, scores]).sqrt()
    torch.testing.assert_close(found, small.flatten(1).norm(dim=1), rtol=1e-3, atol=0)


def test_what_does_not_cancel_is_not_formed():
    layer, x = nn.Linear(64, 64), torch.randn(SAMPLES, 16, 64)
    with mock.patch.object(LinearSampler, "samples") as formed:
        norms_of(layer, x, torch.randn(SAMPLES, 16, 64))
        norms_of(layer, x, torch.zeros(SAMPLES, 16, 64))
    assert not formed.called


def test_values_that_are_not_finite_show():
    layer, x = nn.Linear(64, 64), torch.randn(SAMPLES, 16, 64)
    d = torch.randn(SAMPLES, 16, 64)
    d[0, 0, 0] = torch.nan
    found = norms_of(layer, x, d)
    assert found[0].isnan()
    assert found[1:].isfinite().all()


@pytest.mark.parametrize("positions", [1, 4])
def test_no_device_is_waited_for(positions):
    """Elsewhere than on a CPU nobody asks whether a Gram form cancels: it is taken where it cannot."""
    meta = torch.device("meta")
    x = torch.empty(2, positions, 64, device=meta)
    found = LinearSampler((64, 64)).squares((x,), x, 2)
    assert (found is None) == (positions > 1)
    image = torch.empty(2, 64, positions, 1, device=meta)
    sampler = ConvSampler((64, 64, 1, 1), (1, 1), (0, 0), (1, 1), 1, "gram")
    assert (sampler.squares((image,), image, 2) is None) == sampler.fused(image, 2) == (positions > 1)
