"""Torch's own layers are measured without looking at what they call, and as if it were looked at."""

import contextlib
import types
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

from hf_clars.norms import PerSampleNorms
from hf_clars.norms.fast_path import Layer


class Own(nn.Module):
    """The same functions, called by a forward of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        weight, bias = self.layer.weight, self.layer.bias
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[weight.ndim - 2]
        return function(x, weight, bias, self.layer.stride, self.layer.padding, self.layer.dilation, self.layer.groups)


LAYERS = [
    (lambda: nn.Linear(6, 5), (4, 6)),
    (lambda: nn.Linear(6, 5, bias=False), (4, 3, 6)),
    (lambda: nn.Linear(6, 5), (8, 3, 6)),  # two rows a sample
    (lambda: nn.Conv1d(4, 6, 3, stride=2, groups=2), (4, 4, 9)),
    (lambda: nn.Conv2d(3, 8, 3, padding=1, bias=False), (4, 3, 7, 6)),
    (lambda: nn.Conv2d(4, 4, (3, 1), dilation=(1, 2), groups=4), (4, 4, 7, 6)),
    (lambda: nn.Conv3d(2, 3, 2), (4, 2, 4, 5, 3)),
]


def measure(model: nn.Module, x: torch.Tensor, *, uses: int = 1, bias_and_norm: bool = True, autocast: bool = False):
    """Norms and gradients of a network around the model, and how often `Layer` answered."""
    answers = []
    run = Layer.run

    def noted(self, *args):
        answers.append(run(self, *args))
        return answers[-1]

    network = nn.Sequential(nn.Identity(), model)
    rows = x.unflatten(0, (4, -1))

    def forward(rows):
        x = rows.flatten(0, 1)
        for _ in range(uses):
            y = model(x)
        return y

    network.forward = forward
    with mock.patch.object(Layer, "run", noted), PerSampleNorms(network, bias_and_norm=bias_and_norm) as norms:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            total = sum(network(rows).float().square().sum() for _ in range(2)) / 2
        total.backward()
        found = {name.split(".")[-1]: norm for name, norm in norms.per_sample().items()}
        assert not norms.untracked
    gradients = {name.split(".")[-1]: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found, gradients, sum(answer is not None for answer in answers)


@pytest.mark.parametrize(("make", "shape"), LAYERS)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias_and_norm", [False, True])
def test_as_if_it_were_looked_at(make, shape, autocast, bias_and_norm):
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    norms, gradients, answered = measure(layer, x, autocast=autocast, bias_and_norm=bias_and_norm)
    assert answered == 2
    layer.zero_grad()
    expected_norms, expected, of_own = measure(Own(layer), x, autocast=autocast, bias_and_norm=bias_and_norm)
    assert of_own == 0
    assert norms
    torch.testing.assert_close((norms, gradients), (expected_norms, expected), rtol=0, atol=0)


def test_what_is_not_torch_s_own():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    class Padded(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(F.pad(x, (1, 0, 1, 0)), weight, bias)

    class Named(nn.Conv2d):
        pass

    assert Layer.of(Named(3, 4, 3)) is not None
    for module in (
        Standardised(3, 4, 3),
        Padded(3, 4, 3),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(3, 4, 3),
        nn.Embedding(3, 4),
    ):
        assert Layer.of(module) is None
    wrapped = nn.Conv2d(3, 4, 3)
    own = wrapped.forward
    wrapped.forward = lambda x: own(x) * 2
    x = torch.randn(2, 3, 5, 5)
    with PerSampleNorms(nn.Sequential(wrapped)) as norms:
        norms.model(x).sum().backward()
        doubled = norms.per_sample()["0.weight"]
    wrapped.zero_grad()
    wrapped.forward = own
    with PerSampleNorms(nn.Sequential(wrapped)) as norms:
        norms.model(x).sum().backward()
        torch.testing.assert_close(doubled, 2 * norms.per_sample()["0.weight"])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own, that it copies
def test_padding_by_name():
    """`padding="same"` that is uneven is a padding of its own before the convolution."""
    layer, x = nn.Conv2d(3, 4, 2, padding="same"), torch.randn(4, 3, 6, 6)
    norms, gradients, _ = measure(layer, x)
    layer.zero_grad()
    expected, own, _ = measure(Own(layer), x)
    torch.testing.assert_close(norms["weight"], expected["weight"])
    torch.testing.assert_close(gradients["weight"], own["weight"])


def compared(layer: nn.Module, x: torch.Tensor, change=lambda: None) -> dict[str, torch.Tensor]:
    """Output, norms and gradients of a pass after `change` are those of watching what the layer calls; the norms."""
    model, found = nn.Sequential(nn.Identity(), layer), []
    with PerSampleNorms(model, bias_and_norm=False) as norms:
        model(x).square().sum().backward()
        change()
        for watched in (False, True):
            norms.reset()
            model.zero_grad()
            with mock.patch.object(Layer, "run", return_value=None) if watched else contextlib.nullcontext():
                y = model(x)
            y.square().sum().backward()
            gradients = [p.grad for p in layer.parameters() if p.grad is not None]
            found.append((y, norms.per_sample(), [each.clone() for each in gradients]))
    torch.testing.assert_close(*found)
    return found[0][1]


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_bias_that_is_computed_from_others(when):
    """It is no parameter of the layer, and not absent either."""
    for make, shape in ((lambda: nn.Linear(6, 5), (4, 6)), (lambda: nn.Conv2d(3, 4, 3), (4, 3, 5, 5))):
        for compute in (
            lambda layer: prune.random_unstructured(layer, "bias", 0.5),
            lambda layer: parametrize.register_parametrization(layer, "bias", Doubled()),
            lambda layer: (delattr(layer, "bias"), layer.register_buffer("bias", torch.ones(layer.weight.shape[0]))),
        ):
            layer, x = make(), torch.randn(shape)
            if when == "before":
                compute(layer)
                expected = layer(x)
                with PerSampleNorms(nn.Sequential(layer)) as norms:
                    torch.testing.assert_close(norms.model(x), expected)
                compared(layer, x)
            else:
                compared(layer, x, lambda layer=layer, compute=compute: compute(layer))


def padded(self, x, weight, bias):
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), weight, bias)


def circular(layer):
    layer.padding_mode, layer._reversed_padding_repeated_twice = "circular", [1, 1, 1, 1]


CHANGES = {
    "stride": lambda layer: setattr(layer, "stride", (2, 2)),
    "stride in a list": lambda layer: setattr(layer, "stride", [2, 2]),
    "padding": lambda layer: setattr(layer, "padding", (0, 0)),
    "padding as a number": lambda layer: setattr(layer, "padding", 2),
    "padding of another kind": circular,
    "another weight": lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn(4, 3, 2, 2))),
    "a frozen bias": lambda layer: layer.bias.requires_grad_(False),
    "a frozen weight": lambda layer: layer.weight.requires_grad_(False),
    "another function": lambda layer: setattr(layer, "_conv_forward", types.MethodType(padded, layer)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_convolution_that_is_changed(change):
    """After a first pass, and before it."""
    layer = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(4, 3, 5, 5)
    for norms in (compared(layer, x, lambda: change(layer)), compared(layer, x)):
        assert ("1.weight" in norms) == layer.weight.requires_grad


def test_a_frozen_layer_is_not_measured():
    layer = nn.Conv2d(3, 4, 3).requires_grad_(False)
    with PerSampleNorms(nn.Sequential(layer, nn.Flatten(), nn.Linear(36, 2))) as norms:
        norms.model(torch.randn(4, 3, 5, 5, requires_grad=True)).sum().backward()
        assert norms.per_sample().keys() == {"2.weight", "2.bias"}


def test_a_class_that_was_changed():
    def forward(self, x):
        return F.linear(x, self.weight, self.bias) * 2

    def conv_forward(self, x, weight, bias):
        return F.conv2d(x, weight, bias) * 2

    with mock.patch.object(nn.Linear, "forward", forward):
        assert Layer.of(nn.Linear(3, 2)) is None
    with mock.patch.object(nn.Conv2d, "_conv_forward", conv_forward):
        assert Layer.of(nn.Conv2d(3, 4, 3)) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
        lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
        lambda layer: setattr(layer, "bias", None),
    ],
)
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: nn.Conv1d(3, 4, 2)])
def test_parameters_that_leave_their_layer(change, make):
    """While it is measured: those that live on elsewhere are measured on."""
    layer, x = make(), torch.randn(4, 3, 6)
    model = nn.Sequential(nn.Identity(), layer)

    def step():
        model.zero_grad()
        y = model(x)
        y.square().sum().backward()
        return y, [p.grad for p in layer.parameters()]

    with PerSampleNorms(model) as norms:
        step()
        change(layer)
        norms.reset()
        found = step(), sorted(norm.sum() for norm in norms.sums().values())
        assert len(norms.denominators()) == len(list(layer.parameters()))
        assert not norms.untracked
    with PerSampleNorms(model) as norms:
        expected = step(), sorted(norm.sum() for norm in norms.sums().values())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found[0], step())


@pytest.mark.parametrize("mode", ["per_sample", "micro_batch"])
def test_a_parameter_that_is_gone(mode):
    layer, x = nn.Linear(6, 5), torch.randn(4, 6)
    model = nn.Sequential(nn.Identity(), layer)
    with PerSampleNorms(model, mode) as norms:
        model(x).sum().backward()
        del layer.weight
        layer.weight_v = nn.Parameter(torch.randn(5, 6))
        layer.register_forward_pre_hook(lambda layer, _: setattr(layer, "weight", 2 * layer.weight_v))
        model.zero_grad()
        model(x).sum().backward()
        with pytest.warns(UserWarning, match="1.weight_v: it joined the model after"):
            assert layer.weight_v not in norms.denominators()
    assert "forward" not in layer.__dict__


def test_attributes_of_a_linear_layer_that_are_its_own():
    class Strided(nn.Linear):
        stride = 2

        def __init__(self, *args):
            super().__init__(*args)
            self.stride = 3

    compared(Strided(6, 5), torch.randn(4, 6))


def test_kinds_do_not_pile_up():
    layer = nn.Linear(3, 2)
    model = nn.Sequential(layer, nn.Identity())
    with PerSampleNorms(model) as norms:
        for length in range(1, 200):
            norms.model(torch.randn(2, length, 3)).sum().backward()
        assert 0 < len(layer.forward.layer.kinds) <= 64
