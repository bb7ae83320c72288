"""Passes that are not measured, with torch.compile."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from .helpers.slow import slow_but
from .helpers.turns import BATCH, OPTIONS, PERIOD, alike, counts, found, measured_passes, network, norm_of_one, subset


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.body, self.last = nn.Linear(3, 3), network(), nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.body(self.first(x)).sin())


# Dynamo looks at `grad` of what it is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("norm_samples", slow_but([32], [32, 12]))
def test_compiled_blocks_have_two_graphs_measured_and_not(norm_samples):
    torch.manual_seed(0)
    torch.compiler.reset()
    model = Blocks().double()
    one = norm_of_one(model)
    model.body.compile(backend="aot_eager")
    with subset(model, norm_samples=norm_samples) as norms, measured_passes() as measured:
        graphs = counters["stats"]["unique_graphs"]
        for _ in range(2 * PERIOD + 2):
            model(alike()).square().sum().backward()
        assert counters["stats"]["unique_graphs"] - graphs == 2
        samples = (2 * PERIOD + 2) * BATCH
        assert found(model, norms) == pytest.approx({name: samples * norm for name, norm in one.items()}, rel=1e-9)
        assert counts(norms) == {samples}
        assert norms.untracked == {}
    assert measured == [n % PERIOD == 0 for n in range(2 * PERIOD + 2)]


def test_a_compiled_model_is_measured_in_each_pass():
    torch.compiler.reset()
    model = network()
    one = norm_of_one(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with subset(model, norm_samples=OPTIONS["norm_samples"] // 2) as norms:
        graphs = counters["stats"]["unique_graphs"]
        for passes in range(1, 5):
            compiled(alike()).square().sum().backward()
            assert norms.per_sample()["2.weight"].shape == (1,)  # 16 of 128: 1 of 4, rounded
            assert counts(norms) == {passes * BATCH}
        assert counters["stats"]["unique_graphs"] - graphs == 1
        expected = {name: 4 * BATCH * norm for name, norm in one.items()}
        assert found(model, norms) == pytest.approx(expected, rel=1e-9)
        for call in (model, model, compiled, model):  # by turns
            call(alike()).square().sum().backward()
        assert counts(norms) == {8 * BATCH}
        expected = {name: 8 * BATCH * norm for name, norm in one.items()}
        assert found(model, norms) == pytest.approx(expected, rel=1e-9)
