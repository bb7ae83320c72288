"""CLARS and LARS against NumPy, against torch's SGD, and against each other."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_clars.errors import UserError
from hf_clars.norms import PerSampleNorms
from hf_clars.optimizers import CLARS, LARS, NAG, parameter_groups
from hf_clars.optimizers.reference import Reference

from .helpers.parameters import assert_close, copies, give_gradients
from .helpers.parameters import parameters as of_dtype
from .helpers.reference import contributions

parameters = partial(of_dtype, dtype=torch.float64)


@given(
    st.booleans(),
    st.sampled_from([None, False, True]),
    st.floats(0, 0.99),
    st.floats(1e-3, 1),
    st.floats(1e-3, 30),
    st.sampled_from([0.0, 1e-3, 0.1]),
)
def test_equations_3_4_5_against_the_reference(clars, foreach, momentum, eta, gamma_scale, weight_decay):
    layers = parameters((4, 3), (2, 3, 3, 3), (5, 1))
    denominators: dict = {}
    options = {"momentum": momentum, "eta": eta, "weight_decay": weight_decay, "foreach": foreach}
    if clars:
        optimizer = CLARS(layers, gamma_scale, norms=denominators, **options)
    else:
        optimizer = LARS(layers, gamma_scale, decay_in_denominator=False, **options)
    reference = Reference(layers, beta=momentum, eta=eta, weight_decay=weight_decay)
    for step in range(5):
        rate = gamma_scale / (1 + step)  # a schedule: the learning rate must be inside the momentum
        optimizer.param_groups[0]["lr"] = rate
        contributions = [torch.randn(6, *w.shape, dtype=w.dtype) for w in layers]
        for w, c in zip(layers, contributions, strict=True):
            w.grad = c.sum(0)
            denominators[w] = torch.linalg.vector_norm(c.flatten(1), dim=1).sum()
        optimizer.step()
        if clars:
            gammas = reference.clars_step(rate, contributions)
        else:
            gammas = reference.lars_step(rate, [c.sum(0) for c in contributions])
        for w, expected, gamma in zip(layers, reference.w, gammas, strict=True):
            torch.testing.assert_close(w.detach(), expected, rtol=1e-10, atol=0)
            assert optimizer.layer_rates()[w].item() == pytest.approx(gamma.item(), rel=1e-10)


def test_a_model_trains_as_the_reference_does():
    """Contributions taken one by one, and norms measured on the way: the same weights after three steps."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    layers = [model[0].weight, model[2].weight]
    for bias in (model[0].bias, model[2].bias):
        bias.requires_grad_(False)
    reference = Reference(layers, beta=0.9, eta=0.02)
    with PerSampleNorms(model) as norms:
        optimizer = CLARS(layers, 2.0, momentum=0.9, eta=0.02, norms=norms)
        for _ in range(3):
            x, target = torch.randn(6, 5).double(), torch.randint(0, 3, (6,))
            loss = lambda x=x, target=target: nn.functional.cross_entropy(model(x), target)  # noqa: E731
            each = {0: "0.weight", 1: "2.weight"}
            norms.watch.paused = True
            contributed = [contributions(model, each[k], loss, len(x)) for k in each]
            norms.watch.paused = False
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()
            reference.clars_step(2.0, contributed)
    assert_close(layers, reference.w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", [LARS, NAG])
def test_layer_by_layer_in_blocks_is_foreach(monkeypatch, dtype, momentum, kind):
    monkeypatch.setattr("hf_clars.optimizers.layerwise.BLOCK", 40)
    layers = parameters((9, 4, 3, 2), (7, 6), (1, 50), (0, 3), (90,), (), dtype=dtype)  # some in several blocks
    layers[0] = nn.Parameter(layers[0].detach().to(memory_format=torch.channels_last))
    layers[1] = nn.Parameter(layers[1].detach().t())
    twins = copies(layers)
    options = {"momentum": momentum, "weight_decay": 0.1}
    if kind is LARS:
        options |= {"eta": 0.1, "bias_and_norm": "authors"}
    rate = torch.tensor(0.5)
    optimizers = [kind(layers, rate, foreach=False, **options), kind(twins, rate, foreach=True, **options)]
    for step in range(3):
        for params in (layers, twins):
            give_gradients(params, step)
        for t in twins:  # in whatever order a gradient lies
            t.grad = t.grad.contiguous()
        gradients = [w.grad.clone() for w in layers]
        for optimizer in optimizers:
            optimizer.step()
        assert all(torch.equal(w.grad, g) for w, g in zip(layers, gradients, strict=True))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    assert_close(layers, twins, rtol=tolerance, atol=tolerance)
    for w, t in zip(layers, twins, strict=True):
        states = [optimizer.state.get(p, {}) for optimizer, p in zip(optimizers, (w, t), strict=True)]
        assert states[0].keys() == ({"momentum_buffer"} if momentum else set())
        torch.testing.assert_close(*states, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("form", "rtol"), [({"foreach": False}, 1e-2), ({"foreach": True}, 1e-2), ({"fused": True}, 1e-3)], ids=str
)
def test_rates_below_the_range_of_half_precision(interpreter, form, rtol):
    """γ multiplies at its own precision: 1e-8 is zero in float16."""
    (w,) = parameters((8,), dtype=torch.float16, device="cuda" if torch.cuda.is_available() else "cpu")
    with torch.no_grad():
        w.zero_()
    w.grad = torch.full_like(w, 3e4)
    LARS([w], 1e-8, bias_and_norm="mlperf", **form).step()
    torch.testing.assert_close(w.detach().float().cpu(), torch.full((8,), -3e-4 * 1.9), rtol=rtol, atol=0)


def test_foreach_may_be_left_to_size_and_device(monkeypatch):
    taken = []
    for name in ("_update_by_layer", "nesterov_update_foreach_"):
        monkeypatch.setattr(f"hf_clars.optimizers.layerwise.{name}", lambda *_, name=name: taken.append(name))
    small, large = parameters((3, 3), (2**10, 2**9), dtype=torch.float32)
    small.grad, large.grad = torch.randn_like(small), torch.randn_like(large)
    for layer, foreach in ((small, None), (large, None), (small, False), (large, True)):
        LARS([{"params": [layer], "foreach": foreach}], 1.0).step()
    assert taken == ["nesterov_update_foreach_", "_update_by_layer", "_update_by_layer", "nesterov_update_foreach_"]


def test_constant_gamma_is_nesterov_sgd():
    """With ‖w‖ / D held at 1, γ_k is the learning rate, and Eq. 4 is torch's Nesterov momentum."""
    layers, norms = parameters((4, 3), (6,)), {}
    twins = copies(layers)
    clars = CLARS(layers, 0.1, momentum=0.9, eta=1.0, norms=norms, bias_and_norm="eta")
    sgd = torch.optim.SGD(twins, 0.1, momentum=0.9, nesterov=True)
    for step in range(6):
        norms[layers[0]] = layers[0].detach().norm()
        give_gradients(layers, step)
        give_gradients(twins, step)
        clars.step()
        sgd.step()
    assert_close(layers, twins, rtol=1e-12, atol=1e-12)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x, y, scale: float = 1.0, micro_batches: int = 1) -> None:
    for _ in range(4):
        for part, target in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
            (scale * F.cross_entropy(model(part), target) / micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("in_denominator", [False, True])
@pytest.mark.parametrize("bias_and_norm", ["eta", "mlperf", "authors", "paper"])
def test_equal_samples_make_clars_lars(bias_and_norm, in_denominator):
    x, y = torch.randn(1, 2, 6, 6).double().expand(8, -1, -1, -1), torch.zeros(8, dtype=torch.long)
    first = network()
    second = copy.deepcopy(first)
    rules = {"bias_and_norm": bias_and_norm, "decay_in_denominator": in_denominator}
    options = {"eta": 0.01, "weight_decay": 1e-3, **rules}
    train(first, CLARS(first.parameters(), 0.5, norms=PerSampleNorms(first), **options), x, y)
    train(second, LARS(second.parameters(), 0.5, **options), x, y)
    assert_close(first.parameters(), second.parameters(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("scale", "micro_batches"), [(1024.0, 1), (1.0, 8), (1.0, 32)])
def test_loss_scale_and_micro_batches_change_nothing(scale, micro_batches):
    x, y = torch.randn(32, 2, 6, 6).double(), torch.randint(0, 4, (32,))
    start = network()
    for parameter in start.parameters():  # a zero norm takes a rate that knows nothing of the gradient's scale
        nn.init.normal_(parameter)
    results = []
    for s, m in ((1.0, 1), (scale, micro_batches)):
        model = copy.deepcopy(start)
        options = {"eta": 0.01, "momentum": 0.9, "bias_and_norm": "paper"}
        train(model, CLARS(model.parameters(), 5.0, norms=PerSampleNorms(model), **options), x, y, s, m)
        results.append(list(model.parameters()))
    assert_close(*results, rtol=1e-8, atol=1e-12)


def test_vectors_follow_their_rule():
    norm, bias = nn.GroupNorm(1, 3).double(), nn.Linear(2, 3).double()
    expected = {"eta": (0.5 * 0.01, 0.0), "mlperf": (0.5, 0.0), "authors": (0.5, 0.1)}
    for rule, (rate, decay) in expected.items():
        bias_and_norm = [copy.deepcopy(norm).weight, copy.deepcopy(bias).bias]
        before = [v.detach().clone() for v in bias_and_norm]
        optimizer = LARS(bias_and_norm, 0.5, momentum=0.0, eta=0.01, weight_decay=0.1, bias_and_norm=rule)
        for v in bias_and_norm:
            v.grad = torch.ones_like(v)
        optimizer.step()
        for v, b in zip(bias_and_norm, before, strict=True):
            torch.testing.assert_close(v.detach(), b - rate * (1 + decay * b))


def test_decay_in_denominator_is_you_et_al():
    (w,) = parameters((3, 4))
    before, decay = w.detach().clone(), 0.1
    w.grad = torch.randn_like(w)
    LARS([w], 2.0, momentum=0.0, eta=0.5, weight_decay=decay, decay_in_denominator=True).step()
    gamma = before.norm() / (w.grad.norm() + decay * before.norm())
    torch.testing.assert_close(w.detach(), before - gamma * (w.grad + decay * before))


def test_zero_norms():
    zero, silent = parameters((2, 2), (2, 2))
    with torch.no_grad():
        zero.zero_()
    before = silent.detach().clone()
    zero.grad, silent.grad = torch.ones_like(zero), torch.zeros_like(silent)
    norms = {zero: torch.tensor(5.0), silent: torch.tensor(0.0)}
    CLARS([zero, silent], 0.5, momentum=0.9, eta=0.1, norms=norms).step()
    torch.testing.assert_close(zero.detach(), torch.full_like(zero, -0.5 * 0.1 * 1.9))  # ratio 1
    torch.testing.assert_close(silent.detach(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_mixed_dtypes_in_one_group(dtype):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).to(dtype))
    optimizer = LARS(model.parameters(), 1.0, eta=0.1)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    for p, b in zip(model.parameters(), before, strict=True):
        assert p.dtype == b.dtype
        assert optimizer.state[p]["momentum_buffer"].dtype == p.dtype
        assert optimizer.layer_rates()[p].dtype == torch.promote_types(p.dtype, torch.float32)
        if p.ndim == 2:  # each layer moves by γ_scale · η · (1 + β) of its norm
            move = (p.detach() - b).double().norm() / b.double().norm()
            assert move.item() == pytest.approx(0.1 * 1.9, rel=2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_a_rule_of_ones_own_is_never_left_to_kernels_that_do_not_know_it():
    class Capped(LARS):
        def _adapted_rates(self, group, weight_norms, denominators):
            return super()._adapted_rates(group, weight_norms, denominators).clamp(max=0.1)

    class Renamed(LARS):
        """As LARS."""

    layer = torch.nn.Parameter(torch.ones(3, 3))
    Renamed([layer], 1.0, fused=True)
    with pytest.raises(UserError, match="fused"):
        Capped([layer], 1.0, fused=True)
    layer.grad = torch.full_like(layer, 1e-6)
    capped = Capped([layer], 1.0, eta=1.0)
    capped.step()
    assert capped.layer_rates()[layer] == 0.1


def test_a_state_that_lacks_an_option_is_refused():
    optimizer = LARS(parameters((3, 3)), 1.0, bias_and_norm="mlperf")
    state = optimizer.state_dict()
    del state["param_groups"][0]["bias_and_norm"]
    with pytest.raises(UserError, match="LARS lacks bias_and_norm: it is of another optimizer, or another version"):
        optimizer.load_state_dict(state)


def test_norms_may_be_a_mapping_a_function_or_named():
    (w,) = parameters((3, 3))
    start = w.detach().clone()
    results = []
    for params, norms in (
        ([w], {w: torch.tensor(3.0)}),
        ([w], lambda: {w: torch.tensor(3.0)}),
        ([("layer", w)], {"layer": torch.tensor(3.0), "elsewhere": torch.tensor(1.0)}),
    ):
        with torch.no_grad():
            w.copy_(start)
        w.grad = torch.ones_like(w)
        CLARS(params, 1.0, norms=norms).step()
        results.append(w.detach().clone())
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])
    with pytest.raises(RuntimeError, match=r"pass CLARS model\.named_parameters"):
        CLARS([w], 1.0, norms={"layer": torch.tensor(3.0)}).step()


def test_step_without_norms_is_an_error():
    model = network()
    norms = PerSampleNorms(model)
    optimizer = CLARS(model.parameters(), 1.0, norms=norms)
    norms.detach()
    model(torch.randn(2, 2, 6, 6).double()).sum().backward()
    with pytest.raises(RuntimeError, match=r"found no per-sample gradient norms.*was detached before"):
        optimizer.step()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"eta": 0.0}, "eta=0.0 must be a finite number > 0"),
        ({"eta": "0.1"}, "eta='0.1' must be"),
        ({"eta": 1e300}, r"eta=1e\+300 must be at most 1e\+30"),
        ({"lr": 1e20, "eta": 1e20}, r"lr=1e\+20 times eta=1e\+20 must be at most 1e\+30"),
        ({"bias_and_norm": "raw"}, "bias_and_norm='raw' is unknown; choose one of eta, mlperf, authors, paper"),
    ],
)
def test_bad_hyperparameters(option, message):
    with pytest.raises(UserError, match=message):
        CLARS(parameters((2, 2)), norms={}, **option)
    with pytest.raises(UserError, match=message):
        LARS([{"params": parameters((2, 2)), **option}], 1.0)


def test_unannounced_scaler_that_unscaled_already_is_an_error():
    model = network()
    optimizer = CLARS(model.parameters(), 1.0, norms=PerSampleNorms(model))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.randn(2, 2, 6, 6).double()).sum()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"CLARS\(grad_scaler=...\)"):
        scaler.step(optimizer)


def test_parameter_groups_by_module_type_and_dimension():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn_free = nn.Linear(3, 3)  # names say nothing
            self.conv = nn.LayerNorm((2, 3))  # a norm with a two-dimensional weight
            self.norm_proj = nn.Conv1d(3, 3, 1)
            self.frozen = nn.Linear(3, 3)
            self.frozen.requires_grad_(False)

    weights_group, bias_and_norm = parameter_groups(Net(), 0.1)
    assert [n for n, _ in weights_group["params"]] == ["bn_free.weight", "norm_proj.weight"]
    assert [n for n, _ in bias_and_norm["params"]] == ["bn_free.bias", "conv.weight", "conv.bias", "norm_proj.bias"]
    assert (weights_group["weight_decay"], bias_and_norm["weight_decay"]) == (0.1, 0.0)
    assert parameter_groups(Net(), 0.1, "authors")[1]["weight_decay"] == 0.1
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1
