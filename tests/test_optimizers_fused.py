"""The fused `step()` against the plain forms in float64; without a GPU, in Triton's interpreter."""

import copy
import functools
import math
import os
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
import triton.language as tl
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_clars import PerSampleNorms
from hf_clars.errors import UserError
from hf_clars.optimizers import CLARS, LARS, NAG, AuthorsCLARS, fused
from hf_clars.optimizers.fused import bucket, kernels

from .helpers.parameters import assert_close, copies, give_gradients, parameters, step_all

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
weights = functools.partial(parameters, device=DEVICE)
on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="of the CUDA runtime")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MOST_DTYPES = [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
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
        self.kernel, self.options, self.tables = kernel, [], []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.options.append(options)
            self.tables.append(arguments[0])
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


def pair(*shapes, method=LARS, dtype=torch.float32, **options):
    """Layers and copies of them, and their optimizers: the fused form and the plain one."""
    layers = weights(*shapes, dtype=dtype)
    twins = copies(layers)
    return layers, twins, method(layers, 0.5, fused=True, **options), method(twins, 0.5, fused=False, **options)


# --- what it computes --------------------------------------------------------------------------------------------


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
    layers, twins, *optimizers = pair(*[(9, 9)] * 5, eta=0.1)
    for (zero, silent, nan, infinite, sound), optimizer in zip((layers, twins), optimizers, strict=True):
        with torch.no_grad():
            zero.zero_()
            nan[3, 3] = math.nan
        give_gradients(optimizer.param_groups[0]["params"])
        silent.grad.zero_()
        infinite.grad[2, 2] = math.inf
        optimizer.step()
        assert sound.isfinite().all()
        assert optimizer.layer_rates()[zero].item() == pytest.approx(0.05)
    assert_close(layers, twins, equal_nan=True)
    rates = [list(optimizer.layer_rates().values()) for optimizer in optimizers]
    torch.testing.assert_close(*rates, equal_nan=True)
    assert not any("divide" in str(warning.message) for warning in recwarn)


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
    options = {"DTYPE": tl.float32, "ALIGNED": False, "CHUNK": chunk, "num_warps": 1}
    kernels.update[(2,)](
        addresses, layout, 1, gammas, partials, 0.9, 0.0, MOMENTUM=True, DECAY=False, NORMS=True, **options
    )
    torch.testing.assert_close(w, expected)
    torch.testing.assert_close(partials.sum(), w.square().sum())


# --- norms folded into the update of the step before ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", MOST_DTYPES)
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


def load_weights(layers, optimizer):
    nn.ParameterList(layers).load_state_dict({str(k): w * 3 for k, w in enumerate(layers)})


def load_weights_in_inference_mode(layers, optimizer):
    with torch.inference_mode():
        layers[1].copy_(torch.full_like(layers[1], 2.0))


def turn_over(layers, optimizer):
    layers[2].data = layers[2].data.t()


def replace_parameter(layers, optimizer):
    layers[1] = optimizer.param_groups[0]["params"][1] = nn.Parameter(layers[1] * 3)


def step_otherwise(layers, optimizer, **options):
    before = {name: optimizer.param_groups[0][name] for name in options}
    optimizer.param_groups[0].update(options)
    step_all([optimizer], 77)
    optimizer.param_groups[0].update(before)


def write_unseen_and_say_so(layers, optimizer):
    layers[1].data.mul_(3)
    optimizer.weights_changed()


CHANGES = {
    "in place": lambda layers, _: layers[1].mul_(3),
    "through an alias": lambda layers, _: layers[1].detach()[3:].zero_(),
    "by foreach": lambda layers, _: torch._foreach_mul_([w.detach() for w in layers], 2.0),
    "loaded": load_weights,
    "loaded in inference mode": load_weights_in_inference_mode,
    "moved elsewhere": lambda layers, _: setattr(layers[1], "data", layers[1].data * 3),
    "turned over": turn_over,
    "another parameter": replace_parameter,
    "a step by foreach": functools.partial(step_otherwise, fused=False),
    "a step without adaptation": functools.partial(step_otherwise, uniform=True),
    "unseen, and said": write_unseen_and_say_so,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_weights_that_were_written_are_measured_again(launches, change):
    layers = weights((5, 4, 3, 2), (12, 11), (9, 9), (90,))
    optimizer = LARS(layers, 0.5, eta=0.1, momentum=0.0, fused=True)
    for step in range(2):
        step_all([optimizer], step)
    assert weight_sums(launches) == 1
    with torch.no_grad():
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
    LARS([w], 0.5, fused=True).step()
    with pytest.raises(RuntimeError):
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
    layers, twins, *optimizers = pair((9, 9), (12, 11), (5, 5), (90,), eta=0.1, weight_decay=1e-2)
    for step, without in enumerate([{0, 3}, {1}, {0, 1, 2, 3}, {2}, set()]):
        step_all(optimizers, step, without)
        assert_close(layers, twins, rtol=1e-5, atol=1e-6)
        for w, t in zip(layers, twins, strict=True):
            assert optimizers[0].state.get(w, {}).keys() == optimizers[1].state.get(t, {}).keys()
    assert list(optimizers[0].layer_rates()) == [layers[k] for k in (1, 2, 0, 3)]
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
    monkeypatch.setattr(fused, "serves", fused.serves.__wrapped__)
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


def transposed(t):
    return t.transpose(0, 1).contiguous().transpose(0, 1)


def behind_an_odd_offset(t):
    return torch.empty(t.numel() + 3, dtype=t.dtype, device=t.device)[3:].view(t.shape).copy_(t)


def with_gaps(t):
    return torch.empty(*t.shape, 2, dtype=t.dtype, device=t.device)[..., 0].copy_(t)


def as_it_is(t):
    return t


def channels_last(t):
    return t.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("of_weight", "of_gradient", "is_taken"),
    [
        (channels_last, channels_last, True), (transposed, transposed, True),
        (behind_an_odd_offset, behind_an_odd_offset, True), (as_it_is, behind_an_odd_offset, True),
        (as_it_is, transposed, False), (with_gaps, as_it_is, False), (torch.Tensor.double, torch.Tensor.double, False),
    ],
)  # fmt: skip
def test_memory_formats(monkeypatch, launches, of_weight, of_gradient, is_taken):
    """Taken as they lie, or left to foreach; beside a layer that always is taken."""
    w, other = weights((6, 5, 4, 3), (9, 9))
    layers = [nn.Parameter(of_weight(w.detach())), other]
    twins = [*copies([w], layers[0].dtype), *copies([other])]
    ours = LARS(layers, 0.5, eta=0.1, weight_decay=1e-2, fused=True)
    plain = LARS(twins, 0.5, eta=0.1, weight_decay=1e-2, fused=False)
    steps, step_of = [], bucket.Bucket.step

    def recorded(self, *rest):
        steps.append((self.weights, step_of(self, *rest)))
        return steps[-1][1]

    monkeypatch.setattr(bucket.Bucket, "step", recorded)
    for step in range(3):
        give_gradients(twins, step)
        other.grad = twins[1].grad.clone()
        layers[0].grad = of_gradient(twins[0].grad.clone())
        ours.step()
        plain.step()
        assert_close(layers, twins, rtol=1e-5, atol=1e-6)
        for p, q in zip(layers, twins, strict=True):
            torch.testing.assert_close(ours.layer_rates()[p], plain.layer_rates()[q], rtol=1e-5, atol=0)
    for members, (_, taken, _) in steps:
        assert {id(members[k]) for k in taken} == {id(w) for w in layers[not is_taken :]}
    odd = of_gradient is behind_an_odd_offset
    assert [options["ALIGNED"] for options in launches["update"].options] == [not odd] * 3


def test_alignment_that_changes_is_measured_for(launches):
    """Sums in another order have other bits, so a norm folded for one alignment is none for another."""
    (w,) = weights((12, 11))
    optimizer = LARS([w], 0.5, eta=0.1, fused=True)
    for odd in (False, False, True, True, False):
        give_gradients([w])
        w.grad = behind_an_odd_offset(w.grad) if odd else w.grad
        optimizer.step()
    assert weight_sums(launches) == 3


def test_a_momentum_buffer_that_lies_otherwise_is_left_to_foreach():
    layers, twins, *optimizers = pair((8, 6), (5, 5), eta=0.1)
    for step in range(4):
        if step == 2:
            state = optimizers[0].state[layers[0]]
            state["momentum_buffer"] = transposed(state["momentum_buffer"])
        step_all(optimizers, step)
    assert_close(layers, twins, rtol=1e-5, atol=1e-6)


def test_a_weight_that_is_turned_over_where_it_is():
    (w,), (t,), *optimizers = pair((9, 9), eta=0.1, momentum=0.0)
    for step in range(3):
        if step == 1:
            w.data, t.data = w.data.t(), t.data.t()
        for p in (w, t):
            p.grad = torch.randn(9, 9, generator=torch.Generator().manual_seed(step)).to(DEVICE)
        for optimizer in optimizers:
            optimizer.step()
        assert_close([w], [t], rtol=1e-5, atol=1e-6)


def test_a_momentum_buffer_of_another_shape_is_an_error():
    (w,) = weights((8, 6))
    optimizer = LARS([w], 0.5, fused=True)
    optimizer.state[w]["momentum_buffer"] = torch.zeros(3, 6, device=DEVICE)
    give_gradients([w])
    with pytest.raises(RuntimeError):
        optimizer.step()


def test_gradients_of_another_dtype():
    layers, twins, *optimizers = pair((8, 6), (5, 5), dtype=torch.bfloat16, eta=0.1, momentum=0.0)
    for params, optimizer in zip((layers, twins), optimizers, strict=True):
        params[0].grad_dtype = None
        params[0].grad = torch.ones(8, 6, device=DEVICE)
        params[1].grad = torch.ones_like(params[1])
        optimizer.step()
    assert_close(layers, twins)


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


def test_numbers_that_are_tensors_go_by_foreach(launches):
    (w,) = weights((8, 6))
    give_gradients([w])
    LARS([{"params": [w], "weight_decay": torch.tensor(0.1, device=DEVICE)}], 0.5, fused=True).step()
    assert not launches["update"].options


def test_a_learning_rate_on_the_host_is_read_there():
    layers, twins, *optimizers = pair((8, 6), (5,))
    optimizers[0].param_groups[0]["lr"] = torch.tensor(0.5, dtype=torch.float64)
    optimizers[1].param_groups[0]["fused"] = True
    step_all(optimizers, 0)
    assert_close(layers, twins)


# --- checkpoints, copies, loss scales --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", MOST_DTYPES)
@pytest.mark.parametrize(("first", "then"), [(True, True), (True, False), (False, True)])
def test_resumed_is_uninterrupted(tmp_path, dtype, first, then):
    """Bit for bit where nothing but the interruption differs; and from one form to the other."""
    layers = weights(*SHAPES, dtype=dtype)
    options = {"eta": 0.01, "weight_decay": 1e-2}
    optimizer = LARS(layers, 0.5, fused=first, **options)
    for step in range(6):
        if step == 3:
            torch.save([[w.detach() for w in layers], optimizer.state_dict()], tmp_path / "checkpoint.pt")
        step_all([optimizer], step)

    values, state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(entry.keys() == {"momentum_buffer"} for entry in state["state"].values())
    twins = [nn.Parameter(value) for value in values]
    resumed = LARS(twins, 0.1, **options)
    resumed.load_state_dict(state)
    resumed.param_groups[0]["fused"] = then
    for step in range(3, 6):
        step_all([resumed], step)
    tolerance = 0 if first == then else {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    assert_close(layers, twins, rtol=tolerance, atol=tolerance)


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


def test_what_a_graph_reads_stays(launches):
    """Each has a table of its own, brought from memory that nothing else writes; norms are measured, then and after."""
    layers = weights((9, 9), (12, 11))
    optimizer = LARS(layers, 0.5, eta=0.1, fused=True)
    buckets, gradients = [], []
    step_of = bucket.Bucket.step
    for step in range(4):
        give_gradients(layers, step)
        gradients.append([w.grad for w in layers])
        expected = [(0.05 * w.norm() / w.grad.norm()).item() for w in layers]
        with (
            mock.patch.object(bucket, "is_captured", lambda device, step=step: 0 < step < 3),
            mock.patch.object(bucket.Bucket, "step", lambda self, *a: (buckets.append(self), step_of(self, *a))[1]),
        ):
            optimizer.step()
        assert [optimizer.layer_rates()[w].item() for w in layers] == pytest.approx(expected, rel=1e-5)
        assert weight_sums(launches) == step + 1
    assert all(each is buckets[0] for each in buckets)
    captured = buckets[0].captured
    assert len(captured) == 2
    assert len({table.data_ptr() for table in launches["update"].tables}) == 3  # of two graphs, and of eager steps
    for (host, table, _), given_then in zip(captured, gradients[1:3], strict=True):
        assert host.tolist() == table.tolist()
        assert host.tolist()[2:4] == [g.data_ptr() for g in given_then]
    kinds = {tuple(sorted(options.items(), key=str)) for options in launches["update"].options}
    assert len(kinds) == 1  # no new kernel


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
    assert_close(layers, twins, rtol=1e-5, atol=1e-6)
