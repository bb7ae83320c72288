"""The mode `subset` measures some passes, and they stand for the others."""

from functools import partial
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_clars.norms import PerSampleNorms
from hf_clars.norms.grad_samples import OperatorSamples
from hf_clars.norms.turns import measured_of, period_of
from hf_clars.optimizers import CLARS

from .helpers.turns import (
    BATCH,
    OPTIONS,
    PERIOD,
    alike,
    backward,
    counts,
    found,
    measured_passes,
    network,
    norm_of_one,
    subset,
)


@pytest.mark.parametrize(
    ("norm_samples", "total", "batch", "world_size", "period", "measured"),
    [
        (512, 16384, 16, 1, 32, 16),  # 32 passes of all their samples
        (512, 16384, 16, 64, 16, 8),  # no more passes on a rank
        (512, 16384, 256, 1, 8, 64),  # eight passes at least
        (512, 16384, 1024, 1, 2, 64),
        (512, 16384, 2048, 1, 1, 64),
        (512, 16384, 16384, 1, 1, 512),
        (512, 1200, 16, 1, 2, 16),  # a few more samples than asked for, as a longer period has fewer
        (512, 512, 16, 1, 1, 16),
        (1024, 512, 16, 1, 1, 16),
        (1, 4096, 4, 1, 128, 1),
        (512, 16, 32, 1, 1, 32),  # B was said too small
    ],
)
def test_which_passes_and_how_many_samples(norm_samples, total, batch, world_size, period, measured):
    assert period_of(norm_samples, total, batch, world_size) == period
    assert measured_of(norm_samples, total, batch, period) == measured


@pytest.mark.parametrize("norm_samples", [64, 100])
def test_all_samples_of_a_step_are_the_exact_mode(norm_samples):
    model, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4)), torch.randn(64, 2, 6, 6)
    results = []
    for options in ({}, {"mode": "subset", "norm_samples": norm_samples, "total_batch_size": 64}):
        model.zero_grad()
        with PerSampleNorms(model, **options) as norms:
            for part in x.split(4):
                model(part).square().mean().backward()
            gradients = [p.grad.clone() for p in model.parameters()]
            results.append((norms.sums(), norms.square_sums(), norms.per_sample(), gradients))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("last", [BATCH, 1])
@pytest.mark.parametrize("passes", [1, 2, PERIOD, PERIOD + 1, 3 * PERIOD - 1])
def test_measured_passes_stand_for_the_others(passes, last):
    model = network()
    one = norm_of_one(model)
    with subset(model) as norms, measured_passes() as measured:
        for _ in range(passes):
            backward(model)
        backward(model, last)
        samples = passes * BATCH + last
        assert found(model, norms) == pytest.approx({name: samples * norm for name, norm in one.items()}, rel=1e-12)
        assert counts(norms) == {samples}
        squares = {name: d.item() for name, d in norms.square_sums().items()}
        assert squares == pytest.approx({name: samples * norm**2 for name, norm in one.items()}, rel=1e-12)
        assert measured == [n % PERIOD == 0 for n in range(passes + 1)]


@pytest.mark.parametrize("norm_samples", [32, 12])  # all samples of a pass, and some
def test_the_estimate_is_unbiased(norm_samples):
    """The mean over all passes with which a step may begin is the exact sum, here of measured samples in their turn."""
    model = network()
    x = torch.randn(32, BATCH, 3).double()

    def sums(norms: PerSampleNorms, order: list[int]) -> torch.Tensor:
        norms.reset()
        norms.close_gradient()
        model.zero_grad()
        for number in order:
            model(x[number]).square().sum().backward()
        return torch.stack(list(norms.sums().values()))

    with PerSampleNorms(model) as norms:
        exact = sums(norms, list(range(32)))
    estimates = []
    with subset(model, norm_samples=norm_samples) as norms:
        for shift in range(32):
            for rotation in range(BATCH):
                x = x.roll(1, 1)
                if norm_samples == 32 and rotation:
                    continue
                estimates.append(sums(norms, [(n + shift) % 32 for n in range(32)]))
    torch.testing.assert_close(torch.stack(estimates).mean(0), exact, rtol=1e-9, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_passes_of_all_samples_return_the_gradient_from_measuring(autocast):
    """As the exact mode does, and not with a product more; that of an unmeasured pass is the same."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3)), torch.randn(4, 4, 8, 8)
    with (
        subset(model) as norms,
        measured_passes() as measured,
        mock.patch.object(OperatorSamples, "squares_and_gradient", autospec=True,
                          side_effect=OperatorSamples.squares_and_gradient) as fused,
    ):  # fmt: skip
        gradients = []
        for _ in range(PERIOD + 1):
            with torch.autocast("cpu", torch.bfloat16, autocast):
                y = model(x)
            y.float().square().mean().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert measured == [True, False, False, False, True]
    assert fused.call_count == 4  # two layers, two passes
    assert norms.untracked == {}
    for n, gradient in enumerate(gradients, 1):
        torch.testing.assert_close(
            gradient / n, gradients[0], rtol=2e-2 if autocast else 1e-4, atol=1e-3 * autocast + 1e-6
        )


def zero_each(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad.zero_()


def zero_one(model: nn.Module) -> None:
    model[2].weight.grad.zero_()
    for name, parameter in model.named_parameters():
        if name != "2.weight":
            parameter.grad = None


CLEARED = [nn.Module.zero_grad, partial(nn.Module.zero_grad, set_to_none=False), zero_each, zero_one]


@pytest.mark.parametrize("clear", CLEARED)
@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_gradient_that_is_cleared_begins_with_a_measured_pass(clear, when):
    model = network()
    one = norm_of_one(model)
    with subset(model) as norms, measured_passes() as measured:
        backward(model)
        for _ in range(3):
            for number in range(6):
                if number == 0 and when == "before":
                    clear(model)
                loss = model(alike()).square().sum()
                if number == 0 and when == "amid":
                    clear(model)
                loss.backward()
        if when == "before":
            assert measured == [True] + 3 * [True, False, False, False, True, False]
        assert counts(norms) == {6 * BATCH}
        assert found(model, norms) == pytest.approx({n: 6 * BATCH * norm for n, norm in one.items()}, rel=1e-12)
        total = {name: 19 * BATCH * norm for name, norm in one.items()}
        assert {name: d.item() for name, d in norms.sums().items()} == pytest.approx(total, rel=1e-12)


def test_steps_end_gradients_skipped_ones_too():
    model = network()
    norms = subset(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    optimizers = [CLARS(model[index].parameters(), 0.1, norms=norms) for index in (0, 2)]
    with measured_passes() as measured:
        for step in range(4):
            for _ in range(3):
                scaler.scale(model(alike()).square().sum()).backward()
            if step == 1:
                model[0].weight.grad.fill_(torch.inf)
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            for optimizer in optimizers:
                optimizer.zero_grad()
    assert measured == 4 * [True, False, False]
    assert norms.untracked == {}


def test_sums_that_are_read_have_a_measured_pass_come_next():
    model = network()
    one = norm_of_one(model)
    with subset(model) as norms, measured_passes() as measured:
        for passes in range(1, 4):
            backward(model)
            loss = model(alike()).square().sum()
            assert found(model, norms)["2.weight"] == pytest.approx((2 * passes - 1) * BATCH * one["2.weight"])
            loss.backward()  # what was measured last stands for it, though it is summed up
            assert found(model, norms)["2.weight"] == pytest.approx(2 * passes * BATCH * one["2.weight"])
            assert counts(norms) == {2 * passes * BATCH}
        norms.reset()
        backward(model)
        assert norms.sums()["2.weight"].item() == pytest.approx(BATCH * one["2.weight"])
    assert measured == 3 * [True, False] + [True]


def test_passes_without_a_backward_pass_count_for_nothing():
    model = network()
    one = norm_of_one(model)
    with subset(model) as norms:
        for _ in range(2 * PERIOD):
            with torch.no_grad():
                model(alike(7))
            model(alike(7))  # its loss is dropped
            backward(model)
            x = alike(5).requires_grad_()
            torch.autograd.grad(model(x).sum(), x)  # no gradient of a parameter
        assert found(model, norms) == pytest.approx({n: 2 * PERIOD * BATCH * norm for n, norm in one.items()})
        assert counts(norms) == {2 * PERIOD * BATCH}
        assert norms.untracked == {}


@pytest.mark.parametrize("parts", [False, True])
def test_calls_before_one_backward_pass_are_measured_together(parts):
    """As in the exact mode, which counts a sample once, however often it is used before."""
    model = network()

    def loss() -> torch.Tensor:
        if parts:
            return model[2](model[1](model[0](alike()))).square().sum()
        return (model(alike()) * model(2 * alike())).sum()

    results = []
    for options in ({}, {"mode": "subset", **OPTIONS}):
        model.zero_grad()
        with PerSampleNorms(model, **options) as norms, measured_passes() as measured:
            for _ in range(PERIOD + 2):
                loss().backward()
            results.append((norms.denominators(), counts(norms)))
            assert norms.untracked == {}
    torch.testing.assert_close(*[denominators for denominators, _ in results], rtol=1e-9, atol=0)
    assert results[0][1] == results[1][1] == {(PERIOD + 2) * BATCH}
    calls = 3 if parts else 2
    assert measured == [n // calls % PERIOD == 0 for n in range(calls * (PERIOD + 2))]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_activation_checkpointing(reentrant, whole):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.body, self.last = nn.Linear(3, 3), network(), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(checkpoint(self.body, self.first(x), use_reentrant=reentrant))

    torch.manual_seed(0)
    model = network() if whole else Checkpointed().double()
    one = norm_of_one(model) if not reentrant else None
    with subset(model) as norms, measured_passes() as measured:
        for _ in range(PERIOD + 2):
            x = alike().requires_grad_()
            y = checkpoint(model, x, use_reentrant=reentrant) if whole else model(x)
            y.square().sum().backward()
        results = found(model, norms)
        if one is None:
            model.zero_grad()
            one = {name: d / 6 / BATCH for name, d in results.items()}
        assert results == pytest.approx({n: 6 * BATCH * norm for n, norm in one.items()}, rel=1e-9)
        assert counts(norms) == {6 * BATCH}
        assert norms.untracked == {}
    # A model that is called by a checkpointed function is measured each time: its results show no backward pass.
    assert not whole or all(measured)
    assert whole or measured == [True, False, False, False, True, False]
