"""Where samples stand after a function: the oracle is a tensor of sample numbers that goes through the same function.

And small models around the functions whose rules have conditions: right where these hold, and never wrong."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from hf_clars.norms import PerSampleNorms
from hf_clars.norms.placing import tag_index
from hf_clars.norms.sample_axis.axis import SampleAxis, seen_through
from hf_clars.norms.sample_axis.tags import INDEX

from .helpers.verdicts import assert_right, verdict


def expected(out: Tensor, axis: SampleAxis) -> Tensor:
    shape = [1] * out.ndim
    shape[axis.dim] = out.shape[axis.dim]
    return (torch.arange(out.shape[axis.dim]) // axis.inner % axis.batch).double().reshape(shape).expand(out.shape)


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 2, 4), (3, 4, 2), (2, 2, 3)])
def test_a_base_is_seen_through_its_views(shape):
    """Views of every kind, written with sample numbers: what is said of the base must be so where it was written."""
    found = 0
    for view_of in (
        lambda b: b[..., :1], lambda b: b[:, 1:], lambda b: b.transpose(0, 2), lambda b: b.flatten(0, 1),
        lambda b: b[0], lambda b: b.movedim(1, 0)[:1], lambda b: b[..., ::2], lambda b: b.flatten(),
        lambda b: b[:, :, None], lambda b: b.unflatten(-1, (1, -1)),
    ):  # fmt: skip
        base = torch.full(shape, -1.0)
        view = view_of(base)
        for dim in [d for d in range(view.ndim) if view.shape[d] == 2]:
            base.fill_(-1.0)
            axis = SampleAxis(dim, 1, 2)
            view.copy_(expected(view, axis))
            place = seen_through(axis, view, base)
            if place is not None:
                found += 1
                assert torch.equal(torch.where(base < 0, base, expected(base, place).float()), base)
    assert found


class Sorted(nn.Module):
    """Tokens in the order of their experts, and back: by the inverse permutation, or added to where they were."""

    def __init__(self, back: str) -> None:
        super().__init__()
        self.back = back
        self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        rows = x.flatten(0, 1)
        expert, order = torch.sort((rows[:, :2] * 3).long().flatten() % 3)
        picked = torch.cat([2 * part for part in rows[order // 2].split([1, len(order) - 1])])
        picked = picked * (1 + expert)[:, None]
        if self.back == "inverse":
            inverse = torch.empty_like(order)
            inverse[order] = torch.arange(len(order))
            rows = picked[inverse].view(-1, 2, 4).sum(1)
        elif self.back == "argsort":
            rows = picked[order.argsort()].view(-1, 2, 4).sum(1)
        elif self.back == "add":
            rows = torch.zeros_like(rows).index_add_(0, order // 2, picked)
        else:  # to where they do not belong
            rows = torch.zeros_like(picked)
            rows[torch.arange(len(order)).flip(0)] = picked
            rows = rows.view(-1, 2, 4).sum(1)
        return self.after(rows.view(x.shape))


@pytest.mark.parametrize("batch", [2, 3])
def test_rows_written_to_other_places_are_named(batch):
    torch.manual_seed(0)
    with warnings.catch_warnings(), PerSampleNorms(model := Sorted("elsewhere").double()) as norms:
        warnings.simplefilter("ignore")
        model(torch.randn(batch, 4, 4, dtype=torch.float64)).square().sum().backward()
        assert "after.weight" in norms.untracked


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("back", ["inverse", "argsort", "add"])
def test_sorted_rows_come_back(back, batch):
    torch.manual_seed(0)
    assert verdict(Sorted(back).double(), torch.randn(batch, 4, 4, dtype=torch.float64)).word == "right"


def test_an_index_that_was_written_to_is_forgotten():
    order = torch.tensor([2, 0, 1])
    tag_index(order, object())
    assert hasattr(order, INDEX)
    tag_index(order, None)
    assert not hasattr(order, INDEX)


class Towers(nn.Module):
    """Two inputs that meet at the end, if at all; the second with copies of a parameter beside its samples."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.one(x)
        if self.how == "expand":
            token = self.token.expand(len(y), -1, -1)
        elif self.how == "repeat":
            token = self.token.repeat(len(y), 1, 1)
        else:
            token = self.token.repeat(len(y), 2, 3).view(len(y) * 2, 3, 4).view(len(y), 6, 4)[:, :1]
        y = self.two(torch.cat([token, y], 1))
        return torch.cat([x, y], 1)


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("how", ["expand", "repeat", "repeat, heads"])
def test_copies_beside_a_second_input(how, batch):
    torch.manual_seed(0)
    x, y = torch.randn(2, batch, 3, 4, dtype=torch.float64)
    # Of copies along two dimensions of the batch's length, it is not known which are the samples'.
    allowed = ("right", "named") if how == "repeat, heads" and batch == 2 else ("right",)
    assert verdict(Towers(how).double(), (x, y)).word in allowed


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.before, self.after = function, nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x)))


def in_halves(x: Tensor) -> Tensor:
    """Written in two parts to memory that had no samples."""
    y = x.new_empty(x.shape)
    y[..., :3].copy_(x[..., 1:])
    y[..., 3:].copy_(x[..., :1])
    return y


def masked(x: Tensor) -> Tensor:
    """A mask of samples, over something that had none."""
    mask = torch.zeros(len(x), 4, 4, dtype=x.dtype).masked_fill(x > 0.3, -9.0)
    return (x + mask).softmax(-1) @ x


FUNCTIONS = {
    "in halves": in_halves, "masked": masked,
    "fftn": lambda x: torch.fft.fftn(x, dim=(1, 2)).real, "fft2": lambda x: torch.fft.fft2(x).real,
    "fft": lambda x: torch.fft.fft(x).imag,
    "rfft": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=1), n=x.shape[1], dim=1),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (2, 2))) * 1j).flatten(-2),
    "solve_triangular": lambda x: torch.linalg.solve_triangular(
        torch.eye(4).to(x) + x.tril(-1), x, upper=False, unitriangular=True
    ),
    "inv": lambda x: torch.linalg.inv(5 * torch.eye(4).to(x) + x),
    "matrix_exp": lambda x: torch.linalg.matrix_exp(x / 9),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_samples_are_known_behind(name, batch):
    torch.manual_seed(0)
    assert_right(Between(FUNCTIONS[name]), torch.randn(batch, 4, 4))
