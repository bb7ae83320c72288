"""M_k of Fig. 2 against a loop over samples."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_clars import PerSampleNorms, UserError, gradient_variance


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
