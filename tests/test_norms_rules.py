"""Every layer rule against the expanded weight, over shapes, strides, groups and dtypes."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_clars.norms import PerSampleNorms
from hf_clars.norms.grad_samples import BUDGET
from hf_clars.norms.samplers.conv import ConvSampler

from .helpers.reference import check

sizes = st.integers(1, 4)


# torch's own, that it copies
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

dtypes = st.sampled_from([torch.float64, torch.float32])


@given(st.integers(1, 5), st.lists(sizes, max_size=2), sizes, sizes, st.booleans(), dtypes)
def test_linear(batch, positions, inputs, outputs, bias, dtype):
    check(nn.Linear(inputs, outputs, bias=bias), torch.randn(batch, *positions, inputs), dtype)


@given(st.integers(1, 4), st.integers(1, 6), sizes, sizes, dtypes)
def test_transformers_conv1d(batch, length, inputs, outputs, dtype):
    check(Conv1D(outputs, inputs), torch.randn(batch, length, inputs), dtype)


@st.composite
def convolutions(draw, transposed=False):
    spatial = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 3))
    kernel = draw(st.tuples(*[st.integers(1, 3)] * spatial))
    stride = draw(st.tuples(*[st.integers(1, 2)] * spatial))
    dilation = draw(st.tuples(*[st.integers(1, 2)] * spatial))
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    options = {"stride": stride, "dilation": dilation, "groups": groups, "bias": draw(st.booleans())}
    padding = draw(st.tuples(*[st.integers(0, 2)] * spatial))
    if transposed:
        kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[spatial - 1]
        padding = tuple(min(p, d * (k - 1)) for p, d, k in zip(padding, dilation, kernel, strict=True))
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        options["output_padding"] = extra
    else:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1]
        if set(stride) == {1} and draw(st.booleans()):
            padding = draw(st.sampled_from(["same", "valid"]))
        options["padding_mode"] = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    module = kind(inputs, outputs, kernel, padding=padding, **options)
    shape = tuple(
        draw(st.integers(r * (k - 1) + 1, r * (k - 1) + 3)) + 2 for k, r in zip(kernel, dilation, strict=True)
    )
    return module, torch.randn(draw(st.integers(1, 4)), inputs, *shape)


@given(convolutions(), dtypes)
def test_convolution(case, dtype):
    check(*case, dtype)


@given(convolutions(transposed=True), dtypes)
def test_transposed_convolution(case, dtype):
    check(*case, dtype)


@given(convolutions())
def test_convolution_sample_by_sample(case):
    """Whatever the memory budget, the result is the same: here nothing fits, so that each sample goes alone."""
    with mock.patch.dict(BUDGET, cpu=0):
        check(*case)


@pytest.mark.parametrize("form", ["products", "grouped", "rows", "taps", "gram"])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_form_of_a_convolution(form, transposed):
    """Whatever the cost rule chooses, the result is the same: here it has no choice."""

    @given(convolutions(transposed), dtypes)
    def forced(case, dtype):
        module, x = case
        assume(form != "products" or module.groups == 1)
        assume(form not in ("rows", "taps") or (module.weight.shape[1] == 1 and module.weight.ndim < 5))
        assume(form != "taps" or module.weight.shape[0] == module.groups)
        with mock.patch.object(ConvSampler, "for_size", lambda rule, _: replace(rule, form=form)):
            check(module, x, dtype)

    forced()


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("module", [nn.Linear(6, 5), Conv1D(5, 6)])
def test_every_form_of_a_linear_layer(monkeypatch, module, gram):
    monkeypatch.setattr("hf_clars.norms.numerics.costs.gram", lambda *_: 0 if gram else 1 << 60)
    check(module, torch.randn(3, 7, 6))


@pytest.mark.parametrize(
    ("module", "size", "form"),
    [
        (nn.Conv2d(64, 64, 3, padding=1), (24, 24), "grouped"),
        (nn.Conv2d(256, 256, 3, padding=1), (6, 6), "gram"),
        (nn.Conv2d(3, 384, 16, stride=16), (96, 96), "products"),
        (nn.Conv2d(128, 512, 1), (12, 12), "products"),
        (nn.Conv2d(512, 2048, 1), (3, 3), "gram"),
        (nn.Conv2d(96, 96, 3, padding=1, groups=96), (48, 48), "grouped"),
        (nn.Conv2d(96, 96, 7, padding=3, groups=96), (7, 7), "taps"),
        (nn.Conv2d(96, 96, 7, padding=3, groups=96), (24, 24), "rows"),
        (nn.Conv2d(48, 48, 5, stride=2, padding=2, groups=48), (24, 24), "taps"),
        (nn.Conv2d(96, 96, 3, padding=1, groups=96), (2, 2), "taps"),
        (nn.Conv2d(48, 96, 5, padding=2, groups=48), (24, 24), "rows"),
        (nn.Conv1d(64, 64, 4, padding=3, groups=64), (512,), "taps"),
        (nn.Conv1d(16, 32, 10, stride=5), (1000,), "grouped"),
    ],
    ids=str,
)
def test_the_cost_rule_and_large_layers(module, size, form):
    """Real sizes, in float32: the products of one sample are large enough for a call of their own."""
    geometry = tuple(module.weight.shape), module.stride, module.padding, module.dilation, module.groups
    assert ConvSampler(*geometry).for_size(size).form == form
    check(module, torch.randn(3, module.in_channels, *size), torch.float32)


@given(st.integers(1, 4), st.lists(st.integers(1, 6), max_size=2), st.sampled_from([None, 0, 2]))
def test_embedding(batch, positions, padding_idx):
    check(nn.Embedding(4, 3, padding_idx=padding_idx), torch.randint(0, 4, (batch, *positions)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.BatchNorm1d(3), (5, 3)),
        (nn.BatchNorm1d(3), (5, 3, 4)),
        (nn.BatchNorm2d(3), (4, 3, 5, 2)),
        (nn.BatchNorm3d(2), (3, 2, 3, 2, 2)),
        (nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 5, 2)),
        (nn.BatchNorm2d(3, momentum=None), (4, 3, 5, 2)),
        (nn.InstanceNorm1d(3, affine=True), (4, 3, 5)),
        (nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (4, 3, 5, 2)),
        (nn.InstanceNorm3d(2, affine=True), (3, 2, 3, 2, 2)),
        (nn.GroupNorm(2, 4), (3, 4, 5)),
        (nn.LayerNorm(6), (3, 5, 6)),
        (nn.LayerNorm((2, 6), bias=False), (3, 5, 2, 6)),
        (nn.RMSNorm(6), (3, 5, 6)),
        (nn.RMSNorm((2, 3)), (4, 2, 3)),
    ],
    ids=str,
)
def test_norm_weights(module, shape, training):
    nn.init.normal_(module.weight)
    if getattr(module, "running_mean", None) is not None:
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2)
    check(module.train(training), torch.randn(shape))


def test_rows_that_belong_to_samples():
    """A layer that sees k·B rows, sample by sample: windows of Swin, patches laid out along the batch."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.conv, self.norm = nn.Linear(4, 3), nn.Conv1d(5, 2, 3), nn.LayerNorm(3)

        def forward(self, x):
            rows = x.reshape(x.shape[0] * 2, 5, 4)
            return self.conv(self.norm(self.linear(rows))).reshape(x.shape[0], -1)

    check(Windows(), torch.randn(3, 2, 5, 4))


def test_unbatched_inputs_are_one_sample():
    linear, conv = nn.Linear(3, 2).double(), nn.Conv2d(2, 3, 2).double()
    for module, x in ((linear, torch.randn(3).double()), (conv, torch.randn(2, 4, 4).double())):
        with PerSampleNorms(module) as norms:
            module(x).square().sum().backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(norms.per_sample()[name], parameter.grad.norm().reshape(1))


def test_half_precision_norms_are_float32():
    module = nn.Linear(8, 4, dtype=torch.bfloat16)
    with PerSampleNorms(module) as norms:
        module(torch.randn(5, 3, 8, dtype=torch.bfloat16)).float().square().mean().backward()
    assert {t.dtype for t in norms.sums().values()} == {torch.float32}
    assert module.weight.grad.dtype == torch.bfloat16


def test_autocast_keeps_gradients_and_measures_within_half_precision():
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 36, 4))
    x = torch.randn(6, 3, 8, 8)
    with PerSampleNorms(module) as norms:
        module(x).square().mean().backward()
        exact = norms.sums()
        module.zero_grad()
        norms.reset()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = module(x).float().square().mean()
        loss.backward()
        mixed = norms.sums()
    for name, value in exact.items():
        torch.testing.assert_close(mixed[name], value, rtol=0.02, atol=1e-6)
        assert mixed[name].dtype == torch.float32
    assert module[0].weight.grad.dtype == torch.float32
