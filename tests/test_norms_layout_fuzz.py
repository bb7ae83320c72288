"""Random chains of shape functions before, between and after layers: right, or named, wherever samples get to."""

from random import Random

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from .helpers.chains import ALL, VIEWS, Chain, draw
from .helpers.verdicts import Verdict, verdict

FEATURES = 3
FIRST = {
    "linear": lambda: nn.Linear(FEATURES, FEATURES),
    "layer norm": lambda: nn.LayerNorm(FEATURES),
    "RMS norm": lambda: nn.RMSNorm(FEATURES),
    "embedding": lambda: nn.Embedding(7, FEATURES),
}
SECOND = {"": None, "linear": lambda: nn.Linear(FEATURES, 4), "layer norm": lambda: nn.LayerNorm(FEATURES)}


def cases(makes):
    """`[batch, positions, more]`, layers, what chains are made of, and a seed for the rest."""
    chain = st.lists(st.sampled_from(makes), max_size=4)
    return {
        "shape": st.tuples(st.integers(1, 4), st.sampled_from([2, 3, 4]), st.integers(1, 3)),
        "first": st.sampled_from(sorted(FIRST)),
        "second": st.sampled_from(sorted(SECOND)),
        "chains": st.tuples(chain, chain, chain),
        "seed": st.integers(0, 1 << 16),
    }


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
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)
FEW = settings(max_examples=100, deadline=None, derandomize=True, database=None, phases=PHASES)
MANY = settings(FEW, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])


@FEW
@given(**cases(ALL))
def test_right_or_named(**case):
    check({"right", "named"}, **case)


@FEW
@given(**cases(VIEWS))
def test_right_where_dimensions_are_only_exchanged_and_merged(**case):
    check({"right"}, **case)


@pytest.mark.slow
@MANY
@given(**cases(ALL))
def test_right_or_named_more_often(**case):
    check({"right", "named"}, **case)


@pytest.mark.slow
@MANY
@given(**cases(VIEWS))
def test_right_where_dimensions_are_only_exchanged_and_merged_more_often(**case):
    check({"right"}, **case)
