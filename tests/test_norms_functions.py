"""A parameter in any place of any function: right, or named; never a crash, an empty batch included."""

import pytest
import torch
from torch import Tensor, nn

from .helpers.function_table import FORMS, FUNCTIONS, REFUSES_EMPTY, UNWATCHED, Function
from .helpers.slow import slow_but
from .helpers.verdicts import Verdict, functional, verdict

# Torch's own word on losses whose operands broadcast, and on old forms, as they are here on purpose.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Using a target size:UserWarning", "ignore:This overload of addmm is deprecated:UserWarning"
)

BATCHES = (0, 1, 2, 3, 4)  # which divide, or are, the lengths of some parameters


class Head(Function):
    """Leaves the function to the loss, which is computed outside of the model."""

    def forward(self, x: Tensor) -> Tensor:
        return self.products(x)


def outside(model: nn.Module, x: Tensor) -> Tensor:
    return functional(model, x) + functional(model.function, x)


def judge(name: str, batch: int, where: str = "alone") -> Verdict:
    """`where`: the function `alone`, `beside` a product, `outside` of the model as well, or alone and `unchecked`."""
    torch.manual_seed(0)
    model = Head(name, True) if where == "outside" else Function(name, where.endswith("beside"))
    x = torch.randn(batch, *FUNCTIONS[name][1], dtype=torch.float64)
    return verdict(
        model.double(), x, outside if where == "outside" else functional, unchecked=where.startswith("unchecked")
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_right_or_named(name):
    expect(name, "alone", BATCHES[name in REFUSES_EMPTY :])


@pytest.mark.parametrize("where", ["beside", "outside"])
@pytest.mark.parametrize("name", slow_but((*UNWATCHED, *FORMS), FUNCTIONS))
def test_beside_a_use_that_is_measured(name, where):
    expect(name, where, BATCHES[1:])


@pytest.mark.parametrize("where", ["unchecked", "unchecked, beside"])
@pytest.mark.parametrize("name", slow_but(FORMS, [name for name in FUNCTIONS if name not in UNWATCHED]))
def test_where_the_gradient_is_not_checked(name, where):
    """What is watched is right or named by itself."""
    expect(name, where, BATCHES[1:])


def expect(name: str, where: str, batches: tuple[int, ...]) -> None:
    found = {batch: judge(name, batch, where) for batch in batches}
    bad = [f"B={b}: {v.word}: {v.why}" for b, v in found.items() if v.word not in ("right", "named")]
    assert not bad, "\n".join(bad)
