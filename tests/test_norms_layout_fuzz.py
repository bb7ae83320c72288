"""Random chains of shape functions before, between and after layers: right, or named, wherever samples get to."""

from random import Random

import pytest
import torch
from hypothesis import Phase, given, note, settings
from torch import Tensor, nn

from .helpers.chains import ALL, FEATURES, FIRST, SECOND, VIEWS, Chain, cases, draw
from .helpers.verdicts import Verdict, verdict


def judge(shape, first, second, chains, seed) -> Verdict:
    random, batch = Random(seed), shape[0]
    torch.manual_seed(seed)
    ids = first == "embedding"
    x = torch.randint(0, 7, shape) if ids else torch.randn(*shape, FEATURES, dtype=torch.float64)
    owner = torch.arange(batch).view(-1, 1, 1).expand(shape)  # the sample to which each element belongs
    layers = [FIRST[first]()] + ([SECOND[second]()] if second else [])
    sizes = [0 if ids else FEATURES, FEATURES, *[4 if second == "linear" else FEATURES] * (len(layers) - 1)]
    steps = []
    # A layer takes features together, which belong to one sample: the steps leave the last dimension where it is.
    for size, makes in zip(sizes, chains, strict=False):
        whole = owner.unsqueeze(-1).expand(*owner.shape, size) if size else owner
        done, whole = draw(whole, int(size > 0), makes, random)
        steps.append(done)
        owner = whole[..., 0] if size else whole
    parts = zip(steps, [*layers, "loss"], strict=True)
    note(f"{tuple(x.shape)} → " + " → ".join(f"{done} {layer}" for done, layer in parts))

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        y = model(x)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
        f = (y * weight + 0.5 * y.square()).mean(-1)
        return f.new_zeros(batch).index_add(0, owner.flatten(), f.flatten())

    return verdict(Chain(layers, steps).double(), x, loss, together=True)


def check(allowed: set[str], **case) -> None:
    found = judge(**case)
    assert found.word in allowed, f"{found.word}: {found.why}"


# Without the phase that explains a failure, which takes minutes.
FEW = settings(phases=(Phase.explicit, Phase.generate, Phase.shrink))
MANY = settings(FEW, max_examples=2000)
AMOUNTS = [FEW, pytest.param(MANY, marks=pytest.mark.slow)]


@pytest.mark.parametrize("amount", AMOUNTS, ids=["few", "many"])
@pytest.mark.parametrize(("makes", "allowed"), [(ALL, {"right", "named"}), (VIEWS, {"right"})], ids=["any", "views"])
def test_right_or_named(amount, makes, allowed):
    """Right, and not just named, where dimensions are only exchanged and merged."""

    @amount
    @given(**cases(makes))
    def check(**case):
        found = judge(**case)
        assert found.word in allowed, f"{found.word}: {found.why}"

    check()
