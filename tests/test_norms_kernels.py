"""The CUDA kernels against each sample's gradient in float64; without a GPU, in Triton's interpreter."""

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from hf_clars.norms import PerSampleNorms, kernels
from hf_clars.norms.kernels import Convolution, depthwise, gram, launch, layout, tiling, weight_gradient

from .helpers.reference import check
from .helpers.slow import slow_but

FEWER = settings(max_examples=settings.default.max_examples // 2)  # the interpreter is slow
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Products of halves are exact in float32, in which sums are taken; float32 itself is TF32 on a GPU.
TOLERANCE = {torch.float16: 1e-5, torch.bfloat16: 1e-5, torch.float32: 5e-3 if DEVICE == "cuda" else 1e-5}


@pytest.fixture(autouse=True, scope="module")
def _interpreted_bfloat16(interpreter):
    """NumPy has no bfloat16, and the interpreter multiplies its bits as whole numbers: widened here."""
    if DEVICE == "cuda":
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    multiply = InterpreterBuilder.create_dot

    def wide(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):
        return multiply(self, wide(a), wide(b), *rest)

    with mock.patch.object(InterpreterBuilder, "create_dot", create_dot):
        yield


@pytest.fixture(autouse=True)
def _launched_as_compiled(monkeypatch):
    """What a first launch compiled depends on its tensors' types, and on whether each begins at 16 bytes: each launch
    that is bound once must go on with the same. And CUDA has fewer programs in a grid's second and third dimension."""
    call = launch.Launch.__call__

    def kind(t):
        if isinstance(t, torch.Tensor):
            return t.dtype, t.data_ptr() % 16 == 0
        return t.base.dtype, tuple(t.block_shape)

    def checked(self, device, *tensors):
        kinds = [kind(t) for t in tensors]
        assert self.__dict__.setdefault("kinds", kinds) == kinds
        assert max(self.grid[1:]) < 1 << 16
        call(self, device, *tensors)

    monkeypatch.setattr(launch.Launch, "__call__", checked)


@st.composite
def convolutions(draw, most=70, is_depthwise=False, folds=(1, 2)):
    """A convolution's weight gradient, and how many samples it is of."""
    groups = draw(st.integers(2, most)) if is_depthwise else draw(st.sampled_from([1, 1, 1, 2]))
    channels = groups if is_depthwise else groups * draw(st.integers(1, most // groups))
    outputs = groups if is_depthwise else groups * draw(st.integers(1, most // groups))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride, dilation, padding = (draw(st.tuples(st.integers(a, 2), st.integers(a, 2))) for a in (1, 1, 0))
    size = [r * (k - 1) + draw(st.integers(1, 9)) for k, r in zip(kernel, dilation, strict=True)]
    samples, fold = draw(st.integers(1, 6)), draw(st.sampled_from(folds))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(samples * fold, channels, *size, generator=generator)
    shape = (outputs, channels // groups, *kernel)
    positions = F.conv2d(x, torch.zeros(shape), None, stride, padding, dilation, groups).shape
    d = torch.randn(positions, generator=generator)
    x, d = x.to(DEVICE, dtype), d.to(DEVICE, dtype)
    layout = draw(st.sampled_from(["channels last", "channels first", "one pixel for all"]))
    if layout == "channels last":
        x, d = (t.contiguous(memory_format=torch.channels_last) for t in (x, d))
    elif layout == "one pixel for all":  # as behind a mean over positions
        d = d[:, :, :1, :1].expand(positions)
    return Convolution(x, d, shape, stride, padding, dilation, groups, ""), samples


def reference(c: Convolution, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`‖c_i‖²` and `Σ_i c_i` in float64, sample by sample."""
    each = []
    for x, d in zip(c.x.double().chunk(samples), c.d.double().chunk(samples), strict=True):
        weight = torch.zeros(c.shape, dtype=torch.float64, device=x.device, requires_grad=True)
        y = F.conv2d(x, weight, None, c.stride, c.padding, c.dilation, c.groups)
        each.append(torch.autograd.grad(y, weight, d)[0])
    stacked = torch.stack(each)
    return stacked.flatten(1).square().sum(1), stacked.sum(0)


def agree(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.shape == expected.shape
    error = (found.double() - expected).norm() / expected.norm().clamp_min(1e-9)
    assert error < TOLERANCE[dtype], error


def check_both(c: Convolution, samples: int, found: tuple[torch.Tensor, torch.Tensor]) -> None:
    """What a kernel found: `‖c_i‖²` and `Σ_i c_i`."""
    for each, expected in zip(found, reference(c, samples), strict=True):
        agree(each, expected, c.x.dtype)


FORMATS = st.sampled_from([torch.contiguous_format, torch.channels_last])


@FEWER
@given(convolutions(), st.sampled_from([1, 3, 132]), FORMATS)
def test_tiles(case, multiprocessors, memory_format):
    c, samples = case
    weight_gradient.plan_of.cache_clear()
    with mock.patch.object(tiling, "MULTIPROCESSORS", multiprocessors):  # pieces of many tiles, or of one
        found = weight_gradient.squares_and_sum(c, samples, memory_format=memory_format)
        again = weight_gradient.squares_and_sum(c, samples, memory_format=memory_format)
    assert found[1].is_contiguous(memory_format=memory_format)
    check_both(c, samples, found)
    assert all(map(torch.equal, found, again))


def made(
    size, weight, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, *, dtype=torch.float32, name="",
    memory_format=torch.contiguous_format,
) -> Convolution:  # fmt: skip
    x = torch.randn(size).to(DEVICE, dtype, memory_format=memory_format)
    d = torch.randn_like(F.conv2d(x, torch.zeros(weight).to(x), None, stride, padding, dilation, groups))
    d = d.contiguous(memory_format=memory_format)
    return Convolution(x, d, weight, stride, padding, dilation, groups, name)


LAST = {"memory_format": torch.channels_last}
SHAPES = {
    **{
        f"{channels} to {outputs}, {kernel}": (
            (2, channels, 9, 7),
            (outputs, channels, kernel, kernel),
            (1, 1),
            padding,
        )
        for channels, outputs in ((3, 40), (20, 130), (130, 20), (140, 135), (65, 64))
        for kernel, padding in ((1, (0, 0)), (3, (1, 1)))
    },
    "every second pixel": ((2, 16, 9, 8), (8, 16, 1, 1), (2, 2), (0, 0)),
    "rows longer than a box": ((2, 5, 3, 150), (6, 5, 3, 3), (1, 1), (1, 1)),
}


QUICK = {"3 to 40, 3", "140 to 135, 1", "every second pixel", "rows longer than a box"}


@pytest.mark.parametrize("name", slow_but(QUICK, SHAPES))
def test_tiles_of_all_shapes(name):
    c = made(*SHAPES[name], **(LAST if name == "every second pixel" else {}))
    check_both(c, 2, weight_gradient.squares_and_sum(c, 2))


@pytest.mark.parametrize(("channels", "outputs"), slow_but([(40, 72)], [(72, 136), (136, 24), (40, 72)]))
@pytest.mark.parametrize(
    ("kernel", "padding", "dilation"), slow_but([(2, 2, 2), (3, 1, 1)], [(1, 0, 1), (3, 1, 1), (3, 0, 2), (2, 2, 2)])
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_boxes_that_the_hardware_loads(channels, outputs, kernel, padding, dilation, dtype):
    places = (1, 1), (padding,) * 2, (dilation,) * 2
    c = made((3, channels, 9, 7), (outputs, channels, kernel, kernel), *places, dtype=dtype, **LAST)
    for t in (c.x, c.d):
        assert layout.loads_boxes(layout.Operand(t.shape, t.stride()), t.element_size(), t.device)
    check_both(c, 3, weight_gradient.squares_and_sum(c, 3))


@pytest.mark.parametrize("channels", slow_but([3, 17], [1, 2, 3, 4, 5, 12, 16, 17]))
@pytest.mark.parametrize(("stride", "padding"), [((2, 2), (3, 2)), ((1, 1), (0, 0)), ((1, 3), (0, 1))])
@pytest.mark.parametrize(
    "memory_format", slow_but([torch.channels_last], [torch.contiguous_format, torch.channels_last])
)
def test_few_channels(channels, stride, padding, memory_format):
    form = {"dtype": torch.float16, "memory_format": memory_format}
    c = made((4, channels, 13, 11), (40, channels, 5, 3), stride, padding, (2, 1), **form)
    assert (layout.folds(c.geometry) > 0) == (channels <= 16)
    found = weight_gradient.squares_and_sum(c, 2, memory_format=memory_format)
    check_both(c, 2, found)
    assert found[1].is_contiguous(memory_format=memory_format)


@FEWER
@given(convolutions(is_depthwise=True), FORMATS)
def test_depthwise(case, memory_format):
    c, samples = case
    found = depthwise.squares_and_sum(c, samples, memory_format=memory_format)
    assert found[1].is_contiguous(memory_format=memory_format)
    check_both(c, samples, found)


@FEWER
@given(convolutions(folds=(1,)))
def test_gram(case):
    c, samples = case
    positions = c.d.shape[2] * c.d.shape[3]
    if positions <= 64:
        agree(gram.squares(c), reference(c, samples)[0], c.x.dtype)


CANCELLING = {  # size, weight, stride, groups
    "a tap": ((3, 70, 4, 4), (70, 70, 1, 1), (1, 1), 1),
    "taps": ((3, 20, 8, 7), (70, 20, 3, 2), (1, 1), 1),
    "strided, in groups": ((3, 6, 9, 9), (4, 3, 2, 2), (2, 1), 2),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", CANCELLING)
def test_gram_of_what_cancels(name, dtype):
    """Inputs far from zero, derivatives that sum to zero over positions; but for one sample."""
    size, weight, stride, groups = CANCELLING[name]
    c = made(size, weight, stride, groups=groups, name="gram")
    d = c.d - c.d.mean((2, 3), keepdim=True)
    d[1] = c.d[1]
    c = replace(c, x=(100 + c.x).to(dtype), d=d.to(dtype))
    found, (expected, _) = kernels.squares(c, 3).double(), reference(c, 3)
    torch.testing.assert_close(found, expected, rtol=10 * TOLERANCE[dtype], atol=0)


def test_the_gradient_has_the_type_that_is_asked_for():
    for groups, name in ((1, "tiles"), (4, "depthwise")):
        c = made((3, 4, 5, 5), (4, 4 // groups, 1, 1), groups=groups, name=name)
        wide, narrow = (kernels.squares_and_sum(c, 3, dtype)[1] for dtype in (torch.float32, torch.float16))
        assert torch.equal(narrow, wide.half())


@pytest.mark.parametrize("name", ["tiles", "depthwise", "gram"])
def test_operands_that_begin_anywhere(name):
    """Of two operands either may begin at 16 bytes, or none."""
    shape = {"tiles": (16, 16, 1, 1), "depthwise": (16, 1, 1, 1), "gram": (16, 16, 1, 1)}[name]
    size = (2, 16, 3, 4)

    def beginning(at):
        memory = torch.randn(8 + 2 * 16 * 3 * 4, device=DEVICE, dtype=torch.float16)
        return memory[at:].as_strided(size, (16 * 3 * 4, 1, 16 * 4, 16))

    for at_x, at_d in ((0, 0), (1, 0), (0, 1), (1, 1)):
        groups = 16 if name == "depthwise" else 1
        c = Convolution(beginning(at_x), beginning(at_d), shape, (1, 1), (0, 0), (1, 1), groups, name)
        agree(kernels.squares(c, 2), reference(c, 2)[0], torch.float16)


@pytest.mark.parametrize("name", ["tiles", "depthwise", "gram"])
def test_a_grid_of_many_samples(name):
    """Of which each is one program's, or shares one."""
    samples, groups = 70_000, 4 if name == "depthwise" else 1
    x, d = torch.empty(samples, 4, 1, 1, device=DEVICE), torch.empty(samples, 4, 1, 1, device=DEVICE)
    c = Convolution(x, d, (4, 4 // groups, 1, 1), (1, 1), (0, 0), (1, 1), groups, name)
    grids = []
    with mock.patch.object(launch.Launch, "__call__", lambda self, *_: grids.append(self.grid)):
        kernels.squares(c, samples)
    assert grids
    assert all(max(grid[1:]) < 1 << 16 for grid in grids)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.BatchNorm2d(16)
        self.rows = nn.Conv1d(16, 20, 3, dilation=2)
        self.mix = nn.Linear(20, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.depthwise(self.stem(x).relu())).relu()
        x = self.mix(self.rows(x.flatten(2)).mT).relu()
        return self.head(x.mean(1))


@pytest.fixture
def _served():
    """The kernels serve tensors of this machine, whatever its device."""
    with mock.patch.object(kernels, "serves", lambda device, dtype, convolution: dtype != torch.float64):
        yield


@pytest.mark.usefixtures("_served")
@pytest.mark.skipif(DEVICE == "cuda", reason="compares in float32, which a GPU multiplies as TF32")
def test_a_network():
    names = []
    choose = kernels.choose

    def noted(*args, **kwargs):
        names.append(choose(*args, **kwargs))
        return names[-1]

    with mock.patch.object(kernels, "choose", noted):
        check(Network(), torch.randn(3, 3, 12, 10), torch.float32)
    assert {"tiles", "depthwise", ""} == set(names)


@pytest.mark.usefixtures("_served")
@pytest.mark.parametrize("mode", ["per_sample", "subset"])
def test_the_gram_form_of_a_layer(mode):
    model, x = nn.Conv2d(128, 128, 3, padding=1, bias=False).to(DEVICE), torch.randn(4, 128, 7, 7, device=DEVICE)
    with (
        PerSampleNorms(model, mode, norm_samples=2) as norms,
        mock.patch.object(gram, "squares", side_effect=gram.squares) as called,
    ):
        model(x).square().sum().backward()
    assert called.called
    d = 2 * model(x).detach()
    c = Convolution(x, d, (128, 128, 3, 3), (1, 1), (1, 1), (1, 1), 1, "")
    chosen = slice(0, 4) if mode == "per_sample" else norms.watch.measurement.subset_of(4)
    agree(norms.per_sample()["weight"].square(), reference(c, 4)[0][chosen], torch.float32)


@pytest.mark.usefixtures("_served")
def test_which_kernel():
    def chosen(shape, positions, groups=1, folds=1, dtype=torch.bfloat16):
        return kernels.choose(torch.empty(1, dtype=dtype), shape, positions, groups, folds, convolution=True)

    assert chosen((64, 3, 7, 7), 112 * 112) == "tiles"
    assert chosen((64, 3, 7, 7), 112 * 112, dtype=torch.float64) == ""
    assert chosen((512, 512, 3, 3), 49) == "gram"
    assert chosen((512, 512, 3, 3), 49, folds=4) == "tiles"  # several images of a sample have products with each other
    assert chosen((32, 128, 3, 3), 49) == "tiles"
    assert chosen((96, 1, 3, 3), 49, groups=96) == "depthwise"
    assert chosen((96, 1, 31, 31), 49, groups=96) == ""  # sums of so many taps find no room in registers
    assert chosen((128, 4, 3, 3), 196, groups=32) == ""
    assert chosen((1000, 2048), 1) == ""  # ‖x‖² ‖d‖²


@pytest.mark.usefixtures("_served")
def test_compiled():
    torch.compiler.reset()
    model, x = nn.Conv2d(16, 24, 3, padding=1), torch.randn(3, 16, 7, 7)
    found = []
    for function in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        with (
            PerSampleNorms(model) as norms,
            mock.patch.object(
                weight_gradient, "squares_and_sum", side_effect=weight_gradient.squares_and_sum
            ) as called,
        ):
            function(x).square().sum().backward()
        assert called.called
        found.append((norms.per_sample()["weight"], model.weight.grad))
        model.zero_grad(set_to_none=True)
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(eager, compiled)


def convolutions_of_all_sizes(memory_format: torch.memory_format) -> nn.Module:
    """With dimensions of one element, whose strides are anything and yet compared, by DDP and by optimizers."""
    layers = [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 1, (2, 1))]
    return nn.Sequential(*layers).to(DEVICE, memory_format=memory_format)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("compiled", "served"),
    slow_but([(False, False), (False, True), (True, True)], itertools.product((False, True), (False, True))),
)
def test_gradients_lie_as_their_weights(request, memory_format, compiled, served):
    if served:
        request.getfixturevalue("_served")
    torch.compiler.reset()
    model = convolutions_of_all_sizes(memory_format)
    function = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    with PerSampleNorms(model):
        loss = function(torch.randn(3, 4, 12, 11, device=DEVICE)).square().sum()
        with AsFaked() as faked:
            loss.backward()
    assert len(faked.compared) == (4 if compiled else 0)
    for parameter in model.parameters():
        assert parameter.grad.stride() == parameter.stride()


class AsFaked(TorchDispatchMode):
    """Compares what `hf_clars::close` returns with what it tells the compiler."""

    def __init__(self) -> None:
        super().__init__()
        self.compared = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.hf_clars.close.default and not isinstance(out[0], FakeTensor):
            with FakeTensorMode() as mode:
                told = func(*tree_map_only(torch.Tensor, mode.from_tensor, args))
            for real, fake in zip(out, told, strict=True):
                assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype)
            self.compared.append(args)
        return out


def test_what_is_bound_once_is_in_the_order_of_the_arguments():
    """A compiled kernel takes its arguments by position alone."""

    def of(channels, weight, groups=1):
        return made((2, channels, 5, 5), weight, padding=(1, 1), groups=groups)

    launches = []

    def noted(self, device, *tensors):
        launches.append((self, len(tensors)))

    with mock.patch.object(launch.Launch, "__call__", noted):
        weight_gradient.squares_and_sum(of(16, (16, 16, 3, 3)), 2)
        weight_gradient.squares_and_sum(of(3, (16, 3, 3, 3)), 2)
        depthwise.squares_and_sum(of(16, (16, 1, 3, 3), 16), 2)
        gram.squares(of(16, (16, 16, 3, 3)))
    assert len(launches) == 7
    for each, tensors in launches:
        names = each.kernel.arg_names
        assert names[tensors + len(each.numbers) :] == list(each.constants)
        assert len(each.grid) == 3


@pytest.mark.parametrize("capability", slow_but([90], [80, 90]))
def test_kernels_compile(capability, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-m", "tests.helpers.compile_kernels", str(capability)],
        capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1], timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    tiles, depthwise, few = ["_weight_gradient", "_add_up"] * 2, ["_depthwise", "_add_up"] * 2, ["_gram_squares"] * 2
    launched = [*tiles * 5, *depthwise * 2, *few * 2]
    assert found.stdout.splitlines() == [f"{name} {capability}" for name in launched]


def test_stages_find_room():
    tile = tiling.tiling_of(128, 128, 1)
    found = {memory: tiling.stages_of(tile, 64, 2, memory << 10) for memory in (64, 99, 163, 227)}
    assert found == {64: 2, 99: 3, 163: 4, 227: 4}  # the least that pipelines; RTX 4090; A100; H100
    assert tiling.stages_of(tile, 64, 4, 227 << 10) == 3
    assert tiling.stages_of(tile, 32, 2, 227 << 10) == 8


def test_a_cpu_is_not_served():
    assert kernels.choose(torch.empty(1), (64, 64, 3, 3), 100, 1, 1, convolution=True) == ""


def test_tf32_as_torch_is_told():
    """In either way to say it; torch refuses to be asked in one what was said in the other."""
    cuda = torch.device("cuda", 0)

    def served(dtype):
        return [kernels.serves(cuda, dtype, convolution) for convolution in (True, False)]

    products, convolutions_ = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = products.fp32_precision, convolutions_.fp32_precision
    try:
        with mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)):
            for precisions in (("tf32", "ieee"), ("ieee", "tf32"), ("tf32", "tf32"), ("ieee", "ieee")):
                convolutions_.fp32_precision, products.fp32_precision = precisions
                assert served(torch.float32) == [each == "tf32" for each in precisions]
                assert served(torch.bfloat16) == [True, True]
                assert served(torch.float64) == [False, False]
    finally:
        products.fp32_precision, convolutions_.fp32_precision = before
    with mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)):
        with torch.backends.cudnn.flags(allow_tf32=False):
            assert served(torch.float32)[0] is False
        with torch.backends.cudnn.flags(allow_tf32=True):
            assert served(torch.float32)[0] is True
