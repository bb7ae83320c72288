"""The fused `step()` against the plain forms in float64; without a GPU, in Triton's interpreter."""

import copy
import math
import os
import pickle
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hf_clars import PerSampleNorms
from hf_clars.errors import UserError
from hf_clars.optimizers import CLARS, LARS, NAG, AuthorsCLARS, fused
from hf_clars.optimizers.fused import bucket, kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="of the CUDA runtime")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(5, 4, 3, 2), (12, 11), (1, 50), (0, 3), (90,), (), (64,)]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """So that few elements are several chunks, with and without a remainder."""
    monkeypatch.setattr(bucket, "CHUNK", 64)
    monkeypatch.setattr(bucket, "PARTIALS", 2)
    monkeypatch.setattr(bucket, "WARPS", 1)


@pytest.fixture(autouse=True, scope="module")
def _interpreted_bfloat16(interpreter):
    """The interpreter cuts float32 off where a GPU rounds it to the nearest bfloat16."""
    if DEVICE == "cuda":
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    cast = InterpreterBuilder.cast_impl

    def cast_impl(self, source, dtype):
        if (source.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, dtype)
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.uint16)
        return TensorHandle(rounded.numpy(), tl.bfloat16)

    with mock.patch.object(InterpreterBuilder, "cast_impl", cast_impl):
        yield


class Launches:
    """Stands for a kernel, counts its launches and makes them."""

    def __init__(self, kernel):
        self.kernel, self.options = kernel, []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.options.append(options)
            return self.kernel[grid](*arguments, **options)

        return launch


@pytest.fixture
def launches(monkeypatch):
    counted = {name: Launches(getattr(kernels, name)) for name in ("update", "rates", "sums_of_squares")}
    for name, counter in counted.items():
        monkeypatch.setattr(kernels, name, counter)
    return counted


def weight_sums(launches) -> int:
    return sum(not options["GRADIENTS"] for options in launches["sums_of_squares"].options)


def weights(*shapes, dtype=torch.float32, seed=0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(DEVICE, dtype)) for shape in shapes]


def give_gradients(layers, seed=0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for w in layers:
        w.grad = torch.empty_like(w).copy_(torch.randn(w.shape, generator=generator))


def copies(layers, dtype=None) -> list[nn.Parameter]:
    return [nn.Parameter(w.detach().clone().to(dtype or w.dtype)) for w in layers]


# --- what it computes --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    shapes=st.lists(st.sampled_from([*SHAPES, (3, 64), (5, 7, 3)]), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    method=st.sampled_from(["clars", "lars", "mnag"]),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    decay=st.sampled_from([0.0, 1e-2]),
    bias_and_norm=st.sampled_from(["eta", "mlperf", "authors", "paper"]),
    in_denominator=st.booleans(),
    uniform=st.booleans(),
    tensor_rate=st.booleans(),
    absent=st.integers(0, 63),
)
def test_steps_are_those_in_float64(
    shapes, dtype, method, momentum, decay, bias_and_norm, in_denominator, uniform, tensor_rate, absent
):
    """Each step, from the same weights and momentum: rounded once, where the plain form in float64 has the result."""
    layers = weights(*shapes, dtype=dtype)
    twins = copies(layers, torch.float64)
    norms, exact = {}, {}
    options = {"momentum": momentum, "weight_decay": decay}
    if method != "mnag":
        options |= {"eta": 0.1, "bias_and_norm": bias_and_norm, "decay_in_denominator": in_denominator}
    kind = {"clars": CLARS, "lars": LARS, "mnag": NAG}[method]
    given_norms = [{"norms": norms}, {"norms": exact}] if method == "clars" else [{}, {}]
    rate = torch.tensor(0.5, device=DEVICE) if tensor_rate else 0.5
    ours = kind(layers, rate, fused=True, **options, **given_norms[0])
    reference = kind(twins, 0.5, fused=False, **options, **given_norms[1])
    for step in range(3):
        give_gradients(layers, step)
        for k, (w, t) in enumerate(zip(layers, twins, strict=True)):
            t.grad = w.grad.double()
            if k % 2 == 0 or k == absent:
                norms[w] = w.grad.float().norm() * 3
                exact[t] = norms[w].double()
            if absent >> k & 1 and step == 1:
                w.grad = t.grad = None
        if method == "clars" and not norms:
            return
        for optimizer in (ours, reference):
            optimizer.param_groups[0]["uniform"] = uniform if step < 2 else not uniform
            optimizer.step()
        for w, t in zip(layers, twins, strict=True):
            assert (w in ours.layer_rates()) == (t in reference.layer_rates())
            if w in ours.layer_rates():
                assert ours.layer_rates()[w].item() == pytest.approx(reference.layer_rates()[t].item(), rel=2e-6)
            same(w, t)
            assert ours.state.get(w, {}).keys() == reference.state.get(t, {}).keys()
            with torch.no_grad():
                t.copy_(w)
                for name, value in ours.state.get(w, {}).items():
                    same(value, reference.state[t][name])
                    reference.state[t][name].copy_(value)


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To a rounding of the result, and to what rounding terms in float32 leaves where they cancel."""
    rounding = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[found.dtype]
    torch.testing.assert_close(found.detach().double(), expected.detach(), rtol=rounding * 1.01, atol=3e-6)


def test_zero_norms_and_what_is_not_finite(recwarn):
    """Ratio 1 where either norm is zero; NaN and infinity show, and only where they are."""
    zero, _, nan, _, sound = layers = weights(*[(9, 9)] * 5)
    with torch.no_grad():
        zero.zero_()
        nan[3, 3] = math.nan
    twins = copies(layers)
    for group in (layers, twins):
        give_gradients(group)
        group[1].grad.zero_()
        group[3].grad[2, 2] = math.inf
    optimizers = [LARS(layers, 0.5, eta=0.1, fused=True), LARS(twins, 0.5, eta=0.1, fused=False)]
    for optimizer in optimizers:
        optimizer.step()
    for w, t in zip(layers, twins, strict=True):
        torch.testing.assert_close(w, t, equal_nan=True)
        rates = [optimizer.layer_rates()[p] for optimizer, p in zip(optimizers, (w, t), strict=True)]
        torch.testing.assert_close(*rates, equal_nan=True)
    assert sound.isfinite().all()
    assert optimizers[0].layer_rates()[zero].item() == pytest.approx(0.05)
    assert not any("divide" in str(warning.message) for warning in recwarn)


def test_rates_below_the_range_of_half_precision():
    (w,) = weights((8,), dtype=torch.float16)
    with torch.no_grad():
        w.zero_()
    w.grad = torch.full_like(w, 3e4)
    LARS([w], 1e-8, bias_and_norm="mlperf", fused=True).step()
    torch.testing.assert_close(w.detach().float().cpu(), torch.full((8,), -3e-4 * 1.9), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("full_size", [False, True])
def test_chunks_of_any_size(monkeypatch, dtype, full_size):
    """Chunks as they are on a GPU; and one element more or less than whole chunks."""
    if full_size:
        monkeypatch.undo()
    size = bucket.CHUNK
    layers = weights((1, size - 1), (1, size), (1, size + 1), (3, size), dtype=dtype)
    twins = copies(layers, torch.float64)
    give_gradients(layers)
    for w, t in zip(layers, twins, strict=True):
        t.grad = w.grad.double()
    LARS(layers, 0.5, weight_decay=0.1, fused=True).step()
    LARS(twins, 0.5, weight_decay=0.1, fused=False).step()
    for w, t in zip(layers, twins, strict=True):
        same(w, t)


def test_offsets_beyond_32_bits():
    """A chunk whose elements begin 5 · 2^31 behind the address that the table has for its tensor."""
    chunk, first = 64, 5 * 2**31 // 64
    w, g, u = (torch.randn(70, device=DEVICE) for _ in range(3))
    expected = w + -0.5 * g * 1.9 + 0.81 * u
    begin = [t.data_ptr() - 4 * first * chunk for t in (w, g, u)]
    addresses = torch.tensor([*begin, 0], device=DEVICE)
    layout = torch.tensor([first * chunk + 70, -first, -first + 2, 0, 0], device=DEVICE)
    gammas, partials = torch.tensor([0.5], device=DEVICE), torch.zeros(2, device=DEVICE)
    options = {"DTYPE": bucket._DTYPES[torch.float32], "ALIGNED": False, "CHUNK": chunk, "num_warps": 1}
    kernels.update[(2,)](
        addresses, layout, 1, gammas, partials, 0.9, 0.0, MOMENTUM=True, DECAY=False, NORMS=True, **options
    )
    torch.testing.assert_close(w, expected)
    torch.testing.assert_close(partials.sum(), w.square().sum())


# --- norms folded into the update of the step before ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", [CLARS, LARS])
def test_folded_norms_have_the_bits_of_fresh_ones(launches, dtype, method):
    layers = weights(*SHAPES, dtype=dtype)
    twins = copies(layers)
    options = {"eta": 0.1, "weight_decay": 1e-2, "fused": True}
    norms = {p: torch.tensor(3.0 + k, device=DEVICE) for k, p in enumerate([*layers, *twins])}
    if method is CLARS:
        options["norms"] = {**norms, **{twins[k]: norms[w] for k, w in enumerate(layers)}}
    folded, fresh = method(layers, 0.5, **options), method(twins, 0.5, **options)
    for step in range(5):
        give_gradients(layers, step)
        give_gradients(twins, step)
        before = weight_sums(launches)
        folded.step()
        assert weight_sums(launches) - before == (step == 0)
        fresh.weights_changed()
        fresh.step()
        assert weight_sums(launches) - before == (step == 0) + 1
        for w, t in zip(layers, twins, strict=True):
            assert torch.equal(w, t)
            assert torch.equal(folded.layer_rates()[w], fresh.layer_rates()[t])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter
def test_infinite_norms_are_folded_as_such():
    """And no NaN of the places behind the end of a tensor, which an infinite rate times nothing is."""
    (w,) = weights((1, 70))
    optimizer = LARS([w], torch.tensor(math.inf, device=DEVICE), momentum=0.0, fused=True)
    for _ in range(2):
        w.grad = torch.ones_like(w)
        optimizer.step()
    assert optimizer.layer_rates()[w].item() == math.inf


def write_in_place(layers, optimizer):
    with torch.no_grad():
        layers[1].mul_(3)


def write_through_an_alias(layers, optimizer):
    layers[1].detach()[3:].zero_()


def write_by_foreach(layers, optimizer):
    torch._foreach_mul_([w.detach() for w in layers], 2.0)


def load_weights(layers, optimizer):
    nn.ParameterList(layers).load_state_dict({str(k): w.detach() * 3 for k, w in enumerate(layers)})


def load_weights_in_inference_mode(layers, optimizer):
    with torch.inference_mode():
        layers[1].copy_(torch.full_like(layers[1], 2.0))


def move_elsewhere(layers, optimizer):
    layers[1].data = layers[1].data * 3


def turn_over(layers, optimizer):
    layers[2].data = layers[2].data.t()


def replace_parameter(layers, optimizer):
    layers[1] = optimizer.param_groups[0]["params"][1] = nn.Parameter(layers[1].detach() * 3)


def step_by_foreach(layers, optimizer):
    optimizer.param_groups[0]["fused"] = False
    give_gradients(layers, 77)
    optimizer.step()
    optimizer.param_groups[0]["fused"] = True


def step_without_adaptation(layers, optimizer):
    optimizer.param_groups[0]["uniform"] = True
    give_gradients(layers, 77)
    optimizer.step()
    optimizer.param_groups[0]["uniform"] = False


def write_unseen_and_say_so(layers, optimizer):
    layers[1].data.mul_(3)
    optimizer.weights_changed()


@pytest.mark.parametrize(
    "change",
    [
        write_in_place, write_through_an_alias, write_by_foreach, load_weights, load_weights_in_inference_mode,
        move_elsewhere, turn_over, replace_parameter, step_by_foreach, step_without_adaptation,
        write_unseen_and_say_so,
    ],
)  # fmt: skip
def test_weights_that_were_written_are_measured_again(launches, change):
    layers = weights((5, 4, 3, 2), (12, 11), (9, 9), (90,))
    optimizer = LARS(layers, 0.5, eta=0.1, momentum=0.0, fused=True)
    for step in range(2):
        give_gradients(layers, step)
        optimizer.step()
    assert weight_sums(launches) == 1
    change(layers, optimizer)
    give_gradients(layers, 5)
    expected = [(0.05 * w.norm() / w.grad.norm()).item() for w in layers if w.ndim > 1]
    optimizer.step()
    rates = [optimizer.layer_rates()[w].item() for w in layers if w.ndim > 1]
    assert rates == pytest.approx(expected, rel=1e-5)


def test_what_a_write_through_data_does():
    """The documented limit: its norm is that of before, for one step."""
    (w,) = weights((9, 9))
    optimizer = LARS([w], 0.5, eta=0.1, momentum=0.0, fused=True)
    for factor, seen in ((1, 1), (3, 1 / 3), (1, 1)):
        w.data.mul_(factor)
        give_gradients([w])
        expected = 0.05 * w.norm() / w.grad.norm() * seen
        optimizer.step()
        torch.testing.assert_close(optimizer.layer_rates()[w], expected.detach())


def test_autograd_notices_the_update():
    (w,) = weights((9, 9))
    product = (w * w).sum()
    give_gradients([w])
    version = w._version
    LARS([w], 0.5, fused=True).step()
    assert w._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_rates_are_those_of_each_layers_last_step():
    """Whichever way it was taken, and which other layers were."""
    layers = weights((9, 9), (5, 5), (3,))
    optimizer = LARS(layers, 1.0, eta=0.1, bias_and_norm="mlperf", fused=True)
    last: dict = {}
    for step, (taken, fused_) in enumerate(
        [("012", True), ("012", True), ("12", True), ("012", True), ("0", False), ("12", True), ("012", False),
         ("012", True), ("1", True), ("02", True)]
    ):  # fmt: skip
        group = optimizer.param_groups[0]
        group["lr"], group["fused"] = 1 / (1 + step), fused_
        for k, w in enumerate(layers):
            w.grad = torch.full_like(w, 1.0 + k) if str(k) in taken else None
            if w.grad is not None:
                last[w] = group["lr"] * (0.1 * (w.norm() / w.grad.norm()).item() if w.ndim > 1 else 1)
        optimizer.step()
        rates = {w: rate.item() for w, rate in optimizer.layer_rates().items()}
        assert rates == pytest.approx(last, rel=1e-5)


def test_layers_without_a_gradient_rest(launches):
    layers = weights((9, 9), (12, 11), (5, 5), (90,))
    twins = copies(layers)
    options = {"eta": 0.1, "weight_decay": 1e-2}
    ours, plain = LARS(layers, 0.5, fused=True, **options), LARS(twins, 0.5, fused=False, **options)
    for step, without in enumerate([{0, 3}, {1}, {0, 1, 2, 3}, {2}, set()]):
        for optimizer, parameters in ((ours, layers), (plain, twins)):
            give_gradients(parameters, step)
            for k in without:
                parameters[k].grad = None
            optimizer.step()
        for w, t in zip(layers, twins, strict=True):
            torch.testing.assert_close(w, t, rtol=1e-5, atol=1e-6)
            assert ours.state.get(w, {}).keys() == plain.state.get(t, {}).keys()
    assert list(ours.layer_rates()) == [layers[k] for k in (1, 2, 0, 3)]
    assert weight_sums(launches) == 1


# --- where it is taken ---------------------------------------------------------------------------------------------


def test_it_is_left_to_the_device():
    """None: on a GPU, unless foreach was chosen; never on a CPU."""
    layers = weights((3, 3), (3,))
    options = [(None, None), (None, True), (None, False), (False, None), (True, None), (True, False)]
    taken = []
    for fused_, foreach in options:
        with mock.patch.object(bucket.Bucket, "step", autospec=True, side_effect=bucket.Bucket.step) as step:
            give_gradients(layers)
            LARS(layers, 0.5, fused=fused_, foreach=foreach).step()
            taken.append(step.called)
    assert taken == [DEVICE == "cuda", False, False, False, True, True]


@pytest.mark.parametrize("lacking", ["triton", "cuda", "interpreter"])
def test_where_it_cannot_be_is_said_in_one_line(monkeypatch, lacking):
    monkeypatch.setattr(fused, "_serves", fused._serves.__wrapped__)
    layers = weights((3, 3))
    if lacking == "triton":
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    elif lacking == "cuda":
        monkeypatch.setattr(torch.version, "hip", "6.0")
    else:
        layers = [nn.Parameter(w.detach().cpu()) for w in layers]
        monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    give_gradients(layers)
    LARS(layers, 0.5).step()
    with pytest.raises(UserError, match=r"fused=True needs Triton and an NVIDIA GPU .* on c.*: leave fused=None"):
        LARS(layers, 0.5, fused=True).step()


def test_options_that_exclude_each_other():
    for kind, options in ((LARS, {}), (NAG, {}), (CLARS, {"norms": {}})):
        with pytest.raises(UserError, match="fused=True and foreach=True exclude each other"):
            kind(weights((3, 3)), 0.5, fused=True, foreach=True, **options)
    with pytest.raises(UserError, match="AuthorsCLARS has no fused form"):
        AuthorsCLARS([{"params": weights((3, 3)), "fused": True}], 0.5)


def channels_last(t, of):
    return t.to(memory_format=torch.channels_last)


def transposed(t, of):
    return t.transpose(0, 1).contiguous().transpose(0, 1)


def behind_an_odd_offset(t, of):
    return torch.empty(t.numel() + 3, dtype=t.dtype, device=t.device)[3:].view(t.shape).copy_(t)


def gradient_behind_an_odd_offset(t, of):
    return behind_an_odd_offset(t, of) if of == "gradient" else t


def gradient_transposed(t, of):
    return transposed(t, of) if of == "gradient" else t


def with_gaps(t, of):
    return torch.empty(*t.shape, 2, dtype=t.dtype, device=t.device)[..., 0].copy_(t) if of == "weight" else t


def in_float64(t, of):
    return t.double()


@pytest.mark.parametrize(
    ("layout", "is_taken"),
    [
        (channels_last, True), (transposed, True), (behind_an_odd_offset, True), (gradient_behind_an_odd_offset, True),
        (gradient_transposed, False), (with_gaps, False), (in_float64, False),
    ],
)  # fmt: skip
def test_memory_formats(monkeypatch, launches, layout, is_taken):
    """Taken as they lie, or left to foreach; beside a layer that always is taken."""
    (w, other), (t, other_twin) = weights((6, 5, 4, 3), (9, 9)), weights((6, 5, 4, 3), (9, 9))
    layers = [nn.Parameter(layout(w.detach(), "weight")), other]
    twins = [nn.Parameter(t.detach().to(layers[0].dtype)), other_twin]
    ours = LARS(layers, 0.5, eta=0.1, weight_decay=1e-2, fused=True)
    plain = LARS(twins, 0.5, eta=0.1, weight_decay=1e-2, fused=False)
    steps, step_of = [], bucket.Bucket.step

    def recorded(self, *rest):
        steps.append((self.weights, step_of(self, *rest)))
        return steps[-1][1]

    monkeypatch.setattr(bucket.Bucket, "step", recorded)
    for step in range(3):
        give_gradients(twins, step)
        other.grad = other_twin.grad.clone()
        layers[0].grad = layout(twins[0].grad.clone(), "gradient")
        for optimizer in (ours, plain):
            optimizer.step()
        for p, q in zip(layers, twins, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(ours.layer_rates()[p], plain.layer_rates()[q], rtol=1e-5, atol=0)
    for members, (_, taken, _) in steps:
        assert {id(members[k]) for k in taken} == {id(w) for w in layers[not is_taken :]}
    odd = layout in (behind_an_odd_offset, gradient_behind_an_odd_offset)
    assert [options["ALIGNED"] for options in launches["update"].options] == [not odd] * 3


def test_alignment_that_changes_is_measured_for(launches):
    """Sums in another order have other bits, so a norm folded for one alignment is none for another."""
    layers = weights((12, 11))
    optimizer = LARS(layers, 0.5, eta=0.1, fused=True)
    for odd in (False, False, True, True, False):
        give_gradients(layers)
        if odd:
            room = torch.empty(12 * 11 + 1, device=DEVICE)
            room[1:].copy_(layers[0].grad.flatten())
            layers[0].grad = room[1:].view(12, 11)
        optimizer.step()
    assert weight_sums(launches) == 3


def test_a_momentum_buffer_that_lies_otherwise_is_left_to_foreach():
    layers, twins = weights((8, 6), (5, 5)), weights((8, 6), (5, 5))
    for parameters, choice in ((layers, True), (twins, False)):
        optimizer = LARS(parameters, 0.5, eta=0.1, fused=choice)
        for step in range(4):
            if step == 2:
                state = optimizer.state[parameters[0]]
                state["momentum_buffer"] = state["momentum_buffer"].t().contiguous().t()
            give_gradients(parameters, step)
            optimizer.step()
    for w, t in zip(layers, twins, strict=True):
        torch.testing.assert_close(w, t, rtol=1e-5, atol=1e-6)


def test_a_weight_that_is_turned_over_where_it_is():
    (w,), (t,) = weights((9, 9)), weights((9, 9))
    ours, plain = LARS([w], 0.5, eta=0.1, momentum=0.0, fused=True), LARS([t], 0.5, eta=0.1, momentum=0.0, fused=False)
    for step in range(3):
        if step == 1:
            w.data, t.data = w.data.t(), t.data.t()
        w.grad = torch.randn(9, 9, generator=torch.Generator().manual_seed(step)).to(DEVICE)
        t.grad = w.grad.clone()
        ours.step()
        plain.step()
        torch.testing.assert_close(w, t, rtol=1e-5, atol=1e-6)


def test_a_momentum_buffer_of_another_shape_is_an_error():
    (w,) = weights((8, 6))
    optimizer = LARS([w], 0.5, fused=True)
    optimizer.state[w]["momentum_buffer"] = torch.zeros(3, 6, device=DEVICE)
    give_gradients([w])
    with pytest.raises(RuntimeError, match="size"):
        optimizer.step()


def test_gradients_of_another_dtype():
    layers, twins = weights((8, 6), (5, 5), dtype=torch.bfloat16), weights((8, 6), (5, 5), dtype=torch.bfloat16)
    for parameters, choice in ((layers, True), (twins, False)):
        parameters[0].grad_dtype = None
        parameters[0].grad = torch.ones(8, 6, device=DEVICE)
        parameters[1].grad = torch.ones_like(parameters[1])
        LARS(parameters, 0.5, eta=0.1, momentum=0.0, fused=choice).step()
    for w, t in zip(layers, twins, strict=True):
        torch.testing.assert_close(w, t)


def test_shards_go_by_foreach(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo" if DEVICE == "cpu" else "nccl", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh(DEVICE, (1,))
        (plain,) = twin = weights((8, 6))
        sharded = nn.Parameter(distribute_tensor(plain.detach().clone(), mesh, [Shard(0)]))
        give_gradients(twin)
        sharded.grad = distribute_tensor(plain.grad.clone(), mesh, [Shard(0)])
        LARS([sharded], 0.5, fused=True).step()
        LARS([plain], 0.5, fused=False).step()
        torch.testing.assert_close(sharded.to_local().detach(), plain.detach())
    finally:
        torch.distributed.destroy_process_group()


def test_sparse_gradients_are_refused():
    table = nn.Embedding(5, 3, sparse=True, device=DEVICE)
    optimizer = LARS(table.parameters(), 1.0, fused=True)
    table(torch.tensor([1, 2], device=DEVICE)).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


def test_numbers_that_are_tensors_go_by_foreach(launches):
    (w,) = weights((8, 6))
    give_gradients([w])
    LARS([{"params": [w], "weight_decay": torch.tensor(0.1, device=DEVICE)}], 0.5, fused=True).step()
    assert not launches["update"].options


def test_a_learning_rate_on_the_host_is_read_there():
    layers, twins = weights((8, 6), (5,)), weights((8, 6), (5,))
    for parameters, rate in ((layers, torch.tensor(0.5, dtype=torch.float64)), (twins, 0.5)):
        give_gradients(parameters)
        LARS(parameters, rate, fused=True).step()
    for w, t in zip(layers, twins, strict=True):
        torch.testing.assert_close(w, t)


# --- checkpoints, copies, loss scales --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("then", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_resumed_is_uninterrupted(tmp_path, dtype, first, then):
    """Bit for bit where nothing but the interruption differs; and from one form to the other."""
    if not (first or then):
        return
    layers = weights(*SHAPES, dtype=dtype)
    options = {"eta": 0.01, "weight_decay": 1e-2}
    optimizer = LARS(layers, 0.5, fused=first, **options)

    def train(parameters, optimizer, steps):
        for step in steps:
            give_gradients(parameters, step)
            optimizer.step()

    train(layers, optimizer, range(3))
    torch.save([[w.detach() for w in layers], optimizer.state_dict()], tmp_path / "checkpoint.pt")
    train(layers, optimizer, range(3, 6))

    values, state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(entry.keys() == {"momentum_buffer"} for entry in state["state"].values())
    twins = [nn.Parameter(value) for value in values]
    resumed = LARS(twins, 0.1, **options)
    resumed.load_state_dict(state)
    resumed.param_groups[0]["fused"] = then
    train(twins, resumed, range(3, 6))
    for w, t in zip(layers, twins, strict=True):
        if first == then:
            assert torch.equal(w, t)
        else:
            tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
            torch.testing.assert_close(w, t, rtol=tolerance, atol=tolerance)


def test_checkpoint_without_the_option_continues():
    layers = weights((3, 3))
    optimizer = LARS(layers, 0.5, fused=True)
    give_gradients(layers)
    optimizer.step()
    checkpoint = copy.deepcopy(optimizer.state_dict())
    del checkpoint["param_groups"][0]["fused"]
    optimizer.load_state_dict(checkpoint)
    assert optimizer.param_groups[0]["fused"] is None
    optimizer.step()


def test_momentum_that_was_loaded_is_used():
    layers = weights((8, 6))
    optimizer = LARS(layers, 0.5, eta=0.1, fused=True)
    give_gradients(layers)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["momentum_buffer"] = torch.full((8, 6), 3.0)
    optimizer.load_state_dict(state)
    before = layers[0].detach().clone()
    layers[0].grad = torch.zeros_like(layers[0])
    optimizer.step()
    torch.testing.assert_close(layers[0].detach(), before + 0.81 * 3)
    optimizer.state.clear()  # as those do who begin anew
    before = layers[0].detach().clone()
    optimizer.step()
    torch.testing.assert_close(layers[0].detach(), before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("method", [LARS, NAG])
def test_copies_step_on_their_own(method, duplicate):
    layers = weights((9, 9), (5,))
    optimizer = method(layers, 0.5, fused=True)
    give_gradients(layers)
    optimizer.step()
    twin = duplicate(optimizer)
    twins = twin.param_groups[0]["params"]
    before = [w.detach().clone() for w in layers]
    for t in twins:
        t.grad = torch.ones_like(t)
    twin.step()
    assert all(torch.equal(w, b) for w, b in zip(layers, before, strict=True))
    for w in layers:
        w.grad = torch.ones_like(w)
    optimizer.step()
    assert all(torch.equal(w, t) for w, t in zip(layers, twins, strict=True))


@pytest.mark.parametrize("announced", [False, True])
def test_grad_scaler_with_a_skipped_step(announced):
    layers, twins = weights((6, 5), (5,)), weights((6, 5), (5,))
    scaler = torch.amp.GradScaler(DEVICE)
    for parameters, scaled in ((layers, True), (twins, False)):
        norms = {}
        optimizer = CLARS(
            parameters, 0.5, norms=norms, fused=True, grad_scaler=scaler if scaled and announced else None
        )
        for step in range(4):
            if step == 2 and not scaled:
                continue
            give_gradients(parameters, step)
            norms[parameters[0]] = parameters[0].grad.norm() * 3
            if not scaled:
                optimizer.step()
                continue
            scale = scaler.scale(torch.ones((), device=DEVICE))
            for p in parameters:
                p.grad *= scale * (math.inf if step == 2 else 1)
            norms[parameters[0]] *= scale
            if announced:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
    for w, t in zip(layers, twins, strict=True):
        torch.testing.assert_close(w, t, rtol=1e-5, atol=1e-6)


# --- what is compiled ------------------------------------------------------------------------------------------------

COMPILE = """
import re, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hf_clars.optimizers.fused import kernels

def compiled(kernel, dtype, aligned, **constants):
    constants |= {"DTYPE": dtype, "ALIGNED": aligned, "CHUNK": kernels.CHUNK}
    pointers = {"addresses": "*i64", "layout": "*i64", "gammas": "*fp32", "partials": "*fp32"}
    types = {name: "constexpr" if name in constants else pointers.get(name, "fp32") for name in kernel.arg_names}
    types["tensors"] = "i32"
    at = {name: k for k, name in enumerate(kernel.arg_names)}
    source = ASTSource(kernel, types, {(at[name],): value for name, value in constants.items()},
                       {(at[name],): [["tt.divisibility", 16]] for name in pointers if name in at})
    made = triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": kernels.WARPS})
    return made.asm["ptx"]

def reduction(ptx):
    return re.findall(r"(?:shfl|bar)[.]sync[.\\w]*|(?:fma|mul|add)(?:[.]rn)?[.]f32", ptx)

for dtype in (tl.float32, tl.bfloat16):
    update = compiled(kernels.update, dtype, True, MOMENTUM=True, DECAY=False, NORMS=True)
    sums = compiled(kernels.sums_of_squares, dtype, True, GRADIENTS=False)
    scattered = compiled(kernels.sums_of_squares, dtype, False, GRADIENTS=False)
    wide = [len(re.findall(r"(?:ld|st)[.]global[.\\w]*v4", ptx)) for ptx in (update, sums, scattered)]
    tail = reduction(sums)[: reduction(sums).index("bar.sync") + 1]
    same = " ".join(tail) in " ".join(reduction(update))
    print(dtype, *wide, same)
"""


@pytest.mark.slow
def test_compiled_for_hopper(tmp_path):
    """16 bytes at a time where addresses allow it; norms folded and fresh by the same instructions."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    # w, g and u of 2048 elements and 256 threads: two loads each of 4 float32, one of 8 bfloat16; w and u are stored.
    assert found.stdout.splitlines() == ["fp32 10 2 0 True", "bf16 5 1 0 True"]


# --- CUDA graphs -----------------------------------------------------------------------------------------------------


def test_before_the_first_step_there_is_nothing_to_capture(monkeypatch):
    layers = weights((9, 9))
    give_gradients(layers)
    monkeypatch.setattr("hf_clars.optimizers.group_rules.is_captured", lambda device: True)
    for momentum in (0.9, 0.0):
        with pytest.raises(RuntimeError, match=r"take one step\(\) before one is captured"):
            LARS(layers, 0.5, momentum=momentum, fused=True).step()
    with pytest.raises(RuntimeError, match=r"take one step\(\) before one is captured"):
        LARS(layers, 0.5, fused=False).step()


def test_what_a_graph_reads_stays(monkeypatch, launches):
    """Each has a table of its own, brought from memory that nothing else writes; norms are measured, then and after."""
    layers = weights((9, 9), (12, 11))
    optimizer = LARS(layers, 0.5, eta=0.1, fused=True)
    give_gradients(layers, 0)
    optimizer.step()
    graph_gradients = []
    for step in range(1, 4):
        capture = step < 3
        with mock.patch.object(bucket, "is_captured", lambda device, capture=capture: capture):
            give_gradients(layers, step)
            expected = [(0.05 * w.norm() / w.grad.norm()).item() for w in layers]
            graph_gradients.append([w.grad for w in layers])
            if step == 2:  # no second spare: pinning needs a GPU
                optimizer._divisions[0].buckets[0]._spare = torch.empty(8, dtype=torch.int64)
            optimizer.step()
        assert [optimizer.layer_rates()[w].item() for w in layers] == pytest.approx(expected, rel=1e-5)
        assert weight_sums(launches) == step + 1
    (only,) = optimizer._divisions[0].buckets
    assert len(only.captured) == 2
    tables = [table for _, table, _ in only.captured]
    assert len({t.data_ptr() for t in [*tables, only._table]}) == 3
    for (host, table, _), gradients in zip(only.captured, graph_gradients, strict=False):
        assert host.tolist() == table.tolist()
        assert host.tolist()[2:4] == [g.data_ptr() for g in gradients]
    assert (
        len({tuple(sorted(options.items(), key=str)) for options in launches["update"].options}) == 1
    )  # no new kernel


@on_gpu
@pytest.mark.parametrize("method", [CLARS, LARS, NAG])
def test_a_captured_step_is_that_step(method):
    layers, twins = weights(*SHAPES), weights(*SHAPES)
    rate = torch.tensor(0.5, device=DEVICE)
    fixed = torch.tensor(3.0, device=DEVICE)
    options = {"norms": {p: fixed for p in [*layers, *twins] if p.ndim > 1}} if method is CLARS else {}
    captured, plain = method(layers, rate, fused=True, **options), method(twins, rate, fused=True, **options)
    give_gradients(layers, 0)
    give_gradients(twins, 0)
    captured.step()
    plain.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for step in range(1, 5):
        rate.fill_(0.5 / step)
        for w, t in zip(layers, twins, strict=True):
            t.grad = torch.randn_like(t)
            w.grad.copy_(t.grad)
        if step == 3:  # an eager step between replays
            captured.step()
        else:
            graph.replay()
        plain.step()
        for w, t in zip(layers, twins, strict=True):
            assert torch.equal(w, t)


@on_gpu
@pytest.mark.parametrize("method", [CLARS, LARS, NAG])
def test_a_step_waits_for_nothing(method):
    layers = weights(*SHAPES)
    options = {"norms": {p: torch.tensor(3.0, device=DEVICE) for p in layers}} if method is CLARS else {}
    optimizer = method(layers, torch.tensor(0.5, device=DEVICE), fused=True, **options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            for w in layers:
                w.grad = torch.full_like(w, step + 1.0)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_training_step_with_exact_norms_waits_for_nothing():
    """Forward, backward and `step()`; on a CPU it is the same step, which nobody watches."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)
    ).to(DEVICE, memory_format=torch.channels_last)
    x, y = torch.randn(4, 3, 8, 8, device=DEVICE), torch.arange(4, device=DEVICE)
    optimizer = CLARS(model.parameters(), lr=1e-3, norms=PerSampleNorms(model, bias_and_norm=False))
    before = model[0].weight.detach().clone()

    def step():
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    step()  # sets up what the first ones set up
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert not torch.equal(model[0].weight, before)


@on_gpu
def test_on_every_gpu_and_any_stream():
    devices = [torch.device("cuda", k) for k in range(torch.cuda.device_count())]
    layers = [nn.Parameter(torch.randn(12, 11, device=device)) for device in devices]
    twins = copies(layers)
    ours, plain = LARS(layers, 0.5, fused=True), LARS(twins, 0.5, fused=False)
    for device in devices:
        torch.cuda.synchronize(device)  # the other stream does not wait for the weights
    with torch.cuda.stream(torch.cuda.Stream()):
        for step in range(3):
            for w, t in zip(layers, twins, strict=True):
                w.grad = torch.full_like(w, step + 1.0)
                t.grad = w.grad.clone()
            ours.step()
            plain.step()
    for device in devices:
        torch.cuda.synchronize(device)
    for w, t in zip(layers, twins, strict=True):
        torch.testing.assert_close(w, t, rtol=1e-5, atol=1e-6)
