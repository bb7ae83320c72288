"""`recipes/studies/dial.py`: LARS at one end, CLARS at the other, geometric means of their denominators between."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from hf_clars import CLARS, LARS, PerSampleNorms

from .helpers.scripts import module_of

PATH = Path(__file__).resolve().parents[1] / "recipes" / "studies" / "dial.py"


@pytest.fixture
def dial() -> ModuleType:
    return module_of(PATH)


def stepped(kind: type, eta: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights before and after one step without momentum."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3)).double()
    before = [p.detach().clone() for p in model.parameters()]
    options = {"eta": eta, "momentum": 0.0}
    if issubclass(kind, CLARS):
        optimizer = kind(model.parameters(), 2.0, norms=PerSampleNorms(model), **options)
    else:
        optimizer = kind(model.parameters(), 2.0, decay_in_denominator=False, **options)
    nn.functional.cross_entropy(model(torch.randn(8, 4).double()), torch.arange(8) % 3).backward()
    optimizer.step()
    return before, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(("p", "other"), [(0.0, LARS), (1.0, CLARS)])
def test_the_ends_are_lars_and_clars(dial: ModuleType, p: float, other: type) -> None:
    dial.Dial.p = p
    for moved, expected in zip(stepped(dial.Dial, 0.01)[1], stepped(other, 0.01)[1], strict=True):
        torch.testing.assert_close(moved, expected, rtol=1e-12, atol=0)


def test_half_way_a_layer_moves_by_the_geometric_mean(dial: ModuleType) -> None:
    dial.Dial.p = 0.5
    steps = {}
    for kind in (LARS, dial.Dial, CLARS):
        before, after = stepped(kind, 0.01)
        steps[kind] = torch.stack([(b - a).norm() for b, a in zip(before, after, strict=True) if b.dim() > 1])
    torch.testing.assert_close(steps[dial.Dial], (steps[LARS] * steps[CLARS]).sqrt(), rtol=1e-12, atol=0)
    assert (steps[CLARS] < 0.99 * steps[LARS]).all()
