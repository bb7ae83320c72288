"""Whatever a training loop does between its passes, samples that are all alike have a known sum."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from .helpers.turns import BATCH, PERIOD, alike, counts, found, measured_passes, network, norm_of_one, subset

SIZES = st.sampled_from([BATCH, BATCH, BATCH, 1, 3])
OPERATIONS = st.one_of(
    st.tuples(st.just("train"), SIZES),
    st.tuples(st.just("train"), SIZES),
    st.tuples(st.just("train twice"), SIZES),
    st.tuples(st.just("drop"), SIZES),
    st.tuples(st.just("evaluate"), SIZES),
    st.tuples(st.sampled_from(["to none", "in place", "amid", "close", "read", "write"]), st.just(1)),
)


def train(model: nn.Module, samples: int, calls: int = 1, amid: object = None) -> None:
    """Both calls of a loss see the same samples; halves of them add up to what one call has."""
    loss = sum(model(alike(samples)).square().sum() / calls for _ in range(calls))
    if amid is not None:
        model.zero_grad()
    loss.backward()


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(OPERATIONS, max_size=4 * PERIOD))
def test_any_sequence_has_the_sums_and_counts_of_its_backward_passes(operations):
    model = network()
    one = norm_of_one(model)
    of_gradient = in_all = 0
    is_first, is_decided = True, False  # a gradient is to begin; whether a call was dropped before, which decided
    with subset(model) as norms, measured_passes() as measured:
        for name, samples in operations:
            passes = len(measured)
            if name in ("train", "train twice", "amid"):
                train(model, samples, 1 + (name == "train twice"), "amid" if name == "amid" else None)
                of_gradient = samples if name == "amid" else of_gradient + samples
                in_all += samples
                assert len(set(measured[passes:])) == 1
                if is_first and not is_decided:
                    assert measured[passes]
                is_first, is_decided = False, False
            elif name == "drop":
                model(alike(samples))
                is_decided = True
            elif name == "evaluate":
                with torch.no_grad():
                    model(alike(samples))
            elif name in ("to none", "in place"):
                model.zero_grad(set_to_none=name == "to none")
                if of_gradient:  # what was measured is the old one's until the next pass
                    train(model, samples)
                    assert measured[passes] or is_decided
                    is_first, is_decided = False, False
                    of_gradient, in_all = samples, in_all + samples
            elif name == "close":
                norms.close_gradient()
                of_gradient, is_first = 0, True
            elif name == "write" and of_gradient:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            elif name == "read" and of_gradient:
                assert counts(norms) == {of_gradient}
                is_first = True  # as good as
        if of_gradient:
            assert_sums(found(model, norms), one, of_gradient)
            assert counts(norms) == {of_gradient}
        assert_sums({name: d.item() for name, d in norms.sums().items()}, one if in_all else {}, in_all)
        assert norms.untracked == {}


def assert_sums(sums: dict[str, float], one: dict[str, float], samples: int) -> None:
    assert sums.keys() == one.keys()
    for name, value in sums.items():
        assert abs(value - samples * one[name]) <= 1e-9 * samples * one[name], name
