"""The four optimizers do what torch's own do, wherever nothing of CLARS is at stake; each test runs over a table."""

import copy
import io
import itertools
import math
import pickle

import pytest
import timm.optim
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from hf_clars.errors import UserError
from hf_clars.norms import PerSampleNorms
from hf_clars.optimizers import CLARS, LARS, NAG, AuthorsCLARS

from .helpers.parameters import assert_close, copies, give_gradients, parameters, snapshot, step_all, unchanged
from .helpers.slow import slow_but


def clars(params, *args, **options):
    def norms():
        return {p: p.grad.norm() * 3 for group in made.param_groups for p in group["params"] if p.grad is not None}

    made = CLARS(params, *args, norms=norms, **options)
    return made


class Authors(AuthorsCLARS):
    """Measures by itself, for the gradient at hand."""

    def _update(self):
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        self.measured({p: p.grad.norm() * 3 for p in parameters})
        super()._update()


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where the fused form is taken
MAKERS = {"clars": clars, "lars": LARS, "mnag": NAG, "authors": Authors}
every = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)

VARIANTS = {
    "default": {},
    "lr": {"lr": 0.01},
    "tensor lr": {"lr": torch.tensor(0.02)},
    "tensor lr of one dimension": {"lr": torch.tensor([0.02])},
    "weight decay": {"lr": 0.02, "weight_decay": 0.1},
    "no momentum": {"lr": 0.02, "momentum": 0.0},
    "all": {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.1},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


# --- it goes the right way ---------------------------------------------------------------------------------------

SCHEDULES = {
    "none": lambda optimizer: [],
    "step": lambda optimizer: [lr_scheduler.StepLR(optimizer, 5, 0.9)],
    "plateau": lambda optimizer: [lr_scheduler.ReduceLROnPlateau(optimizer, threshold=1e-2)],
    "several": lambda optimizer: [
        lr_scheduler.LinearLR(optimizer, 0.4, total_iters=4),
        lr_scheduler.ExponentialLR(optimizer, 0.99),
    ],
    "cosine": lambda optimizer: [lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5)],
    "sequence": lambda optimizer: [
        lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.ConstantLR(optimizer, 0.5, 3), lr_scheduler.PolynomialLR(optimizer, 40, 2)],
            [3],
        )
    ],
    "one cycle": lambda optimizer: [lr_scheduler.OneCycleLR(optimizer, 0.02, 60)],
    "cyclic": lambda optimizer: [lr_scheduler.CyclicLR(optimizer, 0.01, 0.02, 5, max_momentum=0.9)],
}


def is_quick(case) -> bool:
    variant, foreach, schedule = case
    return schedule == "none" or (variant == "tensor lr" and foreach)


@every
@pytest.mark.parametrize(
    ("variant", "foreach", "schedule"), slow_but(is_quick, itertools.product(VARIANTS, (False, True), SCHEDULES))
)
def test_the_loss_falls(make, variant, foreach, schedule):
    weight, bias = parameters((10, 5), (10,))
    x = torch.randn(5, generator=torch.Generator().manual_seed(2))
    options = VARIANTS[variant] | ({} if make is Authors else {"foreach": foreach})
    optimizer = make([weight, bias], **copy.deepcopy(options))
    schedules = SCHEDULES[schedule](optimizer)

    def closure():
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).square().sum()
        loss.backward()
        return loss

    first = closure().item()
    for _ in range(40):
        loss = optimizer.step(closure)
        for one in schedules:
            one.step(loss.item()) if isinstance(one, lr_scheduler.ReduceLROnPlateau) else one.step()
    assert closure().item() < first


@every
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("form", [False, True])
def test_complex_parameters_are_pairs_of_real_ones(make, dtype, form):
    options = {"lr": 0.5, "weight_decay": 0.01, **({} if make is Authors else {"foreach": form})}
    weights = [nn.Parameter(torch.randn(3, 4, dtype=dtype)), nn.Parameter(torch.randn(5, dtype=dtype))]
    twins = [nn.Parameter(torch.view_as_real(w.detach()).clone()) for w in weights]
    adapted = [{"params": [twins[0]], "layer_adaptation": True}, {"params": [twins[1]], "layer_adaptation": False}]
    optimizers = [make(weights, **options), make(adapted, **options)]
    for _ in range(3):
        for w, t in zip(weights, twins, strict=True):
            w.grad = torch.randn_like(w)
            t.grad = torch.view_as_real(w.grad).clone()
        for optimizer in optimizers:
            optimizer.step()
    for w, t in zip(weights, twins, strict=True):
        torch.testing.assert_close(torch.view_as_real(w.detach()), t.detach())
    for w, t in zip(weights, twins, strict=True):
        assert not optimizers[0].layer_rates()[w].is_complex()
        torch.testing.assert_close(optimizers[0].layer_rates()[w], optimizers[1].layer_rates()[t])


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shapes_and_dtypes(make, dtype):
    params = parameters((), (0,), (0, 3), (3,), (2, 3), (1, 1, 1, 1), dtype=dtype)
    before = snapshot(params)
    optimizer = make(params, lr=10.0)
    for step in range(2):
        step_all([optimizer], step)
    for p, b in zip(params, before, strict=True):
        assert p.dtype == dtype
        assert p.isfinite().all()
        assert p.numel() == 0 or not torch.equal(p, b)
        assert optimizer.state[p]["momentum_buffer"].dtype == dtype


@every
def test_a_tensor_learning_rate_is_the_number(make):
    results = []
    for lr in (0.03, torch.tensor(0.03), torch.tensor([0.03]), torch.tensor(0.03, dtype=torch.float64)):
        params = parameters((4, 3), (3,))
        optimizer = make(params, lr=lr)
        for step in range(3):
            step_all([optimizer], step)
        results.append(params)
    for other in results[1:]:
        assert_close(other, results[0])


# --- rest --------------------------------------------------------------------------------------------------------


@every
@variants
def test_a_step_without_gradients_does_nothing(make, options):
    params = parameters((4, 3), (3,))
    before = snapshot(params)
    optimizer = make(params, **copy.deepcopy(options))
    assert optimizer.step() is None
    assert optimizer.step(lambda: 7) == 7
    assert unchanged(params, before)
    assert not optimizer.state_dict()["state"]


def test_a_step_without_gradients_asks_for_no_norms():
    def norms():
        raise AssertionError

    CLARS(parameters((4, 3)), norms=norms).step()
    AuthorsCLARS(parameters((4, 3))).step()
    model = nn.Linear(3, 2)
    CLARS(model.parameters(), norms=PerSampleNorms(model)).step()


@every
@variants
def test_a_step_with_zero_gradients_moves_nothing(make, options):
    if options.get("weight_decay"):
        pytest.skip("decay moves weights by itself, as in torch")
    params = parameters((4, 3), (3,))
    before = snapshot(params)
    optimizer = make(params, **copy.deepcopy(options))
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert unchanged(params, before)


def test_zero_gradients_need_no_norms_and_others_do():
    model = nn.Linear(3, 2)
    for optimizer in (CLARS(model.parameters(), norms=PerSampleNorms(model)), AuthorsCLARS(model.parameters())):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        model.weight.grad[0, 0] = 1e-30
        with pytest.raises(RuntimeError, match=r"has seen no forward pass|measured\(\)"):
            optimizer.step()


@every
def test_parameters_without_a_gradient_rest(make):
    params = parameters((4, 3), (3, 3), (3,))
    params[1].requires_grad_(False)
    before = snapshot(params)
    optimizer = make(params, lr=0.1)
    give_gradients([params[0]])
    optimizer.step()
    assert unchanged(params[1:], before[1:])
    assert not torch.equal(params[0], before[0])
    assert set(optimizer.state) == {params[0]}


@every
def test_empty_groups(make):
    params = parameters((4, 3))
    optimizer = make([{"params": []}, {"params": params, "lr": 0.1}, {"params": []}], lr=0.3)
    before = snapshot(params)
    optimizer.step()
    step_all([optimizer])
    optimizer.zero_grad()
    assert not unchanged(params, before)
    optimizer.load_state_dict(optimizer.state_dict())
    nothing = make([{"params": []}])
    nothing.step()
    nothing.zero_grad()


def test_empty_groups_under_a_grad_scaler():
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    for announced in (None, scaler):
        optimizer = CLARS([{"params": []}, {"params": parameters((2, 2))}], norms={}, grad_scaler=announced)
        for p in optimizer.param_groups[1]["params"]:
            p.grad = torch.zeros_like(p)
        scaler.unscale_(optimizer) if announced else None
        scaler.step(optimizer)
        scaler.update()


# --- groups ------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("named", [False, True])
def test_options_of_groups(make, named):
    weight, bias, frozen = parameters((4, 3), (3,), (3, 3))
    before = snapshot([weight, bias, frozen])
    own = [("weight", weight)] if named else [weight]
    others = [("bias", bias)] if named else [bias]
    optimizer = make([{"params": own, "weight_decay": 0.5}, {"params": others, "lr": 0.0}], lr=0.1)
    optimizer.add_param_group({"params": [("frozen", frozen)] if named else frozen, "lr": 0.0})
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.0, 0.0]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0.0, 0.0]
    assert ("param_names" in optimizer.param_groups[2]) == named
    give_gradients([weight, bias, frozen])
    optimizer.step()
    assert not torch.equal(weight, before[0])
    assert unchanged([bias, frozen], before[1:])


def test_default_learning_rates():
    weight = parameters((2, 2))
    optimizers = [CLARS(weight, norms={}), LARS(weight), NAG(weight), AuthorsCLARS(weight)]
    assert [o.defaults["lr"] for o in optimizers] == [1.0, 1.0, 1e-3, 0.1]


ONE = parameters((1, 1))[0]
TWO = parameters((1, 1))[0]
REFUSED = {  # by torch, or in our words
    "a tensor for a list": (ONE, {}, TypeError, "."),
    "nothing": ([], {}, ValueError, "."),
    "no leaf": ([ONE * 2], {}, ValueError, "."),
    "in two groups": ([{"params": ONE}, {"params": ONE}], {}, ValueError, "."),
    "names of some": ([("weight", ONE), TWO], {}, ValueError, "."),
    "groups without": ([{"params": [ONE]}, {"params": [("w", TWO)]}], {}, ValueError, "."),
    "two learning rates": ([ONE], {"lr": torch.tensor([0.1, 0.2])}, UserError, "Tensor lr must be 1-element"),
    "no learning rate": ([ONE], {"lr": torch.tensor([])}, UserError, "Tensor lr must be 1-element"),
    "of a group": ([{"params": [ONE], "lr": torch.tensor([1.0, 2.0])}], {}, UserError, "Tensor lr must be 1-element"),
    "negative": ([ONE], {"lr": -0.1}, UserError, "lr=-0.1 must be a finite number ≥ 0"),
    "negative tensor": ([ONE], {"lr": torch.tensor(-0.5)}, UserError, r"lr=tensor\(-0.5000\) must be"),
    "no number": ([ONE], {"lr": math.nan}, UserError, "lr=nan must be"),
    "momentum": ([ONE], {"momentum": -0.5}, UserError, "momentum=-0.5 must be"),
    "momentum of one": ([ONE], {"momentum": 1.0}, UserError, r"momentum=1.0 must be in \[0, 1\)"),
    "decay": ([ONE], {"weight_decay": -0.5}, UserError, "weight_decay=-0.5 must be"),
    "before the parameters": (None, {"lr": -0.1}, UserError, "lr=-0.1 must be"),
    "maximize": ([{"params": [ONE], "maximize": True}], {}, UserError, "has no maximize"),
    "differentiable": ([{"params": [ONE], "differentiable": True}], {}, UserError, "has no differentiable"),
}


@pytest.mark.parametrize("make", [LARS, NAG, AuthorsCLARS, lambda *a, **k: CLARS(*a, norms={}, **k)])
@pytest.mark.parametrize(("params", "options", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(make, params, options, error, message):
    with pytest.raises(error, match=message) as raised:
        make(params, **options)
    assert error is not UserError or "\n" not in str(raised.value)


@every
def test_duplicates_within_a_group_are_pointed_out(make):
    with pytest.warns(UserWarning, match="duplicate"):
        make([ONE, ONE])


@every
def test_what_is_printed(make):
    text = repr(make([{"params": parameters((2, 2)), "lr": 0.25}, {"params": parameters((3,))}], lr=0.5))
    assert text.startswith(("CLARS (", "LARS (", "NAG (", "Authors ("))
    assert "Parameter Group 1" in text
    assert "lr: 0.25" in text
    assert "lr: 0.5" in text


@pytest.mark.parametrize("make", [LARS, NAG])
@pytest.mark.parametrize("fused", [False, True])
def test_sparse_gradients_are_refused(interpreter, make, fused):
    table = nn.Embedding(5, 3, sparse=True, device=DEVICE)
    optimizer = make(table.parameters(), 1.0, fused=fused)
    table(torch.tensor([1, 2], device=DEVICE)).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


# --- hooks -------------------------------------------------------------------------------------------------------


@every
def test_hooks_are_called_once_in_order(make):
    params = parameters((2, 2))
    optimizer = make(params)
    calls = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("all before")),
        register_optimizer_step_post_hook(lambda *_: calls.append("all after")),
        optimizer.register_step_pre_hook(lambda *_: calls.append("before")),
        optimizer.register_step_post_hook(lambda *_: calls.append("after")),
    ]
    try:
        give_gradients(params)
        optimizer.step(lambda: calls.append("closure"))
        assert calls == ["all before", "before", "closure", "after", "all after"]
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert len(calls) == 5
    optimizer.register_step_pre_hook(lambda _, args, kwargs: ((args[0], lambda: 11), kwargs))
    assert optimizer.step() == 11


@every
def test_hooks_of_state_dicts(make):
    optimizer, calls = make(parameters((2, 2))), []
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "note": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, state: calls.append(f"before loading {state['note']}"))
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("after loading"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["before saving", "before loading 1", "after loading"]


# --- state -------------------------------------------------------------------------------------------------------


@every
@variants
@pytest.mark.parametrize("missing", [[], ["foreach", "fused", "uniform"]])
def test_a_loaded_state_goes_on_bit_for_bit(make, options, missing):
    one = parameters((4, 3), (3,))
    optimizer = make([{"params": one[:1]}, {"params": one[1:], "lr": 0.5}], **copy.deepcopy(options))
    for step in range(3):
        step_all([optimizer], step)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    for group in state["param_groups"]:
        for name in missing:
            del group[name]
    other = copies(one)
    twin = make([{"params": other[:1]}, {"params": other[1:]}], lr=0.9)
    twin.load_state_dict(state)
    assert repr(twin) == repr(optimizer)
    for step in range(3, 5):
        step_all((optimizer, twin), step)
    assert unchanged(one, other)


@every
@pytest.mark.parametrize("saved_named", [False, True])
@pytest.mark.parametrize("loaded_named", [False, True])
def test_named_and_unnamed_states(make, saved_named, loaded_named):
    states = []
    for named in (saved_named, loaded_named):
        model = nn.Linear(3, 2)
        optimizer = make(list(model.named_parameters() if named else model.parameters()), lr=0.2)
        give_gradients(list(model.parameters()))
        optimizer.step()
        states.append(optimizer)
    states[1].load_state_dict(states[0].state_dict())
    for a, b in zip(states[0].state.values(), states[1].state.values(), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])


@every
def test_the_dtype_of_loaded_state_is_the_parameters(make):
    saved, loaded = parameters((3, 2)), parameters((3, 2), dtype=torch.bfloat16)
    first, second = make(saved), make(loaded)
    step_all([first])
    second.load_state_dict(first.state_dict())
    assert second.state[loaded[0]]["momentum_buffer"].dtype == torch.bfloat16
    give_gradients(loaded)
    second.step()


def measured_model():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    generator = torch.Generator().manual_seed(5)
    for p in model.parameters():
        nn.init.normal_(p, generator=generator)
    return model


def a_step(model, optimizer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["clars", "tensor lr", "lars", "mnag", "authors"])
@pytest.mark.parametrize("stepped", [False, True])
def test_torchs_checkpointing_of_models_with_optimizers(kind, stepped):
    """`get_optimizer_state_dict` makes state by a step of zero gradients, and so does setting it."""

    def make(model):
        if kind == "authors":
            return Authors(model.parameters(), lr=0.1)
        if kind in ("lars", "mnag"):
            return MAKERS[kind](model.parameters(), lr=0.1)
        lr = torch.tensor(0.5) if kind == "tensor lr" else 0.5
        return CLARS(model.parameters(), lr, norms=PerSampleNorms(model))

    model = measured_model()
    optimizer = make(model)
    if stepped:
        a_step(model, optimizer)
    before = snapshot(model.parameters())
    state = get_optimizer_state_dict(model, optimizer)
    assert unchanged(model.parameters(), before)
    assert "0.weight" in state["state"]
    assert float(optimizer.param_groups[0]["lr"]) > 0
    assert all(p.grad is None for p in model.parameters())

    twin = measured_model()
    twin.load_state_dict(model.state_dict())
    other = make(twin)
    set_optimizer_state_dict(twin, other, copy.deepcopy(state))
    a_step(model, optimizer, 1)
    a_step(twin, other, 1)
    assert unchanged(list(model.parameters()), list(twin.parameters()))


# --- copies ------------------------------------------------------------------------------------------------------


def saved_whole(optimizer):
    buffer = io.BytesIO()
    torch.save(optimizer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
    "torch.save": saved_whole,
    "twice": lambda optimizer: copy.deepcopy(copy.deepcopy(optimizer)),
}
every_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


@every_copy
@pytest.mark.parametrize("kind", ["clars", "named clars", "lars", "mnag", "authors", "fused lars", "fused mnag"])
def test_a_copy_steps_as_the_original(interpreter, copied, kind):
    params = parameters((4, 3), (3,), device=DEVICE)
    if "clars" in kind:
        named = kind == "named clars"
        given = [("weight", params[0]), ("bias", params[1])] if named else params
        norms = {"weight" if named else params[0]: torch.tensor(3.0, device=DEVICE)}
        optimizer = CLARS(given, norms=norms, weight_decay=0.01)
    else:
        *fused, kind = kind.split()
        optimizer = MAKERS[kind](params, **({"fused": True} if fused else {}))
    step_all([optimizer])
    twin = copied(optimizer)
    public = [{name for name in vars(o) if not name.startswith("_")} for o in (optimizer, twin)]
    assert public[0] == public[1]
    others = [p for group in twin.param_groups for p in group["params"]]
    assert not {id(p) for p in others} & {id(p) for p in params}
    step_all((optimizer, twin), 7)
    for o, members in ((optimizer, params), (twin, others)):
        assert set(o.layer_rates()) == set(members)
    assert unchanged(params, others)
    late = parameters((2, 2), device=DEVICE)
    twin.add_param_group({"params": [("late", late[0])] if kind == "named clars" else late})
    twin.load_state_dict(twin.state_dict())


@every_copy
@pytest.mark.parametrize("kind", ["measured", "function"])
def test_a_copy_says_that_norms_stayed_behind(copied, kind):
    model = measured_model()
    norms = PerSampleNorms(model) if kind == "measured" else (lambda: {})
    twin = copied(CLARS(model.parameters(), norms=norms))
    for p in twin.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"is a copy.*set its attribute norms, for example to PerSampleNorms") as e:
        twin.step()
    assert "\n" not in str(e.value)
    twin.zero_grad()
    twin.load_state_dict(twin.state_dict())


def test_a_copy_of_model_and_optimizer_goes_on_when_it_is_given_norms():
    model = measured_model()
    optimizer = CLARS(model.parameters(), norms=PerSampleNorms(model))
    a_step(model, optimizer)
    twin, other = copy.deepcopy((model, optimizer))
    other.norms = PerSampleNorms(twin)
    for seed in (1, 2):
        a_step(model, optimizer, seed)
        a_step(twin, other, seed)
    assert unchanged(list(model.parameters()), list(twin.parameters()))


@every_copy
def test_a_copy_says_that_the_scaler_stayed_behind(copied):
    params = parameters((2, 2))
    scaler = torch.amp.GradScaler("cpu")
    twin = copied(CLARS(params, norms={params[0]: torch.tensor(1.0)}, grad_scaler=scaler))
    give_gradients(twin.param_groups[0]["params"])
    with pytest.raises(RuntimeError, match="is a copy, and grad_scaler stayed with the original"):
        twin.step()
    twin.grad_scaler = None
    twin.step()
    off = torch.amp.GradScaler("cpu", enabled=False)
    assert copied(CLARS(params, norms={}, grad_scaler=off)).grad_scaler is None


# --- loss scale --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("announced", [False, True])
@pytest.mark.parametrize("clear_by", ["model", "optimizer"])
@pytest.mark.parametrize(
    ("source", "fused"),
    [("function", False), ("method", False), ("object", False), ("mapping", False), ("mapping", True)],
)
def test_norms_of_any_origin_under_a_grad_scaler(interpreter, announced, clear_by, fused, source):
    """The weights are those of a training without a loss scale."""
    results = []
    for scaled in (False, True):
        model = measured_model().to(DEVICE)
        measured = PerSampleNorms(model)
        scaler = torch.amp.GradScaler(DEVICE, enabled=scaled)
        given = {}
        norms = {
            "function": lambda model=model: {p: p.grad.norm() * 3 for p in model.parameters()},
            "method": measured.denominators,
            "object": measured,
            "mapping": given,
        }[source]
        optimizer = CLARS(model.parameters(), norms=norms, fused=fused, grad_scaler=scaler if announced else None)
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            x, y = torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)
            loss = F.cross_entropy(model(x.to(DEVICE)), y.to(DEVICE)) * (math.inf if scaled and seed == 2 else 1)
            if not scaled and seed == 2:
                continue
            scaler.scale(loss).backward()
            given.update({p: p.grad.norm() * 3 for p in model.parameters()})  # of the scaled loss
            if announced:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            (model if clear_by == "model" else optimizer).zero_grad()
        results.append(snapshot(model.parameters()))
    torch.testing.assert_close(results[0], results[1])


# --- LARS where gradients are small ------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1e-30, 1e-12, 1e-9, 1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("rate", [1.0, 4.0, 25.0])
def test_a_step_of_lars_is_never_longer_than_its_share_of_the_weight(length, rate):
    (w,) = parameters((6, 5), dtype=torch.float64)
    before = w.detach().clone()
    w.grad = torch.randn_like(w)
    w.grad *= length / w.grad.norm()
    LARS([w], rate, momentum=0.0, weight_decay=1e-4).step()
    assert (w.detach() - before).norm() <= rate * 1e-3 * before.norm() * (1 + 1e-9)


class Residual(nn.Module):
    """A convolutional network of residual branches that begin at zero, as timm's ResNets do."""

    def __init__(self, width=8, branches=2):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.branches = nn.ModuleList(self.branch(width) for _ in range(branches))
        self.head = nn.Linear(width, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def branch(self, width):
        convs = [nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2)]
        norms = [nn.BatchNorm2d(width) for _ in range(2)]
        nn.init.zeros_(norms[1].weight)
        return nn.Sequential(convs[0], norms[0], nn.ReLU(), convs[1], norms[1])

    def forward(self, x):
        x = self.stem(x)
        for branch in self.branches:
            x = F.relu(x + branch(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "stays"),
    [
        (lambda m: LARS(m.parameters(), 4.0, weight_decay=1e-4), True),
        (lambda m: LARS(m.parameters(), 4.0, weight_decay=1e-4, decay_in_denominator=False), False),
        (lambda m: timm.optim.Lars(m.parameters(), 4.0, 0.9, weight_decay=1e-4, nesterov=True), True),
        (lambda m: CLARS(m.parameters(), 4.0, weight_decay=1e-4, norms=PerSampleNorms(m)), True),
    ],
    ids=["lars", "Eq. 3 with decay", "timm", "clars"],
)
def test_residual_branches_that_begin_at_zero(make, stays):
    """Behind them gradients are as small as the branch. A convolution before BatchNorm has one of `1/‖w‖`, so that
    `γ_k λ ∝ ‖w‖²` once it has begun to grow: without decay in the denominator of LARS it overflows in five steps.
    """
    torch.manual_seed(0)
    model = Residual()
    optimizer = make(model)
    x, y = torch.randn(256, 3, 8, 8), torch.randint(0, 10, (256,))
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    longest = max(p.norm().item() for p in model.parameters())
    assert (math.isfinite(longest) and longest < 1e3) == stays
    assert not stays or losses[-1] < losses[0]
