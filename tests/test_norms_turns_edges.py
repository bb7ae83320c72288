"""The mode `subset` where passes differ, come past what is watched, or are not seen."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_clars import PerSampleNorms

from .helpers.turns import BATCH, PERIOD, alike, backward, counts, found, measured_passes, network, subset


class Routes(nn.Module):
    """Each pass takes one of two ways."""

    def __init__(self):
        super().__init__()
        self.trunk, self.ways = nn.Linear(3, 3), nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])

    def forward(self, x, way):
        return self.ways[way](self.trunk(x))


def test_a_parameter_that_unmeasured_passes_alone_use_is_not_named():
    model = Routes().double()
    with subset(model, untracked="error") as norms:
        for _ in range(2):
            for way in (0, 1, 1):
                model(alike(), way).sum().backward()
            assert set(found(model, norms)) == {"trunk.weight", "trunk.bias", "ways.0.weight", "ways.0.bias"}
            model.zero_grad()
            norms.close_gradient()
        model(alike(), 1).sum().backward()
        assert "ways.1.weight" in found(model, norms)
        assert norms.untracked == {}


def test_a_gradient_that_comes_past_is_named_before_passes_go_unmeasured():
    model = network()
    with subset(model, bias_and_norm=False) as norms:
        for gradient in range(3):  # in the first two passes what arrives is checked, too
            model.zero_grad()
            norms.close_gradient()
            for _ in range(3):
                if gradient < 2:
                    backward(model)
                else:  # no watched call uses the last layer
                    F.linear(model[0](alike()).tanh(), model[2].weight).square().sum().backward()
        with pytest.warns(UserWarning, match=r"2\.weight"):
            norms.denominators()
        assert set(norms.untracked) == {"2.weight"}


def test_a_check_that_is_under_way_takes_no_unmeasured_pass_for_a_difference():
    """Forward passes run ahead of their backward passes by one, so that either kind meets the other."""
    model = network()
    with subset(model, untracked="error") as norms:
        backward(model)
        ahead = model(alike())
        for _ in range(5 * PERIOD - 1):
            behind, ahead = ahead, model(alike())
            behind.square().sum().backward()
        norms.denominators()
        assert norms.untracked == {}
        assert counts(norms) == {5 * PERIOD * BATCH}


def test_results_that_no_backward_pass_shows_have_each_pass_measured():
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            self.features = self.body[0](x)
            return self.body[2](self.body[1](self.features)).detach()

    model = Kept()
    with subset(model) as norms, measured_passes() as measured:
        for _ in range(3):
            model(alike())
            model.features.square().sum().backward()
        assert counts(norms) == {3 * BATCH}
    assert measured == [True, True, True]


@pytest.mark.parametrize("again", [False, True])
def test_attached_anew_begins_with_a_measured_pass(again):
    model = network()
    norms = subset(model)
    for _ in range(2):
        backward(model)
    model(alike())  # an unmeasured pass that never comes back
    norms.detach()
    model.zero_grad()
    with norms.resume() if again else norms.attach(), measured_passes() as measured:
        backward(model)
        assert counts(norms) == {BATCH}
    assert measured == [not again]


@pytest.mark.parametrize("total", [None, BATCH])
def test_a_batch_that_is_the_whole_step_is_measured_each_time(total):
    model = network()
    with subset(model, norm_samples=2, total_batch_size=total) as norms, measured_passes() as measured:
        for _ in range(3):
            backward(model)
            assert norms.per_sample()["2.weight"].shape == (2,)
    assert measured == [True, True, True]


def test_several_backward_passes_of_one_call_have_each_pass_measured():
    """One of them would stand for all, and they need not be alike."""
    found = {}
    for mode in ("subset", "per_sample"):
        model, x = nn.Linear(3, 1, bias=False), torch.ones(2, 3)
        with PerSampleNorms(model, mode, norm_samples=2, total_batch_size=32) as norms:
            for _ in range(16):
                y = model(x)
                y.sum().backward(retain_graph=True)
                (100 * y.sum()).backward()
            found[mode] = norms.sums()["weight"]
    torch.testing.assert_close(found["subset"], found["per_sample"])
