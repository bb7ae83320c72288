"""The layers of public suites, each with samples in every place where they may stand: right, or named."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .helpers.layer_table import BT, ONE, TABLE, TB, Row
from .helpers.layouts import LAYOUTS, Behind, Loop
from .helpers.slow import slow_but
from .helpers.verdicts import Verdict, verdict

LOOP = "one position after the other"
SIZES = ((1, 4), (2, 4), (4, 8), (3, 4))  # batch, length: one sample, a batch that divides lengths, one that does not
OFTEN = {"linear", "Conv2d {'kernel_size': 3}", "attention, q, k, v"}  # the fuzz has other layers in all layouts


def pairs() -> Iterator[tuple[str, str]]:
    """Every layer with every layout that it can be behind."""
    for name, row in TABLE.items():
        for layout, (_, _, order, _) in LAYOUTS.items():
            if row.wants not in (TB, BT) or row.wants == order:
                yield name, layout
        if row.wants not in (TB, BT):
            yield name, LOOP


class Affine(nn.Module):
    """What BatchNorm does after it has normalised."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, *[1] * (x.ndim - 2))
        return x * self.weight.view(shape) + self.bias.view(shape)


def behind(layer: nn.Module, layout: str, row: Row) -> nn.Module:
    return (Loop(layer) if layout == LOOP else Behind(layer, LAYOUTS[layout], row.wants == ONE)).double()


def judge(name: str, layout: str, batch: int, length: int) -> Verdict:
    row = TABLE[name]
    torch.manual_seed(0)
    layer, xs = row.make(), row.inputs(batch, length)
    with torch.no_grad():
        for p in layer.parameters():  # what initialisation leaves at 0 or 1 would hide errors
            p += 0.1 * torch.randn_like(p)
    alone = None
    if isinstance(layer, _BatchNorm) and layer.training:
        normalise = copy.deepcopy(layer)
        normalise.weight = normalise.bias = None
        # Of a position at a time, BatchNorm sees the batch alone, which is nothing to normalise for one sample.
        if layout == LOOP and xs[0].ndim == 3 and batch == 1:
            return Verdict("right")
        # The rest does not depend on the layout, in which some see the inputs twice.
        alone = behind(Affine(layer), "plain", row), behind(normalise, layout, row)(*xs).detach()
    return verdict(behind(layer, layout, row), xs, alone=alone)


def must_be_right(name: str, layout: str) -> bool:
    return TABLE[name].right and layout != LOOP and LAYOUTS[layout].right


def is_quick(pair: tuple[str, str]) -> bool:
    """Some layers in every layout, and every layer in one."""
    name, layout = pair
    return name in OFTEN or layout == ("plain" if TABLE[name].wants == BT else "transpose")


@pytest.mark.parametrize(("name", "layout"), slow_but(is_quick, pairs()))
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
# What torch says of masks of two types, and of layouts in which inference would be slower.
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask", "ignore:enable_nested_tensor is True")
def test_right_or_named(name, layout):
    allowed = {"right"} if must_be_right(name, layout) else {"right", "named"}
    found = {size: judge(name, layout, *size) for size in SIZES}
    bad = [f"B={b}, T={t}: {v.word}: {v.why}" for (b, t), v in found.items() if v.word not in allowed]
    assert not bad, "\n".join(bad)
