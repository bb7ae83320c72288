"""Weights that are computed from parameters, or stand in their place: scaled, sparse, detached, of torch.func."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from hf_clars import UserError
from hf_clars.norms import PerSampleNorms

from .helpers.verdicts import assert_right, functional, verdict

# (x, weight [4, 4], bias [4]) of operators that take both
WITH_BIAS = {
    "linear": lambda x, w, b: F.linear(x, w, b),
    "convolution": lambda x, w, b: F.conv1d(x.unsqueeze(1), w.unsqueeze(1)[..., :3], b),
    "transposed": lambda x, w, b: F.conv_transpose1d(x.unsqueeze(2), w.unsqueeze(2), b),
    "layer norm": lambda x, w, b: F.layer_norm(x, (4,), w[0], b),
    "group norm": lambda x, w, b: F.group_norm(x, 2, w[0], b),
    "batch norm": lambda x, w, b: F.batch_norm(x, torch.zeros(4).to(x), torch.ones(4).to(x), w[0], b),
}


class Scaled(nn.Module):
    """One number that is part of an operator's weight, of its bias, or of both."""

    def __init__(self, operator, of):
        super().__init__()
        self.operator, self.of = operator, of
        self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        weight = self.weight * self.scale if "weight" in self.of else self.weight
        bias = self.bias * self.scale if "bias" in self.of else self.bias
        return self.operator(x, weight, bias)


@pytest.mark.parametrize("of", [("weight",), ("bias",), ("weight", "bias")], ids=" and ".join)
@pytest.mark.parametrize("operator", WITH_BIAS)
def test_a_scale_of_weight_and_bias_has_one_contribution(operator, of):
    torch.manual_seed(0)
    assert_right(Scaled(WITH_BIAS[operator], of), torch.randn(3, 4))


def test_a_scale_of_both_in_compiled_code():
    torch.manual_seed(0)
    model, x = Scaled(WITH_BIAS["linear"], ("weight", "bias")).double(), torch.randn(3, 4).double()
    found = []
    for compiled in (False, True):
        with PerSampleNorms(model) as norms:
            run = torch.compile(model, backend="aot_eager") if compiled else model
            run(x).square().mean().backward()
            found.append(norms.per_sample())
    torch.testing.assert_close(found[1], found[0])


class Derived(nn.Module):
    """A layer that is called with something in the place of its parameters."""

    def __init__(self, of):
        super().__init__()
        self.layer, self.of = nn.Linear(4, 2), of

    def forward(self, x):
        return functional_call(self.layer, {name: self.of(p) for name, p in self.layer.named_parameters()}, (x,))


OF_PARAMETERS = {
    "itself": lambda p: p, "scaled": lambda p: 10 * p, "copied": torch.clone, "bent": torch.tanh,
    "constant": torch.detach, "another leaf": lambda p: p.detach().requires_grad_(),
}  # fmt: skip


@pytest.mark.parametrize("of", OF_PARAMETERS)
def test_what_functional_call_puts_in_the_place_of_parameters(of):
    torch.manual_seed(0)
    model = nn.Sequential(Derived(OF_PARAMETERS[of]), nn.Linear(2, 2))
    assert_right(model, torch.randn(3, 4))


@pytest.mark.parametrize("of", [name for name in OF_PARAMETERS if name != "constant"])
def test_what_functional_call_puts_there_from_outside(of):
    torch.manual_seed(0)
    of = OF_PARAMETERS[of]

    def loss(layer, x):
        return functional(lambda x: functional_call(layer, {n: of(p) for n, p in layer.named_parameters()}, (x,)), x)

    found = verdict(nn.Linear(4, 2).double(), torch.randn(3, 4).double(), loss)
    assert found.word in ("right", "named"), found.why


class Sparse(nn.Module):
    """Adds a few numbers to a frozen matrix, as SHiRA does. Backward passes of sparse tensors are not batched."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randn(6, 4))
        self.register_buffer("at", torch.tensor([[0, 2, 5], [1, 3, 0]]))
        self.values = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return F.linear(x, self.weight + torch.sparse_coo_tensor(self.at, self.values, (6, 4), check_invariants=True))


def test_derivatives_that_are_not_batched():
    torch.manual_seed(0)
    assert_right(Sparse(), torch.randn(3, 4))


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated")
@pytest.mark.parametrize("mode", ["per_sample", "subset", "micro_batch"])
def test_torchscript_is_named(mode):
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 6)))
    plain = copy.deepcopy(model[0])
    norms = PerSampleNorms(model, mode=mode)
    with pytest.warns(UserWarning, match="1.weight: it is in a TorchScript module"):
        assert norms.untracked.keys() == {"1.weight", "1.bias"}
    model(torch.randn(3, 4)).sum().backward()
    assert norms.sums().keys() == {"0.weight", "0.bias"}
    norms.detach()
    assert model[0].__dict__.keys() == plain.__dict__.keys()


@pytest.mark.parametrize(("given", "message"), [
    ({"batch_dim": -1}, "batch_dim=-1 must be a whole number of at least 0"),
    ({"batch_dim": "1"}, "batch_dim='1' must be"),
    ({"batch_dim": True}, "batch_dim=True must be"),
    ({"model": None}, "model=None must be a torch.nn.Module"),
    ({"model": []}, "model=\\[\\] must be"),
    ({"model": nn.Sequential(nn.LazyLinear(2))}, "0.weight has no shape yet: call the model once"),
])  # fmt: skip
def test_what_is_no_model_and_no_dimension_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        PerSampleNorms(**{"model": nn.Linear(2, 2), **given})
