"""A denominator lives as long as its gradient, whoever uses the gradient up or clears it."""

import pytest
import torch
from torch import nn

from hf_clars.norms import PerSampleNorms
from hf_clars.optimizers import CLARS

from .helpers.parameters import assert_close


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def denominators(model: nn.Module, norms: PerSampleNorms) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: d.item() for parameter, d in norms.denominators().items()}


def backward(model: nn.Module, x: torch.Tensor) -> None:
    model(x).square().mean().backward()


def zero_each(model):
    for parameter in model.parameters():
        parameter.grad.zero_()


@pytest.mark.parametrize(
    ("clear", "when"),
    [
        (nn.Module.zero_grad, "begin"),
        (lambda model: model.zero_grad(set_to_none=False), "begin"),
        (zero_each, "begin"),
        (zero_each, "middle"),
    ],
)
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_gradients_that_are_cleared_begin_anew(clear, when, passes):
    model, x = network(), torch.randn(4, 3).double()
    with PerSampleNorms(model) as norms:
        for _ in range(passes):
            backward(model, x)
        first = denominators(model, norms)
        for _ in range(3):
            if when == "begin":
                clear(model)
                backward(model, x)
            else:
                loss = model(x).square().mean()
                clear(model)
                loss.backward()
            for _ in range(passes - 1):
                backward(model, x)
            assert denominators(model, norms) == pytest.approx(first, rel=1e-12)
            statistics = norms.gradient_statistics()
            assert {int(samples) for *_, samples in statistics.values()} == {4 * passes}
        total = {name: 4 * d for name, d in first.items()}
        assert {name: d.item() for name, d in norms.sums().items()} == pytest.approx(total, rel=1e-12)


def halve(model):
    for parameter in model.parameters():
        parameter.grad.mul_(0.5)


@pytest.mark.parametrize(
    "write", [lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1e-3), halve], ids=["clipped", "halved"]
)
def test_gradients_that_are_written_to_keep_their_sums(write):
    model, x = network(), torch.randn(4, 3).double()
    with PerSampleNorms(model) as norms:
        backward(model, x)
        once = denominators(model, norms)
        for passes in (2, 3):
            write(model)
            backward(model, x)
            assert denominators(model, norms) == pytest.approx({n: passes * d for n, d in once.items()}, rel=1e-12)


def test_one_layer_zeroed_in_place_leaves_the_others():
    model, x = network(), torch.randn(4, 3).double()
    with PerSampleNorms(model) as norms:
        backward(model, x)
        once = denominators(model, norms)
        model[0].weight.grad.zero_()
        backward(model, x)
        expected = {name: d if name == "0.weight" else 2 * d for name, d in once.items()}
        assert denominators(model, norms) == pytest.approx(expected, rel=1e-12)


def test_two_optimizers_use_up_their_own():
    """In either order, and whether or not gradients are cleared, each steps as if it were alone."""
    torch.manual_seed(0)
    start, x = network(), torch.randn(4, 3).double()
    results = []
    for split in (False, True):
        model = network()
        model.load_state_dict(start.state_dict())
        norms = PerSampleNorms(model)
        parts = [model[0].parameters(), model[2].parameters()] if split else [model.parameters()]
        optimizers = [CLARS(part, 0.5, norms=norms) for part in parts]
        for step in range(3):
            backward(model, x)
            for optimizer in reversed(optimizers):
                optimizer.step()
            if step:
                model.zero_grad()
            else:
                model.zero_grad(set_to_none=False)
        assert norms.untracked == {}
        results.append(list(model.parameters()))
    assert_close(*results, rtol=1e-12, atol=1e-14)


def test_what_one_optimizer_used_up_is_not_named_in_passes_of_another():
    model, x = nn.ModuleDict({"a": network(), "b": network()}), torch.randn(4, 3).double()

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x, part):
            return self.parts[part](x)

    two = Two()
    norms = PerSampleNorms(two)
    optimizers = {part: CLARS(model[part].parameters(), 0.5, norms=norms) for part in "ab"}
    for _ in range(2):
        for part, optimizer in optimizers.items():  # the other's gradients stay, used up
            optimizer.zero_grad()
            two(x, part).square().mean().backward()
            optimizer.step()
    assert norms.untracked == {}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.twice(self.twice(self.first(x)).tanh()))


@pytest.mark.parametrize("make", [network, Tied])
def test_an_optimizer_for_each_parameter_that_steps_in_the_backward_pass(make):
    torch.manual_seed(0)
    plain, x = make().double(), torch.randn(4, 3).double()
    model = make().double()
    model.load_state_dict(plain.state_dict())
    options = {"lr": 0.5, "eta": 0.1, "bias_and_norm": "paper"}
    whole = CLARS(plain.parameters(), norms=PerSampleNorms(plain), **options)
    norms = PerSampleNorms(model)
    single = {parameter: CLARS([parameter], norms=norms, **options) for parameter in model.parameters()}

    def step(parameter: torch.Tensor) -> None:
        single[parameter].step()
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    for _ in range(3):
        backward(plain, x)
        whole.step()
        whole.zero_grad()
        backward(model, x)
    assert norms.untracked == {}
    assert_close(plain.parameters(), model.parameters(), rtol=1e-12, atol=1e-14)


def test_a_gradient_that_comes_past_in_a_later_step_is_named():
    model, x = network(), torch.randn(4, 3).double()
    norms = PerSampleNorms(model, bias_and_norm=False)
    optimizer = CLARS(model.parameters(), 0.5, norms=norms)
    for _ in range(2):
        backward(model, x)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # zeros are no gradient that came past
    assert norms.untracked == {}
    (model[0](x) @ model[2].weight.t()).square().mean().backward()
    backward(model[0], x)
    model[2].weight.grad.add_(1)
    with pytest.warns(UserWarning, match=r"2\.weight: its gradient, or part of it, did not come through"):
        optimizer.step()
    assert set(norms.untracked) == {"2.weight"}


@pytest.mark.parametrize("shape", [(6,), (40, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_a_small_seed_are_not_the_direction_that_gradients_are_compared_along(shape, dtype):
    """The gradient of a cosine is at a right angle to the weight, so along the weight nothing of it would be seen."""

    class Sums(nn.Module):
        def forward(self, x):
            return sum((x * w).flatten(1).sum(1) for w in self.parameters())

    for seed in range(4):
        model = Sums()
        for name in "abcd":
            torch.manual_seed(seed)
            setattr(model, name, nn.Parameter(torch.randn(shape, dtype=dtype)))
        norms = PerSampleNorms(model)
        x = torch.randn(3, *shape, dtype=dtype)
        cosines = [nn.functional.cosine_similarity(w.flatten(), x[0].flatten(), dim=0) for w in model.parameters()]
        (model(x).mean() + 100 * sum(cosines)).backward()
        with pytest.warns(UserWarning, match="did not come through"):
            norms.denominators()
        assert set(norms.untracked) == {*"abcd"}, seed
        norms.detach()
