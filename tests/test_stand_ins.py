"""Denominators for what is not measured: the formula against NumPy, and CLARS with it."""

import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hf_clars.errors import UserError
from hf_clars.formulas import stand_in_denominators
from hf_clars.norms import PerSampleNorms
from hf_clars.optimizers import CLARS

from .helpers.parameters import give_gradients, parameters

sizes = st.floats(1e-3, 1e3)


@given(st.lists(st.tuples(sizes, sizes | st.none()), min_size=1, max_size=9), st.floats(1e-3, 1))
def test_stand_ins_against_numpy(layers, eta):
    gradient_norms = np.array([g for g, _ in layers])
    measured = [(g, d) for g, d in layers if d is not None]
    found = [math.nan if d is None else d for _, d in layers]
    result = stand_in_denominators(torch.tensor(gradient_norms), torch.tensor(found, dtype=torch.float64), eta)
    median = np.median([g / d for g, d in measured]) if measured else 1e-3 / eta
    expected = [g / median if d is None else d for g, d in layers]
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12)


def test_what_tells_nothing_has_no_part_in_the_median():
    gradient_norms = torch.tensor([0.0, 0.0, math.nan, math.inf, 1.0, 6.0])
    denominators = torch.tensor([0.0, 5.0, math.nan, math.inf, 2.0, math.nan])
    result = stand_in_denominators(gradient_norms, denominators, 0.01)
    assert result[[0, 1, 4, 5]].tolist() == [0.0, 5.0, 2.0, 12.0]
    assert result[2].isnan()  # must show


def layers(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    found = parameters(*shapes, dtype=torch.float64)
    give_gradients(found)
    return found


@pytest.mark.parametrize("given", ["mapping", "function", "names"])
def test_a_layer_that_norms_lack_is_like_the_median_of_the_others(given):
    *measured, other, bias, uniform = given_all = layers((3, 3), (4, 2), (2, 5), (3, 2), (7,), (2, 2))
    norms = {p: 3.0 * (k + 1) * p.grad.norm() for k, p in enumerate(measured)}  # ratios 1/3, 1/6, 1/9
    norms[bias] = bias.grad.norm() / 100  # is not adapted, and no layer
    norms[uniform] = uniform.grad.norm() / 100
    named = [(str(k), p) for k, p in enumerate(given_all)]
    by_name = {name: norms[p] for name, p in named if p in norms}
    groups = [{"params": named[:3]}, {"params": named[3:5], "eta": 0.02}, {"params": named[5:], "uniform": True}]
    norms_of = {"mapping": norms, "function": lambda: norms, "names": by_name}[given]
    optimizer = CLARS(groups, 0.5, eta=0.01, momentum=0.0, norms=norms_of)
    expected = 0.5 * 0.02 * other.detach().norm() / (6 * other.grad.norm())
    optimizer.step()
    torch.testing.assert_close(optimizer.layer_rates()[other], expected)


def test_nothing_is_computed_where_all_is_measured(monkeypatch):
    monkeypatch.setattr("hf_clars.optimizers.sharded.norms_of_any", None)
    matrix, vector = layers((3, 3), (4,))
    CLARS([matrix, vector], 0.5, norms={matrix: torch.tensor(1.0)}).step()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_where_nothing_is_measured_it_is_lars_with_its_own_eta(kind):
    model = kind(4, 3, batch_first=True).double()
    norms = PerSampleNorms(model)
    optimizer = CLARS(model.parameters(), 0.5, eta=0.02, momentum=0.0, norms=norms)
    with pytest.warns(UserWarning, match=r"cannot measure 4 parameter\(s\)"):
        y = model(torch.randn(5, 6, 4).double())[0]
    for _ in range(2):
        y.square().mean().backward()
        expected = {p: 0.5 * 1e-3 * p.detach().norm() / p.grad.norm() for p in model.parameters() if p.ndim == 2}
        optimizer.step()
        for parameter, rate in expected.items():
            torch.testing.assert_close(optimizer.layer_rates()[parameter], rate)
        optimizer.zero_grad()
        y = model(torch.randn(5, 6, 4).double())[0]
    assert norms.untracked.keys() == dict(model.named_parameters()).keys()


class Outside(nn.Module):
    """Its second weight is used in the loss alone, past what is watched."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.inner(x).tanh()

    def loss(self, x):
        return F.linear(self(x), self.outer.weight, self.outer.bias).square().mean()


@pytest.mark.parametrize("change", ["clipped", "scaled loss", "announced scaler", "scaler"])
def test_what_multiplies_all_gradients_cancels(change):
    torch.manual_seed(0)
    model = Outside().double()
    twin = Outside().double()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(6, 4).double()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    rates = []
    for each, changed in ((model, False), (twin, True)):
        announced = scaler if changed and change == "announced scaler" else None
        optimizer = CLARS(each.parameters(), 0.5, norms=PerSampleNorms(each), grad_scaler=announced)
        scales = changed and "scaler" in change
        loss = each.loss(x) * (8 if changed and change == "scaled loss" else 1)
        (scaler.scale(loss) if scales else loss).backward()
        if announced:
            scaler.unscale_(optimizer)
        if changed and change == "clipped":
            nn.utils.clip_grad_norm_(each.parameters(), 1e-3)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            scaler.step(optimizer) if scales else optimizer.step()
        of_clipping = [w for w in said if "gradients were changed between backward() and step()" in str(w.message)]
        assert len(of_clipping) == (changed and change == "clipped")
        assert any("outer.weight: its gradient, or part of it, did not come through" in str(w.message) for w in said)
        rates.append(optimizer.layer_rates()[each.outer.weight])
    torch.testing.assert_close(rates[1] * (8 if change == "scaled loss" else 1), rates[0])


def test_it_may_be_an_error():
    model = Outside()
    norms = PerSampleNorms(model, untracked="error")
    model.loss(torch.randn(5, 4)).backward()
    message = (
        r"^PerSampleNorms cannot measure 1 parameter\(s\), and untracked='error' ends the training: outer\.weight: "
        r"its gradient, or part of it, did not come through a forward pass that was watched; "
        r"untracked='stand_in' trains on$"
    )
    with pytest.raises(UserError, match=message):
        CLARS(model.parameters(), 0.5, norms=norms).step()
    assert set(norms.untracked) == {"outer.weight", "outer.bias"}
    with pytest.raises(UserError, match="untracked='ignore' is unknown; choose one of stand_in, error"):
        PerSampleNorms(nn.Linear(2, 2), untracked="ignore")


def test_vectors_alone_are_no_error():
    class Shifted(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.shift = nn.Parameter(torch.ones(2))

    model = Shifted()
    norms = PerSampleNorms(model, untracked="error")
    (model(torch.randn(5, 3)) + model.shift).sum().backward()
    assert norms.denominators().keys() == {model.weight, model.bias}
    assert set(norms.untracked) == {"shift"}
    PerSampleNorms.detach_all(model)
    norms = PerSampleNorms(model, bias_and_norm=False)
    (model(torch.randn(5, 3)) + model.shift).sum().backward()
    assert norms.denominators().keys() == {model.weight}
    assert norms.untracked == {}


def layer_that_joins(model):
    model.append(nn.Linear(4, 4))
    return list(model[-1].parameters())


def proxies_of_the_loss(model):
    return [nn.Parameter(torch.randn(4, 5))]


@pytest.mark.parametrize("mode", ["per_sample", "subset", "micro_batch"])
@pytest.mark.parametrize("steps_before", [0, 1, 3])
@pytest.mark.parametrize(("added", "name"), [
    (layer_that_joins, r"1\.weight: it joined the model after PerSampleNorms was attached"),
    (proxies_of_the_loss, "parameter 2 of the optimizer: it is outside of the model that is measured"),
])  # fmt: skip
def test_parameters_that_nobody_watches_are_named_when_they_come(added, name, steps_before, mode):
    for untracked in ("stand_in", "error"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4))
        norms = PerSampleNorms(model, mode=mode, untracked=untracked)
        optimizer = CLARS(model.parameters(), 0.5, norms=norms)
        others = []

        def step(model=model, optimizer=optimizer, others=others):
            optimizer.zero_grad()
            out = model(torch.randn(5, 3))
            (out @ others[0] if added is proxies_of_the_loss and others else out).square().sum().backward()
            optimizer.step()

        for _ in range(steps_before):
            step()
        others += added(model)
        optimizer.add_param_group({"params": others})
        if untracked == "error":
            with pytest.raises(UserError, match=name):
                step()
        else:
            with pytest.warns(UserWarning, match=name):
                step()
            step()  # it is said once
            assert others[0] in optimizer.layer_rates()
