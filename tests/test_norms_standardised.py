"""Standardised weights: measured in closed form, as exactly as by way of autograd."""

import copy
from unittest import mock

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from hf_clars import PerSampleNorms

from .helpers.verdicts import assert_right


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised; `gain` makes the output as large as one wants."""

    def __init__(self, *args, gain: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.rand(self.out_channels) + 0.5) if gain else None

    def standardised(self):
        gain = None if self.gain is None else (self.gain * 0.3).view(-1)
        rows = self.weight.reshape(1, self.out_channels, -1)
        return F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6).reshape_as(
            self.weight
        )

    def forward(self, x):
        return F.conv2d(x, self.standardised(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Shared(Standardised):
    """One standardised weight, used twice."""

    def forward(self, x):
        u = self.standardised()
        return F.conv2d(F.conv2d(x, u, padding=1).tanh(), u, padding=1)


class Elsewhere(Standardised):
    """The weight has a part in the gain, too, so that the closed form is not the whole derivative."""

    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        u = F.batch_norm(rows, None, None, weight=rows.square().mean((0, 2)), training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, u.reshape_as(self.weight), padding=1)


class Doubled(Standardised):
    """A hook on the standardised weight changes its gradient."""

    def forward(self, x):
        u = self.standardised()
        u.register_hook(lambda d: 2 * d)
        return F.conv2d(x, u, padding=1)


class Mixed(Standardised):
    """Each number of the gain is computed from all of a parameter."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mixed = nn.Parameter(torch.rand(self.out_channels) + 1)

    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        u = F.batch_norm(rows, None, None, weight=self.mixed.softmax(0), training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, u.reshape_as(self.weight), padding=1)


class Rows(nn.Linear):
    """A linear layer whose weight is standardised in rows that are not its outputs', or in such."""

    def __init__(self, inputs, outputs, rows):
        super().__init__(inputs, outputs)
        self.rows = rows

    def forward(self, x):
        u = F.batch_norm(self.weight.reshape(1, self.rows, -1), None, None, training=True)
        return F.linear(x, u.view_as(self.weight), self.bias)


MODELS = {
    "mixed gain": Mixed(3, 4, 3),
    "3x3": Standardised(3, 4, 3, padding=1),
    "gain, bias, strided": Standardised(3, 4, 3, stride=2, gain=True),
    "pointwise": Standardised(3, 5, 1, gain=True),
    "grouped": nn.Sequential(nn.Conv2d(3, 4, 1), Standardised(4, 6, 3, groups=2, gain=True)),
    "few positions": nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(3, 64, 1), Standardised(64, 130, 1, gain=True)),
    "few positions, 3x3": nn.Sequential(
        nn.AdaptiveAvgPool2d(2), nn.Conv2d(3, 64, 1), Standardised(64, 130, 3, padding=1, groups=2, gain=True)
    ),
    "channels last": Standardised(3, 4, 3, gain=True).to(memory_format=torch.channels_last),
    "twice": nn.Sequential(Standardised(3, 4, 3), nn.ReLU(), Standardised(4, 2, 3, gain=True)),
    "shared": Shared(3, 3, 3),
    "gain of the weight itself": Elsewhere(3, 4, 3),
    "timm's": nn.Sequential(timm.layers.ScaledStdConv2d(3, 6, 3), nn.SiLU(), timm.layers.StdConv2d(6, 4, 3)),
    "timm's, same": nn.Sequential(
        timm.layers.ScaledStdConv2dSame(3, 6, 3), timm.layers.StdConv2dSame(6, 4, 3, stride=2)
    ),
}


@pytest.mark.parametrize("rows", [1, 2, 64, 128])
@pytest.mark.parametrize("positions", [(), (3,), (2, 2)])
def test_linear_layers(rows, positions):
    assert_right(Rows(40, 64, rows), torch.randn(4, *positions, 40, dtype=torch.float64))


def test_inputs_far_from_zero():
    """Their mean has no part in the norm, and must not cost it its precision."""
    layer, x = Rows(256, 256, 256), 100 + torch.randn(4, 256)
    found = {}
    for dtype in (torch.float32, torch.float64):
        model = copy.deepcopy(layer).to(dtype)
        with PerSampleNorms(model) as norms:
            model(x.to(dtype)).square().mean().backward()
        found[dtype] = norms.per_sample()["weight"].double()
    torch.testing.assert_close(found[torch.float32], found[torch.float64], rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("few", [False, True])
def test_half_precision(dtype, autocast, few):
    side = 2 if few else 9
    model = nn.Sequential(Standardised(6, 64, 3, padding=1, gain=True), nn.ReLU(), Standardised(64, 64, 1, gain=True))
    x, found = torch.randn(4, 6, side, side), {}
    for half in (False, True):
        low = half and not autocast
        network, images = (copy.deepcopy(model).to(dtype), x.to(dtype)) if low else (model, x)
        with PerSampleNorms(network) as norms, torch.autocast("cpu", dtype, enabled=half and autocast):
            network(images).float().square().mean().backward()
        found[half] = {name: norm.float() for name, norm in norms.per_sample().items()}
    assert found[True].keys() == found[False].keys()
    for name, norm in found[False].items():
        torch.testing.assert_close(found[True][name], norm, rtol=0.1, atol=1e-3 * float(norm.max()))


@pytest.mark.parametrize("few", [False, True])
def test_hooks_on_parameters_see_gradients_alone(few):
    model, calls = Standardised(6, 8, 1, gain=True), []
    for p in model.parameters():
        p.register_hook(calls.append)
    with PerSampleNorms(model):
        model(torch.randn(4, 6, 2 if few else 9, 2 if few else 9)).square().mean().backward()
    assert len(calls) == 3


@pytest.mark.parametrize("name", MODELS)
def test_norms_are_right(name):
    assert_right(MODELS[name].double(), torch.randn(4, 3, 7, 7, dtype=torch.float64))


@pytest.mark.parametrize("layer", ["ScaledStdConv2d", "StdConv2d", "ScaledStdConv2dSame", "StdConv2dSame"])
def test_timms_layers_are_recognised(layer):
    """The closed form leans on names of autograd's nodes; without it, a step of an NFNet takes twice as long."""
    model = nn.Sequential(getattr(timm.layers, layer)(3, 6, 3), nn.Flatten(1))
    with PerSampleNorms(model), mock.patch.object(torch.autograd, "grad", side_effect=torch.autograd.grad) as taken:
        model(torch.randn(4, 3, 7, 7)).square().mean().backward()
    assert model[0].weight not in {call.args[1] for call in taken.call_args_list}


def test_a_hook_on_the_weight_is_called():
    layer, x = Doubled(3, 4, 3, bias=False).double(), torch.randn(5, 3, 6, 6, dtype=torch.float64)
    with PerSampleNorms(layer) as norms:
        layer(x).square().mean().backward()
    doubled = norms.per_sample()["weight"]
    plain = Standardised(3, 4, 3, padding=1, bias=False).double()
    plain.load_state_dict(layer.state_dict())
    with PerSampleNorms(plain) as norms:
        plain(x).square().mean().backward()
    torch.testing.assert_close(doubled, 2 * norms.per_sample()["weight"])


def test_a_gradient_for_the_weight_that_is_computed():
    """`torch.autograd.grad` for `u` itself, of which nothing is measured then, and whose gradient comes from here."""
    layer, x = Standardised(3, 4, 3).double(), torch.randn(5, 3, 6, 6, dtype=torch.float64)
    kept = []

    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            kept.append(self.layer.standardised())
            return F.conv2d(x, kept[-1])

    model = Keeping()
    (expected,) = torch.autograd.grad(model(x).square().mean(), kept[-1])
    with PerSampleNorms(model) as norms:
        (found,) = torch.autograd.grad(model(x).square().mean(), kept[-1])
        assert not norms.sums()
    torch.testing.assert_close(found, expected)


def test_gradients_are_as_without():
    layer, x = Standardised(3, 4, 3, gain=True).double(), torch.randn(5, 3, 6, 6, dtype=torch.float64)
    layer(x).square().mean().backward()
    expected = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    with PerSampleNorms(layer):
        layer(x).square().mean().backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-10, atol=1e-12)


def test_under_autocast():
    layer, x = Standardised(3, 8, 3, gain=True), torch.randn(5, 3, 6, 6)
    found = {}
    for half in (False, True):
        with PerSampleNorms(layer) as norms, torch.autocast("cpu", torch.bfloat16, enabled=half):
            layer(x).float().square().mean().backward()
        found[half] = norms.per_sample()["weight"]
        layer.zero_grad()
    torch.testing.assert_close(found[True], found[False], rtol=0.05, atol=0)
