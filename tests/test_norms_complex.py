"""Complex parameters: their gradients, as torch has them, are products with the input's conjugate."""

import pytest
import torch
from torch import Tensor, nn

from hf_clars import CLARS, PerSampleNorms

pytestmark = pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
COMPLEX = torch.complex128


class Calls(nn.Module):
    """A function of the input and one parameter."""

    def __init__(self, function, *shape: int) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(shape, dtype=COMPLEX))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def layer(kind: type[nn.Module], *args, **kwargs) -> nn.Module:
    return kind(*args, **kwargs, dtype=COMPLEX)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = layer(nn.Linear, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


# How many inputs a sample has, and the model.
MODELS = {
    "linear": ((4,), layer(nn.Linear, 4, 6)),
    "linear, positions": ((5, 4), layer(nn.Linear, 4, 6)),
    "linear, large": ((3, 200), layer(nn.Linear, 200, 200)),
    "linear, twice": ((5, 4), Twice()),
    "Conv1d": ((4, 9), layer(nn.Conv1d, 4, 6, 3, padding=1)),
    "Conv2d": ((4, 6, 6), layer(nn.Conv2d, 4, 6, 3)),
    "Conv2d, pointwise": ((4, 6, 6), layer(nn.Conv2d, 4, 6, 1)),
    "Conv2d, depthwise": ((4, 6, 6), layer(nn.Conv2d, 4, 4, 3, groups=4)),
    "ConvTranspose2d": ((4, 5, 5), layer(nn.ConvTranspose2d, 4, 6, 3, stride=2)),
    "matmul": ((4,), Calls(torch.matmul, 4, 6)),
    "matmul, positions": ((5, 4), Calls(torch.matmul, 4, 6)),
    "addmm": ((4,), Calls(lambda x, w: torch.addmm(w[0], x, w), 4, 6)),
    "einsum, spectral": ((4, 5, 6), Calls(lambda x, w: torch.einsum("bixy,ioxy->boxy", x, w), 4, 3, 5, 6)),
    "product": ((4, 5), Calls(torch.mul, 4, 5)),
    "product, many numbers": ((200, 200), Calls(torch.mul, 200, 200)),
    "one row for all": ((4, 5), Calls(torch.add, 5)),
    "a filter": ((5, 4), Calls(lambda x, w: torch.fft.ifft(torch.fft.fft(x, dim=1) * w, dim=1), 5, 1)),
}
SAMPLES = 3


def loss(y: Tensor) -> Tensor:
    return (y.tanh().abs().square() + y.real).flatten(1).mean(1).sum()


@pytest.mark.parametrize("dtype", [torch.complex64, COMPLEX])
@pytest.mark.parametrize("name", MODELS)
def test_norms_and_gradients(name, dtype):
    size, model = MODELS[name]
    model.to(dtype).zero_grad()
    x = torch.randn(SAMPLES, *size, dtype=dtype)
    parameters = dict(model.named_parameters())
    each = [torch.autograd.grad(loss(model(x[i : i + 1])), list(parameters.values())) for i in range(SAMPLES)]
    with PerSampleNorms(model) as norms:
        optimizer = CLARS(model.parameters(), lr=0.0, norms=norms)
        loss(model(x)).backward()
        measured, sums = norms.per_sample(), norms.sums()
        optimizer.step()
    assert norms.untracked == {}
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == COMPLEX else {"rtol": 1e-4, "atol": 1e-6}
    for (name, parameter), own in zip(parameters.items(), zip(*each, strict=True), strict=True):
        gradients = torch.stack(own)
        truth = gradients.to(COMPLEX).flatten(1).norm(dim=1).to(dtype.to_real())
        torch.testing.assert_close(measured[name], truth, **tolerance)
        torch.testing.assert_close(sums[name], truth.sum(), **tolerance)
        torch.testing.assert_close(parameter.grad, gradients.sum(0), **tolerance)


def test_a_use_that_is_not_watched_is_noticed():
    """In the imaginary part of the gradient, too."""
    model = Calls(torch.matmul, 4, 6)
    with PerSampleNorms(model) as norms:
        (loss(model(torch.randn(SAMPLES, 4, dtype=COMPLEX))) + model.weight.imag.sum()).backward()
        with pytest.warns(UserWarning, match="weight: its gradient, or part of it"):
            norms.denominators()
    assert norms.untracked.keys() == {"weight"}


def test_real_and_complex_parameters_together():
    model = nn.Sequential(nn.Linear(4, 4), Calls(lambda x, w: (x * w).abs(), 4).to(torch.complex64), nn.Linear(4, 2))
    with PerSampleNorms(model) as norms:
        model(torch.randn(SAMPLES, 4)).square().sum().backward()
        found = norms.denominators()
    assert norms.untracked == {}
    assert {denominator.dtype for denominator in found.values()} == {torch.float32}
    assert len(found) == 5
