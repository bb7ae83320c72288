"""M_k of Fig. 2 against a loop over samples."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_clars import PerSampleNorms, UserError, gradient_variance


def test_against_a_loop_over_samples():
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)).double()
    x, y = torch.randn(11, 4).double(), torch.randint(0, 3, (11,))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    got = gradient_variance(model, [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])], F.cross_entropy)
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert got.keys() == {"0.weight", "2.weight"}
    for name, weight in model.named_parameters():
        if name in got:
            each = torch.stack(
                [
                    torch.autograd.grad(F.cross_entropy(model(a[None]), b[None]), weight)[0]
                    for a, b in zip(x, y, strict=True)
                ]
            )
            expected = each.flatten(1).norm(dim=1).square().mean() / each.mean(0).norm().square()
            assert got[name] == pytest.approx(expected.item(), rel=1e-9)
            assert got[name] >= 1


def test_equal_samples_have_factor_one():
    model = nn.Linear(4, 3).double()
    x, y = torch.randn(1, 4).double().expand(6, 4), torch.zeros(6, dtype=torch.long)
    assert gradient_variance(model, [{"input": x, "labels": y}], F.cross_entropy)["weight"] == pytest.approx(1)


def test_bad_input_leaves_the_model_alone():
    model = nn.Linear(4, 3)
    with pytest.raises(UserError, match="got no batch"):
        gradient_variance(model, [], F.cross_entropy)
    with pytest.raises(UserError, match="needs its targets under 'labels'; it has input"):
        gradient_variance(model, [{"input": torch.ones(2, 4)}], F.cross_entropy)
    assert "forward" not in model.__dict__
    with PerSampleNorms(model), pytest.raises(UserError, match="another PerSampleNorms"):
        gradient_variance(model, [], F.cross_entropy)
    assert not math.isnan(model.weight.sum().item())
