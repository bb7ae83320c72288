"""Rules of sample axes, against what each function's result depends on, element by element."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_clars.norms import PerSampleNorms
from hf_clars.norms.sample_axis.axis import SampleAxis
from hf_clars.norms.sample_axis.index_reading import read
from hf_clars.norms.sample_axis.tags import PLACE, place_of

from .helpers.verdicts import assert_right

BATCH = 2
SHAPES = [(2,), (2, 2), (4, 2), (3, 2), (2, 2, 2), (3, 4, 2), (2, 1, 2), (1, 2, 2), (1, 2, 4, 4)]


def written(x: Tensor, index, value) -> Tensor:
    x = x.clone()
    x[index] = value
    return x


def through(x: Tensor, write) -> Tensor:
    """A copy of x after something was written to a view of it."""
    y = x.clone()
    write(y)
    return y


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


def at_zero(x: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=torch.long)


INDICES = (
    1, np.int64(1), torch.tensor(1), np.array(1), [0, 1], (1, 0), range(2), [True, False], np.array([1, 0]),
    np.array([[0], [1]]), np.array([True, False]), torch.tensor([0, 1]),
)  # fmt: skip
KNOWN = {  # of which it must be said where samples are, too
    "view_as_complex": torch.view_as_complex,
    "view_as_real": lambda x: torch.view_as_real(torch.view_as_complex(x)),
    "masked_fill": lambda x: x.masked_fill(torch.zeros(x.shape, dtype=torch.bool), 0.0),
    "fftshift": lambda x: torch.fft.fftshift(x, dim=1),
    "split": lambda x: x.split(2),
    "roll": lambda x: x.roll(1, 1),
    "flip of positions": lambda x: x.flip(1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 0),
    "expand": lambda x: x[None].expand(4, *x.shape),
    "stack": lambda x: torch.stack([x, x], 1),
    "unfold": lambda x: x.unfold(1, 2, 1),
    "unflatten": lambda x: x.unflatten(0, (2, -1)),
    "entries, side by side again": lambda x: torch.cat([2 * each for each in x]),
    "entries, one by one again": lambda x: torch.stack(x.unbind(1), 1),
    **{f"x[:, {each!r}]": lambda x, each=each: x[:, each] for each in INDICES},
}
CALLS = {
    **KNOWN,
    # Numbers in a tuple, or one by one.
    "flip": lambda x: x.flip(0),
    "flip(0, 1)": lambda x: x.flip(0, 1),
    "flip(dims)": lambda x: torch.flip(x, dims=(1, 0)),
    "permute": lambda x: x.permute(-1, *range(x.ndim - 1)),
    "repeat": lambda x: x.repeat(2, *[1] * x.ndim),
    "tile": lambda x: x.tile(2, 1),
    # In place, shapes and places are no longer what they were.
    "t_": lambda x: x.clone().t_(),
    "transpose_": lambda x: x.clone().transpose_(0, -1),
    "squeeze_": lambda x: x.clone().squeeze_(),
    "squeeze_(0)": lambda x: x.clone().squeeze_(0),
    "unsqueeze_": lambda x: x.clone().unsqueeze_(0),
    # Operands that broadcast, and a dimension of the result that is gone.
    "cosine_similarity": lambda x: F.cosine_similarity(x, x + 1),
    "cosine_similarity(dim)": lambda x: F.cosine_similarity(x, x + 1, dim=-1),
    "cosine_similarity of pairs": lambda x: F.cosine_similarity(x.unsqueeze(1), x.unsqueeze(0), dim=-1),
    "cosine_similarity with a table": lambda x: F.cosine_similarity(zeros(5, 1, *x.shape) + 1, x, dim=-1),
    "where": lambda x: torch.where(x > 0, x, x * 2),
    "where alone": lambda x: torch.where(x > 0),
    "clamp": lambda x: x.clamp(max=x.flip(0)),
    "diag_embed": lambda x: torch.diag_embed(x),
    "diag_embed(0, 2)": lambda x: torch.diag_embed(x, 0, 0, 2),
    "view as other type": lambda x: x.view(torch.float32),
    "view as larger type": lambda x: x.view(torch.complex128),
    # Samples' values, written where others' stand.
    "x[0] = x[1]": lambda x: written(x, 0, x[1]),
    "x[:] = flipped": lambda x: written(x, slice(None), x.flip(0)),
    "x[:, 0] = x[:, 1]": lambda x: written(x, (slice(None), 0), x[:, 1]),
    "x[[1]] = x[[0]]": lambda x: written(x, [1], x[[0]]),
    "x[:] = transposed": lambda x: written(x, slice(None), x.transpose(0, -1)),
    "index_put": lambda x: x.index_put((torch.tensor([1]),), x[0]),
    "index_copy": lambda x: x.index_copy(0, torch.tensor([1]), x[:1]),
    "scatter": lambda x: x.scatter(0, at_zero(x), x),
    "scatter flipped": lambda x: x.scatter(-1, at_zero(x), x.flip(0)),
    "scatter in samples": lambda x: x.scatter(1, at_zero(x), x),
    # Through views.
    "view.copy_": lambda x: through(x, lambda y: y.transpose(0, -1).copy_(x)),
    "row.copy_": lambda x: through(x, lambda y: y[0].copy_(x[1])),
    "rows[:] =": lambda x: through(x, lambda y: y[:1].__setitem__(slice(None), x[1:2])),
    "out=": lambda x: through(x, lambda y: torch.neg(x.flip(0), out=y)),
    # Entries in another order, or not all of them.
    "entries reversed": lambda x: torch.cat(x.unbind(0)[::-1]),
    "an entry twice": lambda x: torch.stack([x.unbind(0)[0]] * len(x)),
    "parts of entries": lambda x: torch.cat([each[:1] for each in x]),
    "entries of two": lambda x: torch.stack([(x + 1).unbind(0)[0], *x.unbind(0)[1:]]),
    "entries turned": lambda x: torch.cat([each.transpose(0, -1) for each in x]),
    # As many indices of each entry as it says.
    "repeat_interleave(x)": lambda x: torch.repeat_interleave(x.abs().long()),
    # Indices that were changed.
    "arange * 0": lambda x: x[torch.arange(len(x)).mul_(0)],
    "arange[0] = 1": lambda x: x[written(torch.arange(len(x)).clone(), 0, 1)],
}  # fmt: skip


def owners(shape: tuple[int, ...], axis: SampleAxis) -> Tensor:
    own = (torch.arange(shape[axis.dim]) // axis.inner) % axis.batch
    return own.view([-1 if dim == axis.dim else 1 for dim in range(len(shape))]).expand(shape)


def results(call, x: Tensor) -> list[Tensor]:
    out = call(x)
    return [out] if isinstance(out, Tensor) else list(out)


def judge(call, shape: tuple[int, ...], axis: SampleAxis, norms: PerSampleNorms) -> str:
    """ "wrong" if an element is said to be a sample's, and depends on others alone; else "known" or "unknown"."""
    first = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    try:
        plain = results(call, first.clone())
    except (RuntimeError, IndexError):
        return "unknown"  # torch has no such call for this shape
    x = first.clone()
    setattr(x, PLACE, axis)
    norms.watch.measurement.batch = axis.batch
    tracer = norms.watch.tracer
    tracer.begin()
    try:
        with tracer:
            outs = results(call, x)
    finally:
        tracer.leave()
    depends = [torch.zeros(BATCH, *each.shape, dtype=torch.bool) for each in plain]
    for i in range(BATCH):
        for shift in (1.0, -3.0):
            other = torch.where(owners(shape, axis) == i, first + shift, first)
            for found, each, before in zip(depends, results(call, other), plain, strict=True):
                found[i] |= True if each.shape != before.shape else ~torch.isclose(each, before, equal_nan=True)
    word = "unknown"
    for found, out in zip(depends, outs, strict=True):
        place = place_of(out)
        if type(place) is SampleAxis and place.pick is None:
            own = owners(tuple(out.shape), place).unsqueeze(0)
            if (found.any(0) & ~found.gather(0, own)[0]).any():
                return "wrong"
            word = "known"
    return word


@pytest.mark.parametrize("index", [[slice(None), 0], [[0, 1], [1, 0]], (slice(None), True), "a", (object(),)])
def test_an_index_that_is_read_in_ways_of_its_own_is_unknown(index):
    assert read(2, index) is None


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_taken_for_another_sample(name):
    norms = PerSampleNorms(nn.Linear(1, 1))
    axes = [
        (shape, SampleAxis(dim, inner, BATCH))
        for shape in SHAPES for dim in range(len(shape)) for inner in (1, 2) if shape[dim] % (BATCH * inner) == 0
    ]  # fmt: skip
    words = {each: judge(CALLS[name], *each, norms) for each in axes}
    assert [each for each, word in words.items() if word == "wrong"] == []
    assert name not in KNOWN or "known" in words.values()


class Other(nn.Module):
    """A second argument with as many rows as the batch, which `use` takes for positions."""

    def __init__(self, use) -> None:
        super().__init__()
        self.of_x, self.of_other, self.use = nn.Linear(3, 3), nn.Linear(3, 3), use

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.use(self.of_x(x), self.of_other(other))


OF_ROWS = [  # each sample meets all rows of the other, as of the embeddings of classes
    lambda x, other: x + other.mean(0),
    lambda x, other: x * other.mean(),
    lambda x, other: x + torch.logsumexp(other, 0).exp(),
    lambda x, other: x @ other.tanh().sum(0),
    lambda x, other: torch.cat([x, other.mean(0, keepdim=True).expand(len(x), -1)], 1),
    lambda x, other: x / other.square().sum(),
    lambda x, other: torch.softmax(x @ other.T, -1) @ other,
    lambda x, other: F.scaled_dot_product_attention(x, other, other),
    lambda x, other: torch.cdist(x, other),
    lambda x, other: torch.cdist(other, x).T,
    lambda x, other: x + (other.T @ other),
]


@pytest.mark.parametrize(
    "use",
    [
        lambda x, other: x + other,
        lambda x, other: other + x,
        lambda x, other: x.unsqueeze(2) * other,
        lambda x, other: x @ other,
        lambda x, other: x @ other.T,
        lambda x, other: F.scaled_dot_product_attention(x, x, x, attn_mask=other),
        lambda x, other: torch.einsum("btd,sd->bts", x, other),
        lambda x, other: (x + other.unsqueeze(1)) * other,
        *[lambda x, other, use=use: use(x[:, 0], other) for use in OF_ROWS],
    ],
)
@pytest.mark.parametrize("layer", ["linear", "parameter"])
def test_an_argument_that_turns_out_to_be_positions_is_named(use, layer):
    model = Other(use).double()
    if layer == "parameter":
        model.of_other = nn.PReLU(3).double()
    with warnings.catch_warnings(), PerSampleNorms(model) as norms:
        warnings.simplefilter("ignore")
        model(torch.randn(3, 3, 3).double(), torch.randn(3, 3).double()).square().sum().backward()
        assert {name for name in norms.untracked if "of_x" not in name} == {
            name for name, _ in model.of_other.named_parameters("of_other")
        }


def test_an_argument_that_meets_samples_as_such_is_measured():
    assert_right(Other(lambda x, other: x + other.unsqueeze(1)), torch.randn(3, 4, 3), torch.randn(3, 3))


@pytest.mark.parametrize(
    "use",
    [
        lambda x, other: x.square().mean() + other.exp().mean(),
        lambda x, other: F.mse_loss(x, other) + (1 - other.std(0)).relu().sum(),
        lambda x, other: F.cross_entropy(x @ other.T, torch.arange(3)) + F.cross_entropy(other @ x.T, torch.arange(3)),
        lambda x, other: (x - other).square().mean(),
    ],
)
def test_an_argument_whose_rows_meet_in_the_loss_alone_is_measured(use):
    """Two views of each sample, pairs of images and texts, what is real and what is generated."""
    model, xs = Other(use).double(), torch.randn(2, 3, 3).double().unbind()
    with PerSampleNorms(model) as norms:
        model(*xs).backward()
        assert norms.untracked == {}
        measured = norms.per_sample()["of_other.weight"]
    y = model.of_other(xs[1]).detach().requires_grad_()
    (d,) = torch.autograd.grad(use(model.of_x(xs[0]), y), y)
    torch.testing.assert_close(measured, d.norm(dim=1) * xs[1].norm(dim=1))


def test_a_tensor_that_is_an_argument_twice_is_the_same_samples():
    """As ids are, which are the labels, too."""
    model, x = Other(lambda x, other: x + other.mean(0)).double(), torch.randn(3, 3).double()
    with PerSampleNorms(model) as norms:
        model(x, x).square().sum().backward()
        assert norms.untracked == {}


@pytest.mark.parametrize("which", ["the same", "another", "the same beside the same", "refilled"])
def test_an_argument_that_is_there_again_beside_other_samples_is_none(which):
    """Embeddings of as many classes as samples: a product with them looks like one of pairs."""
    model = Other(lambda x, other: x @ other.T).double()
    x, classes = torch.randn(2, 3, 3).double().unbind()
    with warnings.catch_warnings(), PerSampleNorms(model) as norms:
        warnings.simplefilter("ignore")
        model(x, classes).square().sum().backward()
        assert norms.untracked == {}
        if which == "refilled":
            classes.normal_()
        x = x if which == "the same beside the same" else torch.randn(3, 3).double()
        model(x, torch.randn(3, 3).double() if which == "another" else classes).square().sum().backward()
        assert set(norms.untracked) == ({"of_other.weight", "of_other.bias"} if which == "the same" else set())


def test_an_argument_of_one_pass_is_no_samples_in_the_next():
    """A constant that was a batch once, as anchors and prompts are."""

    class Anchored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.of_anchors = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).unsqueeze(1) + self.of_anchors(anchors)

    anchors, model, x = torch.randn(4, 3).double(), Anchored().double(), torch.randn(4, 3).double()
    with PerSampleNorms(model) as norms:
        model(anchors).square().sum().backward()
        model.zero_grad()
        model(x).square().sum().backward()
    for i in range(4):
        (alone,) = torch.autograd.grad(model(x[i : i + 1]).square().sum(), model.of_anchors.weight)
        torch.testing.assert_close(norms.per_sample()["of_anchors.weight"][i], alone.norm())
    assert norms.untracked == {}  # passes after detach() are not measured, and not missed
    assert [name for name in vars(anchors) if name.startswith("_hf_clars")] == []


class Keeping(nn.Module):
    """Uses what the pass before kept, and keeps something of its own batch."""

    def __init__(self, keep) -> None:
        super().__init__()
        self.of_x, self.of_kept, self.keep = nn.Linear(3, 3), nn.Linear(3, 3), keep
        self.register_buffer("kept", torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.of_x(x)
        out = y @ self.of_kept(self.kept.clone()).T
        self.keep(self, y)
        return out


def keep_after_the_pass(model: Keeping, y: Tensor) -> None:
    model.kept = y


KEEPS = {
    "a buffer": lambda model, y: model.kept.copy_(y.detach()),
    "part of a buffer": lambda model, y: model.kept[1:].copy_(y.detach()[1:]),
    "rows of a buffer": lambda model, y: model.kept.__setitem__(slice(None), y.detach()),
    "an attribute": lambda model, y: setattr(model, "kept", y.detach()),
    "a queue": lambda model, y: setattr(model, "kept", torch.cat([y.detach()[:2], model.kept[:2]])),
    "what all samples have a part in": lambda model, y: setattr(model, "kept", y.detach().mean(0).repeat(4, 1)),
    "what is detached later": keep_after_the_pass,
}


@pytest.mark.parametrize("how", KEEPS)
def test_what_one_pass_kept_is_no_samples_in_the_next(how):
    torch.manual_seed(0)
    model, y = Keeping(KEEPS[how]).double(), torch.tensor([1, 0, 2, 3])
    with PerSampleNorms(model) as norms:
        for _ in range(3):
            x, kept = torch.randn(4, 3).double(), model.kept.clone()
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            model.kept.detach_()
            assert norms.untracked == {}
            for i in range(4):
                weight = model.of_kept.weight.detach().requires_grad_()
                keys = F.linear(kept, weight, model.of_kept.bias)
                scores = F.linear(x[i], model.of_x.weight, model.of_x.bias) @ keys.T
                (alone,) = torch.autograd.grad(F.cross_entropy(scores, y[i]) / 4, weight)
                torch.testing.assert_close(norms.per_sample()["of_kept.weight"][i], alone.norm())


def test_hooks_on_parameters_see_their_gradient_alone():
    class Standardised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight - self.weight.mean(), self.bias)

    seen: list[Tensor] = []
    model, x = Standardised(3, 2).double(), torch.randn(4, 3).double()
    model.weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    with PerSampleNorms(model) as norms:
        model(x).square().sum().backward()
        assert norms.untracked == {}
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], model.weight.grad)


@pytest.mark.parametrize("seed", range(4))
def test_half_precision_is_no_reason_to_name(seed):
    """A bias has its gradient summed up in the precision of autocast, whatever form the weight's takes."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 8, 3))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(32, 16))
    for each, x in ((model, torch.randn(8, 3, 12, 12)), (normed, torch.randn(1, 9, 32))):
        with PerSampleNorms(each) as norms:
            with torch.autocast("cpu", torch.bfloat16):
                y = each(x).float()
            (y.square().mean() + y.mean()).backward()
            assert norms.untracked == {}
