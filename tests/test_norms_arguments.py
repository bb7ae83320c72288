"""Arguments that do not tell which part of them is which sample's: named, or warned about; and those that do."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from hf_clars.norms import PerSampleNorms

PARAMETERS = {"linear.weight", "linear.bias"}


class Takes(nn.Module):
    """One linear layer of all that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, given, *others, **more) -> Tensor:
        if isinstance(given, PackedSequence):
            given = [given.data]
        while isinstance(given, dict):
            given = list(given.values())
        if isinstance(given, Tensor):
            return self.linear(given).square().mean()
        flat = [each for one in given for each in (one if isinstance(one, (list, tuple)) else [one])]
        return torch.stack([self.linear(x.to(self.linear.weight)).square().mean() for x in flat]).sum()


def floats(*rows: int) -> list[Tensor]:
    return [torch.randn(n, 4) for n in rows]


UNTOLD = {
    "samples of one length": floats(5, 5, 5),
    "samples of different lengths": floats(5, 3),
    "a tuple": tuple(floats(5, 5)),
    "a list in a tuple": (floats(5, 6), floats(5, 6)),
    "a list of samples in a mapping": {"x": floats(5, 3)},
    "a sample for each name": {"one": torch.randn(5, 4), "two": torch.randn(3, 4)},
    "a packed sequence": pack_sequence(floats(3, 2)),
    "packed rows": pack_sequence(floats(1, 1)),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_samples_that_are_held_apart_are_named(name):
    with PerSampleNorms(model := Takes()) as norms:
        with pytest.warns(UserWarning, match="cannot measure 2"):
            model(UNTOLD[name]).backward()
        assert set(norms.untracked) == PARAMETERS
        assert norms.per_sample() == {}


def test_compiled_code_names_them_too():
    torch.compiler.reset()
    model = Takes()
    with PerSampleNorms(model) as norms, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.compile(model, backend="aot_eager", fullgraph=True)(UNTOLD["samples of one length"]).backward()
        assert set(norms.untracked) == PARAMETERS


TOLD = {
    "images and masks": ((torch.randn(3, 4), torch.ones(3, 4, dtype=torch.bool)), {}),
    "a batch by name": ({"x": torch.randn(3, 4), "labels": torch.ones(3, 4)}, {}),
    "a list of one": ([torch.randn(3, 4)], {}),
    "views, as is said": ([torch.randn(3, 4), torch.randn(3, 4)], {"batch_dim": 0}),
    "views of so many": ([torch.randn(3, 4), torch.randn(3, 4)], {"batch_size": 3}),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_holds_all_samples_is_measured(name):
    given, options = TOLD[name]
    with PerSampleNorms(model := Takes(), **options) as norms:
        model(given).backward()
        assert norms.untracked == {}
        assert len(norms.per_sample()["linear.weight"]) == 3


def test_a_list_of_results_is_what_its_tensors_are():
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), Takes()

        def forward(self, x: Tensor) -> Tensor:
            return self.head([self.body(x), x])

    with PerSampleNorms(model := Parts()) as norms:
        x = model.body(torch.randn(3, 4))
        model.head([x, x.tanh()]).backward()
        assert norms.untracked == {}
        assert len(norms.per_sample()["head.linear.weight"]) == 3


class Weighted(nn.Module):
    """Takes one number for each class, or each sample, first."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, numbers: Tensor, x: Tensor) -> Tensor:
        return self.linear(x).square().mean()


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"batch_dim": 0}])
@pytest.mark.parametrize("numbers", [torch.rand(7), torch.rand(3), torch.rand(1), torch.arange(7)])
def test_numbers_for_each_class_leave_a_doubt(numbers, options):
    with PerSampleNorms(model := Weighted(), **options), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model(numbers, torch.randn(3, 4))
    doubt = [each for each in seen if "takes 7 for the number of samples: set batch_size" in str(each.message)]
    assert len(doubt) == (len(numbers) == 7 and numbers.is_floating_point() and options == {})


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_a_nested_tensor_is_named(layout):
    given = torch.nested.nested_tensor(floats(2, 3, 5), layout=layout)
    with PerSampleNorms(model := nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))) as norms:
        with pytest.warns(UserWarning, match="a nested tensor is among the arguments"):
            out = model(given)
        torch.nested.to_padded_tensor(out, 0.0).square().sum().backward()
        assert len(norms.untracked) == 4
        assert norms.per_sample() == {}
