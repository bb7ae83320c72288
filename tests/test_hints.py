"""What a message advises is what helps: `CLARS.step()` without norms, in each state that it may find."""

import copy

import pytest
import torch
from torch import nn

from hf_clars import CLARS, PerSampleNorms, UserError
from hf_clars.optimizers import AdaScale

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def backward(model) -> None:
    model(X).square().sum().backward()


def attached_to_another(model):
    optimizer = CLARS(model.parameters(), 1.0, norms=PerSampleNorms(network()))
    backward(model)
    return optimizer


def attached_to_another_that_is_trained_too(model):
    other = network()
    optimizer = CLARS(model.parameters(), 1.0, norms=PerSampleNorms(other))
    backward(other)
    backward(model)
    return optimizer


def attached_to_what_was_copied(model):
    norms = PerSampleNorms(network())
    twin = copy.deepcopy(norms.model)
    backward(twin)
    return CLARS(twin.parameters(), 1.0, norms=norms)


def detached(model):
    norms = PerSampleNorms(model)
    norms.detach()
    backward(model)
    return CLARS(model.parameters(), 1.0, norms=norms)


def detached_after_a_step(model):
    norms = PerSampleNorms(model)
    optimizer = CLARS(model.parameters(), 1.0, norms=norms)
    backward(model)
    optimizer.step()
    optimizer.zero_grad()
    norms.detach()
    backward(model)
    return optimizer


def attached_after_the_forward_pass(model, **options):
    loss = model(X).square().sum()
    optimizer = CLARS(model.parameters(), 1.0, norms=PerSampleNorms(model, **options))
    loss.backward()
    return optimizer


def called_by_another_method(model):
    optimizer = CLARS(model.parameters(), 1.0, norms=PerSampleNorms(model))
    nn.functional.linear(X, model[0].weight).sum().backward()
    return optimizer


def stepped_twice(model):
    optimizer = CLARS(model.parameters(), 1.0, norms=PerSampleNorms(model))
    backward(model)
    optimizer.step()
    return optimizer


def reset(model):
    norms = PerSampleNorms(model)
    backward(model)
    norms.reset()
    return CLARS(model.parameters(), 1.0, norms=norms)


def an_empty_mapping(model):
    backward(model)
    return CLARS(model.parameters(), 1.0, norms={})


def a_function_that_knows_nothing(model):
    backward(model)
    return CLARS(model.parameters(), 1.0, norms=dict)


def adascale(model):
    norms = PerSampleNorms(model)
    norms.detach()
    backward(model)
    return AdaScale(model.parameters(), 1.0, norms=norms)


STATES = {
    attached_to_another: "is attached to a Sequential that has none of the optimizer's parameters",
    attached_to_another_that_is_trained_too: "is attached to a Sequential that has none of the optimizer's parameters",
    attached_to_what_was_copied: "is attached to a Sequential that has none of the optimizer's parameters",
    detached: "was detached before they were computed: attach",
    detached_after_a_step: "was detached before they were computed: attach",
    attached_after_the_forward_pass: "is attached, and has seen no forward pass of the Sequential since",
    called_by_another_method: "is attached, and has seen no forward pass of the Sequential since",
    stepped_twice: "used up by an earlier step.*: call zero_grad.* and backward.* before the next step",
    reset: "or forgotten by reset",
    an_empty_mapping: r"CLARS\(norms=\{\}\) has none: hand it a PerSampleNorms\(model\)",
    a_function_that_knows_nothing: r"CLARS\(norms=<class 'dict'>\) has none: hand it a PerSampleNorms\(model\)",
    adascale: "^AdaScale.*was detached before they were computed: attach",
}


@pytest.mark.parametrize("state", STATES)
def test_a_step_without_norms_says_what_is_the_case(state):
    model = network()
    optimizer = state(model)
    before = copy.deepcopy(list(optimizer.param_groups[0]["params"]))
    with pytest.raises(RuntimeError, match=STATES[state]) as refused:
        optimizer.step()
    assert "\n" not in str(refused.value)
    assert ("attach" in str(refused.value).replace("attached", "").replace("detached", "")) == (
        state in (detached, detached_after_a_step, adascale)
    )
    for after, weight in zip(optimizer.param_groups[0]["params"], before, strict=True):
        assert torch.equal(after, weight)


@pytest.mark.parametrize("mode", ["subset", "micro_batch"])
def test_in_other_modes(mode):
    model = network()
    norms = PerSampleNorms(model, mode)
    optimizer = CLARS(model.parameters(), 1.0, norms=norms)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(RuntimeError, match="is attached, and has seen no forward pass"):
        optimizer.step()
    model.zero_grad()
    backward(model)
    optimizer.step()
    with pytest.raises(RuntimeError, match="used up by an earlier step"):
        optimizer.step()


def test_a_forward_pass_without_gradients_is_not_the_one():
    """Here it is attached, and the forward pass was seen: what is wrong is where the gradients are from."""
    model = network()
    optimizer = CLARS(model.parameters(), 1.0, norms=PerSampleNorms(model))
    with torch.no_grad():
        model(X)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.warns(UserWarning, match="its gradient, or part of it, did not come through a forward pass") as said:
        optimizer.step()
    assert {w.filename for w in said} == {__file__}


def frozen(model, optimizer) -> None:
    model.requires_grad_(False)
    model(X)


def without_samples(model, optimizer) -> None:
    model(X[:0]).square().sum().backward()


def zeroed(model, optimizer) -> None:
    backward(model)
    optimizer.zero_grad(set_to_none=False)


def nothing(model, optimizer) -> None:
    pass


@pytest.mark.parametrize("rest", [frozen, without_samples, zeroed, nothing])
def test_where_nothing_moves_nothing_is_said(rest):
    model = network()
    optimizer = CLARS(model.parameters(), 1.0, norms=PerSampleNorms(model))
    before = copy.deepcopy(list(model.parameters()))
    rest(model, optimizer)
    optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))


def test_vectors_that_nobody_measures_need_no_norms():
    model = network()
    norms = PerSampleNorms(model, bias_and_norm=False)
    optimizer = CLARS([model[0].bias, model[2].bias], 1.0, norms=norms)
    before = model[0].bias.detach().clone()
    backward(model)
    optimizer.step()
    assert not torch.equal(model[0].bias, before)


@pytest.mark.parametrize("norms", [None, 3, network()], ids=lambda norms: type(norms).__name__)
def test_what_measures_nothing_is_refused_at_once(norms):
    with pytest.raises(
        UserError, match=rf"CLARS needs norms=PerSampleNorms\(model\), .* type {type(norms).__name__} measure nothing"
    ):
        CLARS(network().parameters(), 1.0, norms=norms)


def test_a_part_that_is_measured_already():
    model = network()
    PerSampleNorms(model[0])
    with pytest.raises(UserError, match="attached to this model, or to part of it: detach"):
        PerSampleNorms(model)
