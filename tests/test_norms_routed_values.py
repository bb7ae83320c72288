"""Values that go to wherever a mask or an index has room for them: whose they are there, shapes do not tell."""

import pytest
import torch
from torch import Tensor, nn

from hf_clars.norms import PerSampleNorms
from hf_clars.norms.sample_axis import indices

from .helpers.verdicts import assert_right, verdict

IMAGE = 10  # the token in whose place an image goes
POSITIONS = 6


def scattered(tokens: Tensor, mask: Tensor, images: Tensor) -> Tensor:
    return tokens.masked_scatter(mask.unsqueeze(-1), images)


def written(tokens: Tensor, mask: Tensor, images: Tensor) -> Tensor:
    tokens = tokens.clone()
    tokens[mask] = images.flatten(0, -2)
    return tokens


def put(tokens: Tensor, mask: Tensor, images: Tensor) -> Tensor:
    return tokens.index_put((mask,), images.flatten(0, -2))


def apart(tokens: Tensor, mask: Tensor, images: Tensor) -> Tensor:
    """As in transformers, where the features of each image are by themselves for a while."""
    return scattered(tokens, mask, torch.cat(list(images)))


FILLS = {fill.__name__: fill for fill in (scattered, written, put, apart)}


class Pictured(nn.Module):
    """Puts features of images to their tokens, as LLaVA does."""

    def __init__(self, fill) -> None:
        super().__init__()
        self.fill = fill
        self.embed, self.see, self.head = nn.Embedding(IMAGE + 1, 6), nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, ids: Tensor, images: Tensor) -> Tensor:
        features = torch.tanh(self.see(images))
        return self.head(torch.tanh(self.fill(self.embed(ids), ids == IMAGE, features).cumsum(1)))


class ImagesFirst(Pictured):
    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        return super().forward(ids, images)


class OwnValues(nn.Module):
    """Rows of samples go to places of the same samples, or of others."""

    def __init__(self, fill) -> None:
        super().__init__()
        self.fill, self.one, self.two, self.head = fill, nn.Embedding(IMAGE + 1, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.one(ids)
        return self.head(torch.tanh(self.fill(x, ids == IMAGE, self.two(x[:, :1])).cumsum(1)))


def tokens(*counts: int) -> Tensor:
    """Of samples with so many images each."""
    ids = torch.randint(0, IMAGE, (len(counts), POSITIONS), generator=torch.Generator().manual_seed(0))
    for row, count in zip(ids, counts, strict=True):
        row[1 : 1 + count] = IMAGE
    return ids


def named(model: nn.Module, *xs: Tensor) -> set[str]:
    with PerSampleNorms(model.double()) as norms:
        model(*xs).square().mean().backward()
        return set(norms.untracked)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("patches", [1, 3])
def test_as_many_values_of_each_sample_as_there_is_room(fill, patches):
    ids, images = tokens(patches, patches, patches), torch.randn(3, patches, 5)
    assert_right(Pictured(FILLS[fill]), ids, images)
    assert_right(ImagesFirst(FILLS[fill]), images, ids)
    assert_right(OwnValues(FILLS[fill]), tokens(1, 1, 1))


@pytest.mark.filterwarnings("ignore:PerSampleNorms cannot measure")
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("counts", [(2, 0), (2, 1), (1, 2), (2, 2)])
def test_values_that_go_elsewhere_are_named(fill, counts):
    """As many images as samples, or not: they are not one of each. What follows is measured all the same."""
    images = torch.randn(sum(counts), 5).double()
    if fill == "scattered":
        with PerSampleNorms(Pictured(FILLS[fill]).double()) as norms:
            losses = norms.model(tokens(*counts), images).square().mean((1, 2))
            losses.mean().backward()
            assert set(norms.untracked) == {"see.weight", "see.bias"}
            measured = norms.per_sample()
        for name, parameter in norms.model.named_parameters():
            at = 0
            for i, count in enumerate(counts) if name in measured else ():
                loss = norms.model(tokens(*counts)[i : i + 1], images[at : at + count]).square().mean() / len(counts)
                (alone,) = torch.autograd.grad(loss, parameter)
                torch.testing.assert_close(measured[name][i], alone.norm())
                at += count
    assert named(Pictured(FILLS[fill]), tokens(*counts), images) == {"see.weight", "see.bias"}
    if sum(counts) == len(counts):
        first = named(ImagesFirst(FILLS[fill]), images, tokens(*counts))
        assert first == {"embed.weight", "head.weight", "head.bias"}
        assert named(OwnValues(FILLS[fill]), tokens(*counts)) >= {"head.weight", "head.bias"}


@pytest.mark.filterwarnings("ignore:PerSampleNorms cannot measure")
@pytest.mark.parametrize("model", [Pictured, ImagesFirst])
@pytest.mark.parametrize("counts", [(1, 1), (2, 0)])
def test_where_a_device_says_so_later(monkeypatch, model, counts):
    monkeypatch.setattr(indices, "is_at_hand", lambda flag: False)
    xs = tokens(*counts), torch.randn(2, 5).double()
    found = named(model(scattered), *(xs if model is Pictured else xs[::-1]))
    doubtful = {"see.weight", "see.bias"} if model is Pictured else {"embed.weight", "head.weight", "head.bias"}
    assert found == (set() if counts == (1, 1) else doubtful)


class Meets(nn.Module):
    """A function of samples x and of a parameter, both as its rows stand."""

    def __init__(self, use, *shape: int) -> None:
        super().__init__()
        self.weight, self.use = nn.Parameter(torch.randn(shape)), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, torch.tanh(self.weight) + self.weight[:1])


BY_PLACE = {
    "masked_scatter": lambda x, w: x.masked_scatter(x > 0, w),
    "index_add": lambda x, w: x.index_add(0, torch.zeros(1, dtype=torch.long), w[:1]),
    "index_copy": lambda x, w: x.index_copy(0, torch.zeros(1, dtype=torch.long), w[:1]),
    "index_put": lambda x, w: x.index_put((torch.zeros(1, dtype=torch.long),), w[0]),
    "scatter": lambda x, w: x.scatter(1, x.argsort(1)[:, :2], w[:3, :2]),
    "scatter_add": lambda x, w: x.scatter_add(1, x.argsort(1)[:, :2], w[:3, :2]),
    "gather": lambda x, w: w.gather(1, x.argsort(1)),
}


@pytest.mark.parametrize("name", BY_PLACE)
def test_a_parameter_whose_entries_go_by_place_is_named(name):
    """Each sample alone would meet the first entries."""
    with pytest.warns(UserWarning, match="cannot measure"):
        assert named(Meets(BY_PLACE[name], 4, 6), torch.randn(3, 6).double()) == {"weight"}


@pytest.mark.parametrize(
    "use",
    [
        lambda x, w: w[0].gather(0, x.argmax(1)),
        lambda x, w: w.gather(0, x.argsort(1) % 4),
        lambda x, w: x.index_put((x.argsort(1) > 2,), w[0, 0]),
    ],
)
def test_entries_that_are_the_same_for_each_sample_are_measured(use):
    torch.manual_seed(0)
    found = verdict(Meets(use, 4, 6).double(), torch.randn(3, 6).double())
    assert found.word == "right", found.why
